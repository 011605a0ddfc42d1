"""Asks nangrid: the loop as its documentation writes it, with a Watch around each step."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from case import Case
from tools.answer import Answer
from torch import nn

from nangrid import NonFiniteError, Watch
from nangrid.records.explain.certainty import mechanism_certainty, origin_certainty


def ask(case: Case, folder: Path) -> Answer:
    subject = case.build()
    watch = Watch(
        subject.model, subject.optimizer, out_dir=folder, max_grad_norm=subject.clip, accumulate=subject.accumulate
    )
    losses: list[float] = []
    try:
        for call in range(case.horizon * subject.accumulate):
            losses.append(float(watch.step(subject.closure(call), *subject.arguments(call)).detach()))
            if (call + 1) % subject.accumulate == 0:
                subject.after(call // subject.accumulate)
        watch.close()
    except NonFiniteError as error:
        found = error.autopsy
        if found is None:
            return Answer(crashed=watch.inspector.unexplained or "no autopsy")
        return Answer(
            step=found.step,
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
            confidence=f"origin {origin_certainty(found).grade}, mechanism {mechanism_certainty(found).grade}",
        )
    return Answer(losses=losses, parameters=fingerprint(subject.model))


def fingerprint(model: nn.Module) -> str:
    """A hash of the bits of all parameters."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
