"""`python -m src.run`: train one cell, or with -m a grid of cells."""

from nangrid.commands.run import main

if __name__ == "__main__":
    raise SystemExit(main())
