"""When did a training run first hold a non-finite number, where did it arise, in what arithmetic? torch only."""

from nangrid.watch.autopsy.examine import Background, examine
from nangrid.watch.autopsy.replay import Replay, Step, replay
from nangrid.watch.clocks import Clocks, StepReading
from nangrid.watch.deferred import inspector_for
from nangrid.watch.headroom import Headroom
from nangrid.watch.inspector import FailedEvalBatch, Inspector, SnapshotPolicy, still_searching
from nangrid.watch.ledger import Ledger, observe_residual, read_arithmetic, read_model, read_optimizer
from nangrid.watch.preflight import Finding, Settings, preflight, settings_of
from nangrid.watch.state.random_state import random_states
from nangrid.watch.state.snapshot import MicroBatch, Snapshot
from nangrid.watch.state.tensors import trainables
from nangrid.watch.watch import NonFiniteError, Watch, WatchObserver, observing_watches

__all__ = [
    "Background",
    "Clocks",
    "FailedEvalBatch",
    "Finding",
    "Headroom",
    "Inspector",
    "Ledger",
    "MicroBatch",
    "NonFiniteError",
    "Replay",
    "Settings",
    "Snapshot",
    "SnapshotPolicy",
    "Step",
    "StepReading",
    "Watch",
    "WatchObserver",
    "examine",
    "inspector_for",
    "observe_residual",
    "observing_watches",
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
