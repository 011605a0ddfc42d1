"""`python -m src.why PATH`: say what went wrong in a run or a grid, and what to change first."""

from nangrid.commands.why import main

if __name__ == "__main__":
    raise SystemExit(main())
