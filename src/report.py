"""`python -m src.report GRID_DIR`: what does a finished grid say?"""

from nangrid.commands.report import main

if __name__ == "__main__":
    raise SystemExit(main())
