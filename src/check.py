"""`python -m src.check [overrides]`: check a run before its first step."""

from nangrid.commands.check import main

if __name__ == "__main__":
    raise SystemExit(main())
