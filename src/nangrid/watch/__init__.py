"""When did a training run first hold a non-finite number, and in what arithmetic? torch only."""

from nangrid.watch.clocks import Clocks, Reading
from nangrid.watch.ledger import Ledger, observe_residual, read_arithmetic, read_model, read_optimizer

__all__ = [
    "Clocks",
    "Ledger",
    "Reading",
    "observe_residual",
    "read_arithmetic",
    "read_model",
    "read_optimizer",
]
