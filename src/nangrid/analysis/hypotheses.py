"""Decides hypotheses, written as predictions before the runs, from the cells of a grid.

A hypothesis is a YAML file: a claim and its predictions. Each prediction selects cells (`where`), usually names a
change between two levels with all else equal (`change`), and one of RULES, which decides it from the cells alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from nangrid.analysis.causes import ENOUGH_STEPS, steps_before
from nangrid.analysis.histories import History, column, same_bits
from nangrid.records.cell import CellRecord
from nangrid.records.codec import decode
from nangrid.records.errors import InputError

SUPPORTED, REFUTED, IN_PART = "supported", "refuted", "in part"
NOT_REPRODUCED, NOT_TESTABLE, UNDECIDED = "not reproduced here", "not testable here", "undecided here"

_LONG = 16
"""Steps without an event after which a predicted event counts as not reproduced."""
_EARLY = 4
"""Steps before an onset that leave time for a warning."""

RULES = {
    "fails": "supported if a cell goes non-finite or freezes; not reproduced if none does "
    f"within at least {_LONG} steps; not testable without such cells",
    "cures": "pairs whose first cell fails, and whose second fails too or was watched for "
    f"{ENOUGH_STEPS}x the onset: supported if the second always trains (finite, not frozen, all trainables "
    "reached), refuted if not, not testable without such a pair",
    "differs": "pairs: supported if one differs in any bit, refuted if none does, not testable without pairs",
    "warned": f"cells that fail after at least {_EARLY} steps: supported if each had a gradient norm above the "
    "threshold before its onset, refuted if not, not testable without such a cell",
    "quiet": "cells that train: supported if none has a gradient norm above the threshold, refuted if one has; not "
    "testable where a warning is not, because a false alarm alone does not refute one",
}


@dataclass(frozen=True)
class Prediction:
    """One prediction of a hypothesis file."""

    prediction: str
    where: dict[str, Any]
    """Levels that select the cells, by factor."""
    rule: str
    change: dict[str, Any] = field(default_factory=dict)
    """One factor and its two levels."""
    threshold: float | None = None

    def __post_init__(self) -> None:
        """ValueError if the rule is unknown or lacks what it needs."""
        if self.rule not in RULES:
            raise ValueError(f"rule is {self.rule!r}, not one of {', '.join(RULES)}")
        if (self.rule in ("cures", "differs")) != bool(self.change):
            raise ValueError(f"rule {self.rule} and change {self.change} do not go together")
        if (self.rule in ("warned", "quiet")) != (self.threshold is not None):
            raise ValueError(f"rule {self.rule} and threshold {self.threshold} do not go together")
        if any(not isinstance(levels, list) or len(levels) != 2 for levels in self.change.values()):
            raise ValueError(f"change is {self.change}, not one factor with its two levels")


@dataclass(frozen=True)
class Hypothesis:
    """One hypothesis file."""

    name: str
    claim: str
    tests: list[Prediction]


@dataclass(frozen=True)
class Decided:
    """A prediction and its outcome."""

    prediction: Prediction
    verdict: str
    says: str
    cells: tuple[str, ...]
    """Ids of the cells that decided it: if refuted, those against it."""


@dataclass(frozen=True)
class Answer:
    """A hypothesis and the outcomes of its predictions."""

    hypothesis: Hypothesis
    decided: tuple[Decided, ...]

    @property
    def verdict(self) -> str:
        """Supported or refuted if all testable predictions agree, else in part.

        What did not fail here at all is not refuted: larger models may fail. Where most predictions could not be
        tested, the others do not decide the claim.
        """
        testable = [d.verdict for d in self.decided if d.verdict != NOT_TESTABLE]
        if 0 < 2 * len(testable) < len(self.decided):
            return UNDECIDED
        verdicts = set(testable)
        if verdicts == {NOT_REPRODUCED, REFUTED}:
            return NOT_REPRODUCED
        return IN_PART if len(verdicts) > 1 else next(iter(verdicts), NOT_TESTABLE)


def read_hypotheses(directory: Path) -> list[Hypothesis]:
    """The hypotheses of a directory, suspicions before recommendations; InputError for an invalid file."""
    hypotheses = []
    for path in sorted(directory.glob("*.yaml"), key=lambda path: (path.stem[:1] != "S", path.stem)):
        try:
            content = yaml.safe_load(path.read_text())
            tests = [_prediction(test) for test in content["tests"]]
            hypotheses.append(Hypothesis(path.stem, decode(str, content["claim"], "claim"), tests))
        except (KeyError, TypeError, ValueError, yaml.YAMLError) as error:
            raise InputError(f"{path} is not a hypothesis: {error}; see conf/hypotheses/S1.yaml.") from error
    if not hypotheses:
        raise InputError(f"--hypotheses {directory} holds no hypothesis: name a directory of YAML files.")
    return hypotheses


def _prediction(content: dict[str, Any]) -> Prediction:
    optional: dict[str, Any] = {"change": {}, "threshold": None}
    prediction: Prediction = decode(Prediction, optional | content)
    return prediction


def decide(hypothesis: Hypothesis, records: Sequence[CellRecord], histories: Mapping[str, History]) -> Answer:
    """Apply each prediction's rule to the cells; crashes and timeouts are no evidence."""
    usable = [record for record in records if record.error is None]
    decided = []
    for prediction in hypothesis.tests:
        cells = [record for record in usable if _has(record, prediction.where)]
        verdict, says, ids = _RULES[prediction.rule](prediction, cells, histories)
        decided.append(Decided(prediction, verdict, says, tuple(dict.fromkeys(ids))))
    if any(d.prediction.rule == "warned" and d.verdict == NOT_TESTABLE for d in decided):
        decided = [replace(d, verdict=NOT_TESTABLE) if d.prediction.rule == "quiet" else d for d in decided]
    return Answer(hypothesis, tuple(decided))


