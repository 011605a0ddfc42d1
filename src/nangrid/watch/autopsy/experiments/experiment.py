"""Runs the experiments on a failing step, and adds their results to its autopsy."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from nangrid.records.autopsy import Autopsy, Suggestion
from nangrid.records.mechanisms import EMPTY_LABELS, UNKNOWN
from nangrid.watch.autopsy.experiments.ablation import quiet_without
from nangrid.watch.autopsy.experiments.call import Call, Catch
from nangrid.watch.autopsy.experiments.cures import tried_cures
from nangrid.watch.autopsy.experiments.operation_file import write_operation
from nangrid.watch.autopsy.experiments.variants import Variants
from nangrid.watch.autopsy.replay import Replay, Step, rerun
from nangrid.watch.state.snapshot import Snapshot

logger = logging.getLogger(__name__)

_FUSED = ("attention", "_fused_", "_cdist", "_ctc_loss", "native_")
"""Operations that compute several things at once, so that their name says little."""


def experiment(
    step: Step, snapshot: Snapshot, replayed: Replay, autopsy: Autopsy, compiled: bool, directory: Path | None
) -> Autopsy:
    """The autopsy with what the failing operation does alone, the changes that were tried, and variants of the step."""
    call = None
    try:
        call = _caught(step, snapshot, replayed)
        autopsy = _with_cures(step, snapshot, replayed, autopsy)
        autopsy = _with_variants(step, snapshot, replayed, autopsy, call, compiled)
        ablated, rivals = quiet_without(step, snapshot, replayed)
        autopsy = replace(autopsy, ablated=ablated, rivals=rivals)
    except Exception:  # the user's code runs again and may raise anything: the autopsy stands
        logger.info("the experiments on step %d ended early", snapshot.step, exc_info=True)
    if call is None:
        return autopsy
    where = f"{autopsy.phase} {autopsy.kind}, step {autopsy.step}, {autopsy.source}"
    return replace(autopsy, alone=write_operation(directory, call, f"{autopsy.op} fails on these operands: {where}"))


def _caught(step: Step, snapshot: Snapshot, replayed: Replay) -> Call | None:
    origin = replayed.origin
    if origin is None or origin.write.producer is None:
        return None
    catch = Catch(origin.write.at, origin.write.producer.first_index)
    rerun(step, snapshot, catch)
    return catch.call


def _with_cures(step: Step, snapshot: Snapshot, replayed: Replay, autopsy: Autopsy) -> Autopsy:
    # A loss without labels is not a matter of arithmetic.
    if replayed.origin is None or autopsy.mechanism == EMPTY_LABELS:
        return autopsy
    cures = tried_cures(step, snapshot, replayed.origin.write, autopsy.mechanism)
    # The reader of a cell types overrides; the line is often one of a library.
    for_scripts = not any(suggestion.override for suggestion in autopsy.suggestions)
    finite = [trial.change for trial in cures if trial.finite and for_scripts]
    tested = {change: Suggestion(f"{change}: tested, the step is finite") for change in finite}
    helpless = {trial.change for trial in cures if not trial.finite}
    suggestions = [tested.pop(s.advice, s) for s in autopsy.suggestions if s.advice not in helpless]
    return replace(autopsy, cures=cures, suggestions=[*suggestions, *tested.values()])


def _with_variants(
    step: Step, snapshot: Snapshot, replayed: Replay, autopsy: Autopsy, call: Call | None, compiled: bool
) -> Autopsy:
    fused = any(name in autopsy.op for name in _FUSED)
    eager_differs = compiled and replayed.clock != snapshot.clock
    if autopsy.preexisting or not (autopsy.mechanism == UNKNOWN or fused or eager_differs):
        return autopsy
    variants = Variants(step, snapshot, replayed)
    variants.run(autopsy.op, call, compiled, autopsy.micro_batch)
    verdict = variants.verdict()
    if variants.only_compiled and replayed.clock is not None:  # what the eager step fails of is not what the run did
        autopsy = replace(autopsy, mechanism=UNKNOWN, explanation="", suggestions=[])
    explanation = f"{autopsy.explanation} {verdict}".strip()
    return replace(autopsy, variants=variants.trials, verdict=verdict, explanation=explanation)
