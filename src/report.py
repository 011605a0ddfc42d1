"""`python -m src.report GRID_DIR`: report what a finished grid shows."""

from nangrid.commands.report import main

if __name__ == "__main__":
    raise SystemExit(main())
