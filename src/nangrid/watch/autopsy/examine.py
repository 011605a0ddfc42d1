"""Replays a failing step and writes its autopsy: origin, tokens and parameters involved, mechanism, evidence."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from nangrid.records.autopsy import Autopsy, OutputRecord, Suggestion, TokenRecord
from nangrid.records.mechanisms import UNKNOWN
from nangrid.watch.autopsy.experiments import variants
from nangrid.watch.autopsy.experiments.experiment import experiment
from nangrid.watch.autopsy.ieee import NONFINITE_INPUT
from nangrid.watch.autopsy.labels import unlabelled
from nangrid.watch.autopsy.live import LiveStep, unreplayed
from nangrid.watch.autopsy.mechanism.evidence import Evidence, Mechanism, dtype_max
from nangrid.watch.autopsy.mechanism.naming import name_mechanism
from nangrid.watch.autopsy.places import Place
from nangrid.watch.autopsy.producer import Producer
from nangrid.watch.autopsy.replay import AFTER_UPDATE, FROZEN, Replay, Step, batch_tensors, replay, replay_untrained
from nangrid.watch.autopsy.tokens import (
    enters_as_zeros,
    first_row,
    named_tokens,
    token_ids,
    vocabulary_size,
    which_rows,
    which_samples,
)
from nangrid.watch.state.snapshot import Snapshot
from nangrid.watch.state.tensors import dtype_name, rounds_to_zero

logger = logging.getLogger(__name__)

SKIPPED = "skipped"
"""Marks the scaler of a snapshot whose step is replayed with a scale of 1, because the GradScaler skipped it."""
_FINITE_HERE = "The step is finite on this rank: what is non-finite in it came from another one."
_LONGEST_PATH = 12
_MOST_PARAMETERS = 4


@dataclass(frozen=True)
class Background:
    """What only the caller knows about the run."""

    texts: Mapping[int, str] = field(default_factory=dict)
    """The text of each token id."""
    first_new_id: int | None = None
    """Ids from here on are new tokens."""
    requested_storage: str | None = None
    """The storage dtype that was requested, such as `bfloat16`."""
    rank: int | None = None
    """The rank of this process among those that train together; None if it trains alone."""
    levels: Collection[str] | None = None
    """The overrides that a cell has already; None if the run is no cell, so that its reader can type none."""


def examine(
    step: Step,
    snapshot: Snapshot,
    background: Background,
    live: LiveStep | None = None,
    directory: Path | None = None,
    *,
    experiments: bool = True,
) -> Autopsy:
    """Replay the snapshot's step, compare it with the live step, and report what was found.

    `live`: what was read off the live step, reported if the replay does not reproduce it. The failing operation and
    its operands are written to `directory`, if one is given. `experiments`: run the step a few times more, with the
    operation changed or computed in other ways.
    """
    live = live or LiveStep()
    began = time.perf_counter()
    replayed = replay(step, snapshot)
    if experiments and (seconds := time.perf_counter() - began) > variants.SLOW_S:
        logger.warning(
            "step %d was replayed in %.0f s to find where its first non-finite number arose; it runs up to a dozen "
            "times more, with its operation changed, which takes at most %.0f s.",
            *(snapshot.step, seconds, variants.MOST_STEPS * seconds),
        )
    same = {key: replayed.outcome.get(key) == bits for key, bits in snapshot.outcome.items()}
    reproduced = replayed.clock == snapshot.clock and all(same.values())
    if (
        background.rank is not None
        and replayed.clock is None
        and all(same.values())
        and snapshot.clock not in AFTER_UPDATE
    ):
        return replace(unreplayed(snapshot, _FINITE_HERE, live), parameters=[], reproduced=True)
    untrained = _fails_untrained(step, snapshot, replayed)
    autopsy = _Report(step, snapshot, replayed, background, untrained, live.evidence).autopsy(reproduced, same)
    if not experiments:
        return autopsy
    return experiment(step, snapshot, replayed, autopsy, is_compiled(step.model), directory)


def _fails_untrained(step: Step, snapshot: Snapshot, replayed: Replay) -> bool | None:
    """Whether the initial trainables fail as well; None if they were not kept."""
    # At step 0 the trainables still are the initial ones.
    if snapshot.step == 0:
        return replayed.clock is not None
    return replay_untrained(step, snapshot).clock is not None if snapshot.initial else None


class _Report:
    def __init__(
        self,
        step: Step,
        snapshot: Snapshot,
        replayed: Replay,
        background: Background,
        untrained: bool | None,
        live: Sequence[str],
    ) -> None:
        self.step = step
        self.snapshot = snapshot
        self.replayed = replayed
        self.background = background
        self.untrained = untrained
        self.live = live
        self.producer = replayed.origin.write.producer if replayed.origin else None
        self.preexisting = replayed.origin.write.preexisting if replayed.origin else ""
        self.reader = replayed.origin.reader if replayed.origin else None

    def autopsy(self, reproduced: bool, same: Mapping[str, bool]) -> Autopsy:
        producer, origin = self.producer, self.replayed.origin
        place = producer.place if producer else (self.reader and self.reader.place) or Place()
        tokens = self._tokens()
        mechanism = self._mechanism(tokens)
        return Autopsy(
            step=self.snapshot.step,
            clock=self.snapshot.clock,
            phase=self._phase(),
            kind=producer.kind if producer else NONFINITE_INPUT if self.preexisting else UNKNOWN,
            op=self._op(),
            module=place.module,
            source=place.source,
            node=place.node,
            micro_batch=producer.micro_batch if producer else self.replayed.micro_batch,
            dtype=producer.output.dtype if producer else "",
            dtype_max=dtype_max(producer.output.dtype) if producer else 0.0,
            inputs=list(producer.inputs) if producer else [],
            output=_output_record(producer) if producer else None,
            path=list(origin.path[:_LONGEST_PATH]) if origin else [],
            tokens=tokens,
            parameters=list(self.replayed.nonfinite),
            mechanism=mechanism.id,
            explanation=mechanism.explanation,
            evidence=self._evidence(reproduced, same),
            suggestions=self._suggestions(mechanism, place.source),
            reproduced=reproduced,
            untrained=self.untrained,
            preexisting=self.preexisting,
        )

    def _op(self) -> str:
        """The operation at the origin: of a tensor that was non-finite before the step, the first that read it."""
        origin = self.replayed.origin
        return (origin.write.op or (self.reader.op if self.reader else "")) if origin else ""

    def _suggestions(self, mechanism: Mechanism, source: str) -> list[Suggestion]:
        """What to try, in the reader's terms: overrides for a cell, else the line and the change of that line."""
        levels = self.background.levels
        if levels is not None and (others := [level for level in mechanism.overrides if level not in levels]):
            return [Suggestion(level, level) for level in others]
        at = f"at {source}: " if source else ""
        return [Suggestion(text) for text in (*(at + change for change in mechanism.changes), *mechanism.advice)]

    def _phase(self) -> str:
        if self.preexisting:
            return "input"
        if self.producer is None:
            return UNKNOWN
        # An optimizer that was handed a non-finite learning rate read it, although no tensor held it.
        given = (
            self.producer.phase == "optimizer"
            and self.producer.kind == NONFINITE_INPUT
            and not self.producer.intentional
        )
        return "input" if given else self.producer.phase

    def _inputs(self) -> Any:
        return self.snapshot.micro_batches[self.producer.micro_batch if self.producer else 0].inputs

    def _tokens(self) -> list[TokenRecord]:
        if self.producer is None:
            return []
        new, texts = self.background.first_new_id, self.background.texts
        return [
            TokenRecord(row, at, token, texts.get(token, ""), new is not None and token >= new)
            for row, at, token in named_tokens(self.producer, self._inputs(), self.step.model, self.replayed.nonfinite)
        ]

    def _mechanism(self, tokens: list[TokenRecord]) -> Mechanism:
        if self.replayed.origin is None:
            return Mechanism(UNKNOWN, "The replayed step stayed finite: the failure did not occur again.")
        write = self.replayed.origin.write
        return name_mechanism(
            Evidence(
                step=self.snapshot.step,
                clock=self.snapshot.clock,
                producer=self.producer,
                op=write.op,
                preexisting=self.preexisting,
                preexisting_elements=self._preexisting_elements(),
                unlabelled=self._unlabelled(),
                optimizer=type(self.step.optimizer).__name__,
                eps_underflows=_eps_underflows(self.step),
                nonfinite_lr=_nonfinite_lr(self.snapshot),
                losses=self.snapshot.losses,
                untrained=self.untrained,
                growth=_growth(self.snapshot),
                norms=any("norm" in type(module).__name__.lower() for module in self.step.model.modules()),
                zero_rows=enters_as_zeros(self.step.model, (token.id for token in tokens)),
                new_rows=self._new_rows(tokens),
                silent_half=self.background.requested_storage not in (None, "float16"),
            )
        )

    def _new_rows(self, tokens: list[TokenRecord]) -> bool:
        """Whether the embedding rows of new tokens are what fails: zero at the origin, or non-finite themselves."""
        new = self.background.first_new_id
        if new is None:
            return False
        if self.preexisting:
            tensor = self._preexisting_tensor()
            return tensor is not None and first_row(~torch.isfinite(tensor)) >= new
        at_origin = {token.id for token in tokens}
        if self.snapshot.clock == FROZEN:  # the norm is taken over all tokens at once
            batches = [token_ids(micro_batch.inputs) for micro_batch in self.snapshot.micro_batches]
            at_origin = {token for ids in batches if ids is not None for token in ids.unique().tolist() if token >= new}
        return min(at_origin, default=-1) >= new and enters_as_zeros(self.step.model, at_origin)

    def _unlabelled(self) -> str:
        """The labels that select nothing; those of one sample where the origin has one number per sample."""
        per_sample = self.producer is not None and len(self.producer.output.shape) == 1
        return unlabelled(self._inputs()) or (
            unlabelled(self._inputs(), self.producer.first_index[0]) if self.producer and per_sample else ""
        )

    def _evidence(self, reproduced: bool, same: Mapping[str, bool]) -> list[str]:
        lines = []
        if self.preexisting:
            lines.append(f"{self.preexisting} was non-finite before it was read")
            if elements := self._preexisting_elements():
                lines.append(f"{self.preexisting}: non-finite in {elements}")
        if self.reader and self.reader.place:
            place = self.reader.place
            where = f" in {place.module}" * bool(place.module) + f" ({place.source})" * bool(place.source)
            lines.append(f"first read by {self.reader.op}{where}")
        if self.producer:
            lines += _producer_evidence(self.producer)
        lines += self._nonfinite_elements()
        if is_compiled(self.step.model):
            lines.append("the model is compiled; the replay ran it eagerly, so the last bits may differ")
        if not reproduced:
            changed = ", ".join(key for key, equal in same.items() if not equal) or "the clock"
            tripped = self.replayed.clock or "no clock"
            lines.append(f"the replay tripped {tripped}; it differs from the live run in: {changed}")
            lines += self.live
        if self.snapshot.step > 0 and self.untrained is not None:
            outcome = "also fails" if self.untrained else "is finite"
            lines.append(f"the same batch {outcome} on the untrained weights")
        if self.snapshot.scaler.get(SKIPPED):
            lines.append("the GradScaler skipped the step, which fails with a scale of 1 as well")
        elif (scale := self.snapshot.scaler.get("scale", math.inf)) <= 1:
            lines.append(f"the GradScaler has shrunk its scale to {scale:g}: no scale makes these gradients finite")
        if any(group.get("eps") == 0 for group in self.snapshot.groups):
            lines.append("eps is 0 in the optimizer's param_groups")
        return lines

    def _preexisting_elements(self) -> str:
        """Which elements of the preexisting tensor are non-finite; empty if its values are no longer known."""
        tensor = self._preexisting_tensor()
        if tensor is None:
            return ""
        mask = ~torch.isfinite(tensor.detach())
        if not self.preexisting.startswith(("parameter ", "buffer ")):
            return which_samples(mask)
        return which_rows(mask, token_ids(self._inputs()), vocabulary_size(self.step.model))

    def _preexisting_tensor(self) -> torch.Tensor | None:
        """The tensor that was non-finite before the step; None if its values are not known as numbers any more."""
        what, _, name = self.preexisting.partition(" ")
        if what == "parameter":
            tensor = self.snapshot.parameters.get(name, dict(self.step.model.named_parameters()).get(name))
        elif what == "buffer":
            tensor = self.snapshot.module_state.buffers.get(name)
        else:
            tensor = dict(batch_tensors(self.snapshot)).get(self.preexisting)
        return tensor if tensor is not None and tensor.is_floating_point() else None

    def _nonfinite_elements(self) -> list[str]:
        """Which elements of the first few affected parameters are non-finite."""
        ids, vocabulary = token_ids(self._inputs()), vocabulary_size(self.step.model)
        masks = list(self.replayed.nonfinite.items())[:_MOST_PARAMETERS]
        return [f"{name}: non-finite in {which_rows(mask, ids, vocabulary)}" for name, mask in masks]


