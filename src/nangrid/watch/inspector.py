"""Checks each step of a training loop and, at the first non-finite value, replays the step and writes the autopsy.

Every training loop calls the same methods: `begin`, then for each micro-batch `micro_batch` and `loss`, then
`gradients` (unscaled, before clipping), `norm`, `updated` and `close`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nangrid.records.autopsy import Autopsy
from nangrid.records.cell import CLOCKS
from nangrid.records.explain import explain
from nangrid.records.mechanisms import UNKNOWN
from nangrid.watch.autopsy.examine import SKIPPED, Background, examine
from nangrid.watch.autopsy.live import LiveStep, read_live_step, unreplayed
from nangrid.watch.autopsy.replay import (
    AFTER_UPDATE,
    FROZEN,
    RAISED,
    NotRepeatableError,
    Step,
    digest,
    fails,
    repeating,
)
from nangrid.watch.clocks import Clocks, StepReading, Trainables
from nangrid.watch.growth import Growth
from nangrid.watch.ranks.alone import alone
from nangrid.watch.ranks.group import Ranks
from nangrid.watch.ranks.merge import merge, of_rank
from nangrid.watch.ranks.sharded import is_sharded
from nangrid.watch.ranks.zero import zero_of
from nangrid.watch.run_directory import RunDirectory
from nangrid.watch.state.recorder import FailedEvalBatch, Recorder, SnapshotPolicy
from nangrid.watch.state.scaler import NO_SCALE
from nangrid.watch.state.snapshot import Snapshot
from nangrid.watch.state.tensors import gradients, is_finite

logger = logging.getLogger(__name__)

_LIGHT = (
    "The update was not replayed, because the light snapshot holds no copy of the parameters from before it. Pass "
    'snapshot="full" to find the operation.'
)


class Inspector:
    """Clocks and recorder of one run; when the first clock trips it replays the step and writes the autopsy."""

    late = False
    """Whether steps have followed when a failing one is noticed."""

    def __init__(
        self,
        step: Step,
        out_dir: Path | None,
        background: Background,
        policy: SnapshotPolicy | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.step = step
        self.ranks = ranks
        """The ranks of the run; None if the process trains alone."""
        self.out_dir = out_dir
        """Directory of snapshot and autopsy; None: only clocks, and no replay."""
        self.merged_records = None if out_dir is None else RunDirectory(out_dir)
        if ranks is None:
            self.records = self.merged_records
        else:
            self.records = None if out_dir is None else RunDirectory(out_dir / f"rank{ranks.rank}")
            background = replace(background, rank=ranks.rank)
        self.background = background
        self.policy = policy = policy or SnapshotPolicy()
        self.clocks = Clocks(step.trainables)
        self.growth = Growth({parameter.dtype for parameter in step.trainables.values()})
        self.recorder = Recorder(
            step.model, step.trainables, step.optimizer, step.scaler, policy.initial, light=policy.light
        )
        self.autopsy: Autopsy | None = None
        """The autopsy of the onset."""
        self.frozen: Autopsy | None = None
        """The autopsy of the first frozen step, made when the run ends: a replay may disturb a closure's counters."""
        self.unexplained = ""
        """Why a failing step has no autopsy or no snapshot."""
        self.replaying = False
        self.replay_seconds = 0.0
        self._sharded = is_sharded(step.model) or zero_of(step) is not None
        self._replays_alone = ranks is not None or zero_of(step) is not None
        self._losses: list[Tensor] = []
        self._unmended = False
        """Whether a backward pass has left non-finite gradients, which a loop may mend."""
        self._gradients_seen = False
        self._skipping = False
        """Whether a GradScaler has skipped the step before."""
        self._frozen_snapshot: Snapshot | None = None

    @property
    def autopsy_place(self) -> str:
        """Where the autopsy of the onset was written, or why it could not be."""
        return "" if self.merged_records is None else self.merged_records.autopsy_place

    def begin(self, step: int) -> None:
        """Begin a step, before any of it is computed."""
        self._losses = []
        self.clocks.begin(step)
        self.recorder.begin(step)

    def restart(self) -> None:
        """Begin the step again with the next micro-batch; nothing was updated since it began."""
        self._losses = []
        self.recorder.restart()

    def micro_batch(self, inputs: Any, **extra: Any) -> None:
        """Keep a micro-batch that is about to run."""
        self.recorder.micro_batch(inputs, **extra)

    def loss(self, loss: Tensor) -> None:
        """Check the loss of a micro-batch after its backward pass."""
        self._losses.append(loss.detach())
        self.clocks.micro_batch(loss)

    def after_backward(self, losses: Sequence[Tensor]) -> None:
        """Note what a backward pass of a loop has left of these losses, before the loop can mend it."""
        if not all(map(is_finite, losses)):
            self._unmended = not all(map(is_finite, gradients(self.step.trainables).values()))

    def losses(self, losses: Sequence[Tensor], of: Trainables) -> None:
        """Check the losses of a loop; a loop that has mended or dropped their gradients trains on."""
        mended = self._unmended and all(map(is_finite, gradients(of).values()))
        self._unmended = False
        for loss in filter(is_finite, losses) if mended else losses:
            self.loss(loss)

    def raised(self, error: Exception) -> None:
        """Add a note to an exception of the current step if a number was already non-finite; says where it arose."""
        # A replay after running out of memory would run out of memory again.
        if self.autopsy is not None or self.replaying or isinstance(error, torch.OutOfMemoryError):
            return
        self.left()
        if self.autopsy is not None:
            error.add_note(f"a number was already non-finite:\n{explain(self.autopsy)}\n{self.autopsy_place}")

    def left(self) -> None:
        """Examine the current step of a loop that was left before an optimizer ran."""
        self.autopsy = self._autopsy_of(self._snapshot(RAISED, {}), ".")
        if self.ranks is not None and self.autopsy is not None and self.merged_records is not None:
            self.merged_records.write_autopsy(self.autopsy, ".")  # the other ranks are not there

    def gradients(
        self, scale: Tensor | float = NO_SCALE, of: Trainables | None = None, clipped: Tensor | float | None = None
    ) -> None:
        """Check the gradients; examine a loss or gradient onset here, while the parameters are still clean.

        `scale`: that of a GradScaler which skips this step if its gradients are non-finite; above 1 it may still shrink
        and retry, so that they are no onset. `of`, `clipped`: see `Clocks.gradients`; `clipped` is None if the loop has
        not clipped yet.
        """
        self.recorder.copy_new_trainables()
        self._warn_without_gradient()
        searching = bool(scale > 1)
        self.clocks.gradients(searching, of, 1.0 if clipped is None else float(clipped))
        skipped = searching and self._anywhere(not math.isfinite(self.clocks.reading.max_gradient))
        self._skips(skipped)
        self._agree()
        if self._tripped_now("loss", "gradient"):
            outcome = {"loss": digest(self._losses)}
            # A loop may have clipped or scaled its gradients since the backward pass, where its replay stops.
            if of is None and not skipped and not self._replays_alone:
                outcome["gradients"] = digest(gradients(self.step.trainables).values())
            self._examine(outcome)

    def _anywhere(self, found: bool) -> bool:
        """Whether any rank has found it, where each holds other elements."""
        return self.ranks.any_of(found) if self._sharded and self.ranks is not None else found

    def skipped(self, losses: Sequence[Tensor]) -> None:
        """Note that a GradScaler has skipped the current step, before whose end `losses` were not noted yet."""
        self._skips(True, losses)

    def _skips(self, skipped: bool, losses: Sequence[Tensor] = ()) -> None:
        """Trip a clock if a step that a GradScaler skips fails with a scale of 1 as well.

        Only the first of several skipped steps is tried: if that is finite, the scaler searches for its scale.
        """
        if not skipped:
            self._skipping = False
            return
        if self._skipping or self.out_dir is None:
            return
        self._skipping = True
        with self._replay():
            lasting = self._fails_unscaled()
        if self.ranks is not None:
            lasting = self.ranks.any_of(lasting)
        if lasting:
            for loss in losses:
                Inspector.loss(self, loss)
            self.clocks.trip("gradient", 1)
            self._examine({"loss": digest(self._losses)})

    def _fails_unscaled(self) -> bool:
        try:
            with self._alone(self._snapshot("gradient", {})) as (step, snapshot):
                return fails(step, snapshot)
        except Exception:  # the user's code runs again and may raise anything: the scaler goes on
            logger.info("the step that the GradScaler skipped could not be replayed", exc_info=True)
            return False

    def _warn_without_gradient(self) -> None:
        """Warn at the first step if the optimizer has no gradient: the run would train nothing, and look healthy."""
        # Not refused: an optimizer may hold copies of the weights, which its loop fills with gradients in its own way.
        groups = self.step.optimizer.param_groups if not self._gradients_seen else []
        if groups and all(p.grad is None for group in groups for p in group["params"]):
            logger.warning(
                "no parameter of the optimizer has a gradient in the first step, so nothing is trained: call "
                "loss.backward(), not under torch.no_grad(), and pass the optimizer of this model."
            )
        self._gradients_seen = True

    def norm(self, norm: Tensor | float) -> None:
        """Record the gradient norm from before clipping."""
        self.clocks.reading.grad_norm = float(norm)
        if self.clocks.reading.frozen:
            self._keep_frozen({"loss": digest(self._losses)})

    def updated(self, of: Trainables | None = None) -> None:
        """Check parameters and optimizer state right after the optimizer step."""
        self.clocks.updated(self.step.optimizer, self.recorder.before(of), of)
        if self._sharded:
            self._agree()  # each rank has updated other elements
        if self._tripped_now("parameter", "optimizer_state"):
            outcome = {"parameters": digest(self.step.trainables.values())}
            if not self._replays_alone:  # else the update is replayed without the backward pass
                outcome["loss"] = digest(self._losses)
            self._examine(outcome)

    def close(self, lr: float, seconds: float) -> list[StepReading]:
        """End the step; the readings that are now complete."""
        self.clocks.reading.lr, self.clocks.reading.seconds = lr, seconds
        self._keep(self.clocks.reading.step, self.recorder)
        self.growth.note(self.clocks.reading.step, self.clocks.reading.max_gradient)
        return [self.clocks.reading]

    def flush(self) -> list[StepReading]:
        """Readings that were still in flight: none here, see nangrid.watch.deferred."""
        return []

    def finish(self) -> list[StepReading]:
        """End the run; the readings that were still in flight."""
        readings = self.flush()
        self._examine_frozen()
        return readings

    def evaluated(self, eval_loss: float, failed: FailedEvalBatch | None) -> None:
        """Record the loss of an evaluation after the current step; `failed` is its first non-finite batch."""
        self.clocks.evaluated(eval_loss)
        self._agree()
        if self._tripped_now("eval_loss") and self.autopsy is None:
            self.autopsy = self._together(lambda: self._evaluation_autopsy(failed) if failed else None, ".")

    def _evaluation_autopsy(self, failed: FailedEvalBatch) -> Autopsy | None:
        losses = [reading.loss for reading in self.clocks.readings]
        outcome = {"loss": digest([failed.loss])}
        return self._autopsy_of(self.recorder.evaluation(failed, outcome, losses), ".")

    def _agree(self) -> None:
        """Trip the clock that has tripped on any rank in this step, so that all ranks leave the loop together."""
        if self.ranks is None:
            return
        tripped = self.clocks.reading.nonfinite
        ours = next((number for number, clock in enumerate(CLOCKS) if tripped[clock]), len(CLOCKS))
        earliest = self.ranks.least(ours)
        if earliest < ours:
            self.clocks.trip(CLOCKS[earliest], 1)

    def _keep(self, step: int, recorder: Recorder) -> None:
        """Save a snapshot of the current step if one is due and nothing has gone wrong yet."""
        every, clocks = self.policy.every, self.clocks
        if self.records is None or not every or step % every or clocks.onset or clocks.frozen_from is not None:
            return
        losses = [reading.loss for reading in clocks.readings if reading.step < step]
        # Nothing failed, so there is neither a clock nor an outcome to compare with.
        self._save(step, partial(self.records.keep, recorder.snapshot("", {}, losses)))

    def _tripped_now(self, *clocks: str) -> bool:
        onset = self.clocks.onset
        return onset is not None and onset.step == self.clocks.reading.step and onset.clock in clocks

    def _examine(self, outcome: dict[str, str]) -> None:
        onset = self.clocks.onset
        if onset is not None and self.autopsy is None:
            self.autopsy = self._together(lambda: self._autopsy_of(self._snapshot(onset.clock, outcome), "."), ".")
            self._examine_frozen()

    def _together(self, examine: Callable[[], Autopsy | None], folder: str) -> Autopsy | None:
        """The autopsy of the rank on which the first non-finite number arose."""
        if self.ranks is None or self.merged_records is None:
            return examine()
        with self.ranks.alive():
            return merge(self.ranks, examine(), self.merged_records, folder)

    def _snapshot(self, clock: str, outcome: dict[str, str]) -> Snapshot:
        snapshot = self.recorder.snapshot(clock, outcome, [reading.loss for reading in self.clocks.readings[:-1]])
        # A step that fails with a scale of 1 as well is examined there: a larger one only adds overflows.
        return replace(snapshot, scaler=snapshot.scaler | {"scale": 1.0, SKIPPED: True}) if self._skipping else snapshot

    def _keep_frozen(self, outcome: dict[str, str]) -> None:
        """Save a snapshot of the first frozen step; it is replayed when the run ends."""
        if self._frozen_snapshot is None:
            self._frozen_snapshot = self._snapshot(FROZEN, outcome).detached()
            if self.records is not None:
                self._save(self._frozen_snapshot.step, partial(self.records.write, self._frozen_snapshot, FROZEN))
            logger.warning(
                "step %d is frozen: its gradients are finite but their norm is inf, and clipping divides by it. The "
                "model learns nothing from such steps.",
                self._frozen_snapshot.step,
            )

    def _examine_frozen(self) -> None:
        snapshot = self._frozen_snapshot
        if snapshot is not None and self.frozen is None:
            self.frozen = self._together(lambda: self._autopsy_of(snapshot, FROZEN), FROZEN)

    def _autopsy_of(self, snapshot: Snapshot, folder: str) -> Autopsy | None:
        if self.records is None:
            return None
        live = self._live(snapshot)
        with self._replay():
            autopsy = self._replayed(snapshot, live, self.records.prepared(folder))
            if self.ranks is not None:
                autopsy = of_rank(autopsy, self.ranks.rank, live)
        if snapshot.clock == RAISED and autopsy.phase == UNKNOWN:
            return None  # the exception has nothing to do with non-finite numbers
        self._save(snapshot.step, partial(self.records.write_autopsy, autopsy, folder))
        if not self._lacks_copies(snapshot):
            with suppress(NotRepeatableError), repeating(self.step, snapshot):
                self._save(snapshot.step, partial(self.records.write, snapshot, folder))
        return autopsy

    def _live(self, snapshot: Snapshot) -> LiveStep:
        # A frozen step is examined when the run ends.
        return LiveStep() if snapshot.clock == FROZEN else read_live_step(self.step, snapshot.clock)

    def _lacks_copies(self, snapshot: Snapshot) -> bool:
        return self.policy.light and snapshot.clock in AFTER_UPDATE

    def _replayed(self, snapshot: Snapshot, live: LiveStep, directory: Path | None) -> Autopsy:
        """The autopsy by a replay, or else by the live step alone."""
        if self._lacks_copies(snapshot):
            return unreplayed(snapshot, _LIGHT, live)
        try:
            with self._alone(snapshot) as (step, bare), repeating(step, bare):
                return examine(step, bare, self.background, live, directory)
        except NotRepeatableError as error:
            return unreplayed(snapshot, f"The step could not be replayed: {error}", live)
        except Exception as error:  # the user's code runs again and may raise anything: the onset stands
            logger.info("the replay of step %d failed", snapshot.step, exc_info=True)
            self.unexplained = f"step {snapshot.step} could not be replayed: {_one_line(error)}"
            return unreplayed(snapshot, f"The replay raised {type(error).__name__}.", live)

    def _alone(self, snapshot: Snapshot) -> AbstractContextManager[tuple[Step, Snapshot]]:
        if not self._replays_alone:
            return nullcontext((self.step, snapshot))
        return alone(self.step, snapshot, late=self.late, together=self.ranks is None or self.ranks.together)

    @contextmanager
    def _replay(self) -> Iterator[None]:
        self.replaying, began = True, time.perf_counter()
        try:
            yield
        finally:
            self.replaying = False
            self.replay_seconds += time.perf_counter() - began

    def _save(self, step: int, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:  # a batch of the user's may hold anything
            self.unexplained = self.unexplained or f"the snapshot of step {step} could not be saved: {_one_line(error)}"


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else '(no message)'}"
