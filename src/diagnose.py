"""`python -m src.diagnose --failing ... --reference ...`: search causes and cures with few runs."""

from nangrid.commands.diagnose import main

if __name__ == "__main__":
    raise SystemExit(main())
