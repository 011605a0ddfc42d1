"""`python -m src.status GRID_DIR`: show the progress of a grid."""

from nangrid.commands.status import main

if __name__ == "__main__":
    raise SystemExit(main())
