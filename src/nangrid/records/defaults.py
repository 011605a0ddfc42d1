"""Holds the defaults that the command line, the Python functions and the configuration share."""

from __future__ import annotations

HORIZON = 16
"""Optimizer steps per cell."""
NOT_LISTED = {"processes": 1}
"""Levels that a record leaves out, because cells were recorded before there were others."""
SEEDS = 3
"""Seeds that must agree on a diagnosis."""
MAX_RUNS = 100
"""Runs after which a diagnosis ends, and says what is undecided."""
DIAGNOSE_OUT = "outputs/diagnose"
"""Directory in which a diagnosis keeps its cells."""
HEADROOM_EVERY = 10
"""Steps between two headroom samples."""
