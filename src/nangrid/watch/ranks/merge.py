"""Merges what the ranks have found into one autopsy, of the rank on which the first non-finite number arose."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from nangrid.records.autopsy import Autopsy
from nangrid.records.codec import decode, encode
from nangrid.watch.autopsy.ieee import OVERFLOW
from nangrid.watch.autopsy.live import LiveStep
from nangrid.watch.autopsy.replay import AFTER_UPDATE
from nangrid.watch.ranks.group import Ranks
from nangrid.watch.run_directory import RunDirectory

_PHASES = ("input", "forward", "backward", "optimizer")
_REDUCED = (
    "On every rank the step is finite by itself: the numbers became non-finite where the ranks exchanged their "
    "gradients."
)


def of_rank(autopsy: Autopsy, rank: int, live: LiveStep) -> Autopsy:
    """The autopsy of one rank, with the gradients that are non-finite in the live step and finite in its own."""
    if not autopsy.reproduced or autopsy.clock in AFTER_UPDATE:
        return replace(autopsy, rank=rank)
    received = [name for name in live.parameters if name not in autopsy.parameters]
    return replace(autopsy, rank=rank, by_communication={str(rank): received} if received else {})


def merge(ranks: Ranks, autopsy: Autopsy | None, records: RunDirectory, folder: str) -> Autopsy | None:
    """Exchange the ranks' autopsies and write the merged one to `records`; every rank returns the same."""
    texts = ranks.gather("" if autopsy is None else json.dumps(encode(autopsy)))
    found = {rank: decode(Autopsy, json.loads(text)) for rank, text in enumerate(texts) if text}
    if not found:
        return None
    merged = merged_autopsy(found, [rank for rank, text in enumerate(texts) if text is None])
    if ranks.rank == min(found):
        records.write_autopsy(merged, folder)
    # A launcher ends the other ranks as soon as one has failed: none leaves before the autopsy is written.
    ranks.gather("")
    return merged


def merged_autopsy(found: Mapping[int, Autopsy], silent: list[int]) -> Autopsy:
    """The autopsy of the rank whose own step failed first, with what it says about the others."""
    failing = sorted((a for a in found.values() if a.op or a.preexisting), key=_when)
    first = failing[0] if failing else _of_communication(found, silent)
    others = [f"rank {a.rank} failed by itself too: {_origin(a)}" for a in failing[1:]]
    unheard = [f"rank {rank} gave no answer" for rank in silent]
    received = {rank: names for a in found.values() for rank, names in a.by_communication.items()}
    return replace(first, evidence=[*first.evidence, *others, *unheard], by_communication=received)


def _when(autopsy: Autopsy) -> tuple[int, int, int]:
    return autopsy.micro_batch, _PHASES.index(autopsy.phase), autopsy.rank or 0


def _origin(autopsy: Autopsy) -> str:
    source = f" ({autopsy.source})" if autopsy.source else ""
    return f"{autopsy.preexisting or autopsy.op}{source}"


def _of_communication(found: Mapping[int, Autopsy], silent: list[int]) -> Autopsy:
    """The autopsy of a step that no rank fails by itself: it is the exchange of gradients that fails."""
    holding = [autopsy for autopsy in found.values() if autopsy.parameters]
    autopsy = (holding or list(found.values()))[0]
    if len(holding) != 1 and len(found) > 1:
        autopsy = replace(autopsy, rank=None)
    certain = not silent and all(a.reproduced and a.clock not in AFTER_UPDATE for a in found.values())
    if not certain or not any(a.by_communication for a in found.values()):
        return autopsy
    return replace(autopsy, rank=None, phase="backward", kind=OVERFLOW, op="all-reduce", explanation=_REDUCED)
