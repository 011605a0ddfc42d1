"""Asks nangrid: the loop as its documentation writes it, by `watch.step` or followed by `watch.batches`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from case import Case, Loop
from tools.answer import Answer
from torch import nn

from nangrid import NonFiniteError, Watch
from nangrid.records.explain.certainty import mechanism_certainty, origin_certainty


def ask(case: Case, folder: Path) -> Answer:
    subject = case.build()
    losses: list[float] = []
    watch = _watch(subject, folder)
    try:
        (_follow if subject.followed else _step)(watch, subject, case.horizon * subject.accumulate, losses)
        watch.close()
    except NonFiniteError as error:
        found = error.autopsy
        if found is None:
            return Answer(crashed=watch.inspector.unexplained or "no autopsy")
        return Answer(
            step=found.step,
            clock=found.clock,
            phase=found.phase,
            kind=found.kind,
            op=found.op,
            node=found.node,
            module=found.module,
            line=found.source,
            mechanism=found.mechanism,
            losses=losses,
            parameters=fingerprint(subject.model),
            reproduced=found.reproduced,
            origin_grade=origin_certainty(found).grade,
            mechanism_grade=mechanism_certainty(found).grade,
        )
    return Answer(losses=losses, parameters=fingerprint(subject.model))


def _watch(subject: Loop, folder: Path) -> Watch:
    if subject.followed:
        return Watch(subject.model, subject.optimizer, out_dir=folder)
    return Watch(
        subject.model,
        subject.optimizer,
        out_dir=folder,
        scheduler=subject.scheduler,
        scaler=subject.scaler,
        max_grad_norm=subject.clip,
        accumulate=subject.accumulate,
    )


def _step(watch: Watch, subject: Loop, calls: int, losses: list[float]) -> None:
    for call in range(calls):
        losses.append(float(watch.step(subject.closure(call), *subject.arguments(call)).detach()))
        if (call + 1) % subject.accumulate == 0:
            subject.after(call // subject.accumulate)


def _follow(watch: Watch, subject: Loop, calls: int, losses: list[float]) -> None:
    assert subject.batches is not None
    optimizer, scaler, scheduler = subject.optimizer, subject.scaler, subject.scheduler
    for call, batch in enumerate(watch.batches(subject.batches[:calls])):
        if call % subject.accumulate == 0:
            optimizer.zero_grad()
        loss = subject.closure(call)(batch)
        if len(losses) == call:  # the body runs again in a replay
            losses.append(float(loss.detach()))
        if (call + 1) % subject.accumulate:
            continue
        if scaler is not None:
            scaler.unscale_(optimizer)
        if subject.clip is not None:
            nn.utils.clip_grad_norm_(subject.model.parameters(), subject.clip)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        if scheduler is not None:
            scheduler.step()
        subject.after(call // subject.accumulate)


def fingerprint(model: nn.Module) -> str:
    """A hash of the bits of all parameters."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
