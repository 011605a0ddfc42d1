"""When did a training run first hold a non-finite number, where did it arise, in what arithmetic? torch only."""

from nangrid.watch.clocks import Clocks, StepReading
from nangrid.watch.headroom import Headroom
from nangrid.watch.ledger import Ledger
from nangrid.watch.preflight import Finding, preflight
from nangrid.watch.watch import NonFiniteError, Watch

__all__ = ["Clocks", "Finding", "Headroom", "Ledger", "NonFiniteError", "StepReading", "Watch", "preflight"]
