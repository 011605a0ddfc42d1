"""When did a training run first hold a non-finite number, where did it arise, in what arithmetic? torch only."""

from nangrid.watch.autopsy.examine import Background, examine
from nangrid.watch.autopsy.replay import Replay, Step, replay
from nangrid.watch.clocks import Clocks, Reading
from nangrid.watch.deferred import inspector_for
from nangrid.watch.headroom import Headroom
from nangrid.watch.inspector import Failed, Inspector, Keeping, still_searching
from nangrid.watch.ledger import Ledger, observe_residual, read_arithmetic, read_model, read_optimizer
from nangrid.watch.preflight import Finding, Settings, preflight, settings_of
from nangrid.watch.state.random_state import random_states
from nangrid.watch.state.snapshot import MicroBatch, Snapshot
from nangrid.watch.state.tensors import trainables
from nangrid.watch.watch import Host, NonFiniteError, Watch, hosted

__all__ = [
    "Background",
    "Clocks",
    "Failed",
    "Finding",
    "Headroom",
    "Host",
    "Inspector",
    "Keeping",
    "Ledger",
    "MicroBatch",
    "NonFiniteError",
    "Reading",
    "Replay",
    "Settings",
    "Snapshot",
    "Step",
    "Watch",
    "examine",
    "hosted",
    "inspector_for",
    "observe_residual",
    "preflight",
    "random_states",
    "read_arithmetic",
    "read_model",
    "read_optimizer",
    "replay",
    "settings_of",
    "still_searching",
    "trainables",
]
