"""`python -m src.check [overrides]`: what is wrong with a run before its first step?"""

from nangrid.commands.check import main

if __name__ == "__main__":
    raise SystemExit(main())
