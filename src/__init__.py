"""The command line of a checkout: `python -m src.run`, thin over the library in src/nangrid."""
