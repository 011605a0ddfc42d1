"""`python -m src.replay CELL_DIR`: run a cell's failing step again."""

from nangrid.commands.replay import main

if __name__ == "__main__":
    raise SystemExit(main())