_Outcome = tuple[str, str, list[str]]


def _fails(prediction: Prediction, cells: list[CellRecord], _: Mapping[str, History]) -> _Outcome:
    failing = [c for c in cells if _failed(c)]
    evidence = failing or [c for c in cells if c.steps_done >= _LONG]
    if not evidence:
        short = f"none of {len(cells)} such cells fails, or takes {_LONG} steps"
        return NOT_TESTABLE, short if cells else "no such cell", []
    says = f"{len(failing)} of {len(cells)} cells fail"
    return (SUPPORTED if failing else NOT_REPRODUCED), says, [c.cell_id for c in evidence]


def _cures(prediction: Prediction, cells: list[CellRecord], _: Mapping[str, History]) -> _Outcome:
    pairs = [(a, b) for a, b in _pairs(prediction, cells) if _failed(a) and (not b.trained or _long_enough(a, b))]
    if not pairs:
        return NOT_TESTABLE, "no failing cell with its counterpart", []
    against = [(a, b) for a, b in pairs if not b.trained]
    ((factor, (_, other)),) = prediction.change.items()
    several = len({_rest(a, factor, "seed") for a, _ in pairs})
    where = "1 combination" if several == 1 else f"{several} combinations"
    cured = f"{len(pairs) - len(against)} of {len(pairs)} failing cells ({where})"
    says = f"{cured} train once {factor} is {_override_value(other)}"
    ids = [c.cell_id for pair in (against or pairs) for c in pair]
    return (REFUTED if against else SUPPORTED), says, ids


def _differs(prediction: Prediction, cells: list[CellRecord], histories: Mapping[str, History]) -> _Outcome:
    pairs = [(a, b) for a, b in _pairs(prediction, cells) if a.cell_id in histories and b.cell_id in histories]
    if not pairs:
        return NOT_TESTABLE, "no pair of cells", []
    differing = [(a, b) for a, b in pairs if not same_bits(histories[a.cell_id], histories[b.cell_id])]
    says = f"{len(pairs) - len(differing)} of {len(pairs)} pairs are equal to the last bit"
    return (SUPPORTED if differing else REFUTED), says, [c.cell_id for pair in (differing or pairs) for c in pair]


def _warned(prediction: Prediction, cells: list[CellRecord], histories: Mapping[str, History]) -> _Outcome:
    late = [c for c in cells if c.onset and c.steps_survived >= _EARLY and c.cell_id in histories]
    if not late:
        return NOT_TESTABLE, f"no cell fails after {_EARLY} steps or more", []
    silent = [c for c in late if not _above(prediction, histories[c.cell_id][: c.steps_survived])]
    says = f"{len(late) - len(silent)} of {len(late)} cells that fail later had such a norm before"
    return (REFUTED if silent else SUPPORTED), says, [c.cell_id for c in silent or late]


def _quiet(prediction: Prediction, cells: list[CellRecord], histories: Mapping[str, History]) -> _Outcome:
    training = [c for c in cells if c.trained and c.cell_id in histories]
    if not training:
        return NOT_TESTABLE, "no cell trains", []
    loud = [c for c in training if _above(prediction, histories[c.cell_id])]
    says = f"{len(loud)} of {len(training)} cells that train have such a norm too"
    return (REFUTED if loud else SUPPORTED), says, [c.cell_id for c in loud or training]


_RULES: dict[str, Callable[[Prediction, list[CellRecord], Mapping[str, History]], _Outcome]] = {
    "fails": _fails,
    "cures": _cures,
    "differs": _differs,
    "warned": _warned,
    "quiet": _quiet,
}


def _pairs(prediction: Prediction, cells: list[CellRecord]) -> list[tuple[CellRecord, CellRecord]]:
    """Cells at the first level of the change, each with its matching cell at the second."""
    ((factor, (level, other)),) = prediction.change.items()
    changed = {_rest(c, factor): c for c in cells if _same(c.factors.get(factor), other)}
    first = [c for c in cells if _same(c.factors.get(factor), level)]
    return [(c, changed[_rest(c, factor)]) for c in first if _rest(c, factor) in changed]


def _rest(record: CellRecord, factor: str, *ignored: str) -> str:
    """All other factors, as text. Fields of the group follow from its level."""
    others = {k: v for k, v in record.factors.items() if k not in (factor, *ignored)}
    return str(sorted((k, v) for k, v in others.items() if not k.startswith(f"{factor}.")))


def _has(record: CellRecord, levels: Mapping[str, Any]) -> bool:
    return all(_same(record.factors.get(factor), level) for factor, level in levels.items())


def _same(level: Any, other: Any) -> bool:
    """Python holds 1 and True to be equal; as levels they are not."""
    return bool(level == other) and isinstance(level, bool) == isinstance(other, bool)


def _failed(record: CellRecord) -> bool:
    return record.onset is not None or record.trains.frozen_from is not None


def _long_enough(failing: CellRecord, other: CellRecord) -> bool:
    return other.steps_done >= ENOUGH_STEPS * max(1, steps_before(failing))


def _above(prediction: Prediction, history: History) -> bool:
    assert prediction.threshold is not None
    norms = column(history, "grad_norm")
    return bool((norms[~np.isnan(norms)] > prediction.threshold).any())


def _override_value(level: Any) -> str:
    return str(level).lower() if isinstance(level, bool) else str(level)
