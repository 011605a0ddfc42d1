"""Runs the experiments on a failing step, and adds their results to its autopsy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nangrid.records.autopsy import Autopsy, Suggestion
from nangrid.watch.autopsy.experiments.call import Call, Catch
from nangrid.watch.autopsy.experiments.cures import tried_cures
from nangrid.watch.autopsy.experiments.operation_file import write_operation
from nangrid.watch.autopsy.producer import Producer
from nangrid.watch.autopsy.replay import Replay, Step, rerun
from nangrid.watch.state.snapshot import Snapshot


def experiment(step: Step, snapshot: Snapshot, replayed: Replay, autopsy: Autopsy, directory: Path | None) -> Autopsy:
    """The autopsy with what the failing operation does alone, and with the changes that were tried."""
    producer = replayed.origin.write.producer if replayed.origin else None
    if producer is None or not autopsy.reproduced:
        return autopsy
    call = _caught(step, snapshot, replayed, producer)
    title = (
        f"{autopsy.op} fails on these operands: {autopsy.phase} {autopsy.kind}, step {autopsy.step}, {autopsy.source}"
    )
    alone = directory is not None and call is not None and write_operation(directory, call, title)
    cures = tried_cures(step, snapshot, producer, autopsy.op)
    told = [Suggestion(f"{trial.change}: tested, the step is finite") for trial in cures if trial.finite]
    return replace(autopsy, alone=alone, cures=cures, suggestions=[*autopsy.suggestions, *told])


def _caught(step: Step, snapshot: Snapshot, replayed: Replay, producer: Producer) -> Call | None:
    if replayed.origin is None:
        return None
    catch = Catch(replayed.origin.write.at, producer.first_index)
    rerun(step, snapshot, catch)
    return catch.call