def is_compiled(model: torch.nn.Module) -> bool:
    """Whether torch.compile has wrapped the model or one of its modules."""
    return any(
        m._compiled_call_impl is not None or type(m).__name__ == "OptimizedModule"  # type: ignore[truthy-function]
        for m in model.modules()
    )


def _producer_evidence(producer: Producer) -> list[str]:
    sizes = ", ".join(
        f"{o.name} up to {o.absmax:.4g} ({o.dtype})" for o in producer.tensors if not o.n_nan and not o.n_inf
    )
    lines = [f"finite operands: {sizes}"] if sizes else []
    written = producer.output
    lines.append(f"output: {written.n_nan} NaN and {written.n_inf} infinite of {math.prod(written.shape)} elements")
    return lines


def _eps_underflows(step: Step) -> list[str]:
    """The dtypes of trained parameters in which an eps of the optimizer is zero or rounds to zero."""
    dtypes = set()
    for group in step.optimizer.param_groups:
        given = group.get("eps")
        several = [
            eps for eps in (given if isinstance(given, tuple | list) else [given]) if isinstance(eps, float | int)
        ]
        for parameter in group["params"]:
            if any(rounds_to_zero(eps, parameter.dtype) for eps in several):
                dtypes.add(dtype_name(parameter.dtype))
    return sorted(dtypes)


def _nonfinite_lr(snapshot: Snapshot) -> float | None:
    rates = [float(group["lr"]) for group in snapshot.groups if "lr" in group]
    return next((rate for rate in rates if not math.isfinite(rate)), None)


def _growth(snapshot: Snapshot) -> float:
    """The largest |parameter|, divided by the largest before training; 1 if those were not kept."""
    initial = _absmax(snapshot.initial)
    return _absmax(snapshot.parameters) / (initial or 1.0) if snapshot.initial else 1.0


def _absmax(tensors: Mapping[str, torch.Tensor]) -> float:
    return max((float(t.abs().max()) for t in tensors.values() if t.numel()), default=0.0)


def _output_record(producer: Producer) -> OutputRecord:
    out = producer.output
    return OutputRecord(out.shape, out.dtype, out.n_nan, out.n_inf, list(producer.first_index))
