"""The search between two end points, over seeds: the cells are planned for real, what they do is a truth table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from nangrid.commands.diagnose import levels_between, problem_of
from nangrid.diagnosis.diagnose import Diagnosis, diagnose
from nangrid.diagnosis.oracle import CellResult
from nangrid.diagnosis.ranking import rank
from nangrid.grid.collect import GridOutcome
from nangrid.grid.local import LocalExecutor
from nangrid.grid.plan import CellPlan
from nangrid.records.autopsy import Autopsy, Suggestion, write_autopsy
from nangrid.records.cell import CellError, CellRecord, Trains, write_record
from nangrid.records.errors import InputError
from nangrid.records.grid import GridDirectory
from nangrid.records.history import write_history

MakeRecord = Callable[..., CellRecord]
Did = tuple[str | None, float]
"""The mechanism that a cell met at step 0, or None; and its loss."""

FAILING = ["dtype=fp16", "init=zero", "optim=adamw_torch"]
REFERENCE = ["dtype=bf16", "init=mean", "optim=paged_adamw_8bit"]
FINE: Did = (None, 3.0)
SEEN = frozenset([*FAILING, "dtype.storage=fp16", "data=glossary"])


def autopsy(mechanism: str, **more: Any) -> Autopsy:
    nothing: dict[str, Any] = dict.fromkeys(Autopsy.__dataclass_fields__)
    lists = {"inputs": [], "path": [], "tokens": [], "parameters": [], "evidence": [], "suggestions": []}
    texts = dict.fromkeys(["preexisting", "clock", "op", "module", "source", "node", "dtype", "explanation"], "")
    numbers = {"step": 0, "micro_batch": 0, "dtype_max": 65504.0, "schema": 2, "reproduced": True}
    known = {"mechanism": mechanism, "phase": "forward", "kind": "overflow"}
    return Autopsy(**nothing | lists | texts | numbers | known | more)


@dataclass(frozen=True)
class TruthTable(LocalExecutor):
    """Instead of training: looks up what a cell with these levels and this seed does, and keeps its record."""

    does: Callable[[set[str], int], Did | None] = lambda levels, seed: FINE
    """None: it crashes."""
    make_record: MakeRecord = CellRecord
    seen: frozenset[str] = SEEN
    """Levels that the truth table is told."""
    ran: list[tuple[frozenset[str], int, int]] = field(default_factory=list)
    """Levels of the failing cell, seed, horizon."""

    def run(self, plans: Sequence[CellPlan], grid: GridDirectory) -> GridOutcome:
        return GridOutcome({plan.cell_id: self._cell(plan, grid) for plan in plans})

    def _cell(self, plan: CellPlan, grid: GridDirectory) -> CellRecord:
        levels, seed, horizon = (
            set(plan.overrides) & self.seen,
            plan.factors["seed"],
            plan.config.horizon,
        )
        self.ran.append((frozenset(levels), seed, horizon))
        did = self.does(levels, seed)
        mechanism, loss = did or FINE
        fields: dict[str, Any] = {"horizon": horizon, "steps_done": 1 if mechanism else horizon}
        if did is None:
            fields |= {"status": "error", "error": CellError("RuntimeError", "dtype mismatch", "")}
        trains = Trains(None, [], 1e-3, 4.0, loss)
        rung = {"loss": 0} if mechanism else None
        kept = "autopsy.json" if mechanism else None
        record = self.make_record(rung, cell_id=plan.cell_id, trains=trains, autopsy=kept, **fields)
        plan.directory().mkdir(parents=True, exist_ok=True)
        write_history(plan.directory(), [{"step": s, "loss": loss} for s in range(record.steps_done)])
        if mechanism:
            write_autopsy(plan.directory(), autopsy(mechanism))
        write_record(plan.directory(), record)
        return record


Ask = Callable[..., tuple[Diagnosis, TruthTable]]


@pytest.fixture
def ask(make_record: MakeRecord, tmp_path: Path) -> Ask:
    def run(
        does: Callable[[set[str], int], Did | None],
        seeds: int = 3,
        horizon: int = 8,
        max_runs: int = 100,
        **sides: list[str],
    ) -> tuple[Diagnosis, TruthTable]:
        executor = TruthTable(does=does, make_record=make_record)
        common = ["model=tiny", f"out={tmp_path}", *sides.get("common", [])]
        failing, reference = sides.get("failing", FAILING), sides.get("reference", REFERENCE)
        problem = problem_of(common, failing, reference, 1, seeds)
        searched = replace(problem, executor=executor)
        return diagnose(searched, horizon, lambda line: None), executor

    return run


def test_one_cause_is_confirmed_over_seeds_to_the_horizon(ask: Ask) -> None:
    found, executor = ask(lambda levels, seed: ("overflow", 9.0) if "dtype=fp16" in levels else FINE)
    assert found.causes.causes == [frozenset({0})] and found.cures.cures == [frozenset({0})]
    assert not found.stochastic and found.horizon == 8
    assert (found.cause_claims[frozenset({0})].rate.count, found.cure_claims[frozenset({0})].rate.count) == (3, 3)
    cured = frozenset({"init=zero", "optim=adamw_torch"})
    assert {(seed, horizon) for levels, seed, horizon in executor.ran if levels == cured} >= {(0, 8), (1, 8), (2, 8)}


def test_the_search_runs_short_cells(ask: Ask) -> None:
    _, executor = ask(lambda levels, seed: ("overflow", 9.0) if "dtype=fp16" in levels else FINE, horizon=64)
    assert {horizon for levels, _, horizon in executor.ran if 0 < len(levels) < 3} == {4, 64}, "4 x (0 + 1) to search"


def test_a_cure_must_reach_the_loss_of_the_reference(ask: Ask) -> None:
    def does(levels: set[str], seed: int) -> Did:
        if "dtype=fp16" in levels:
            return "overflow", 9.0
        return None, 3.0 + ("init=zero" in levels)

    found, _ = ask(does)
    assert found.causes.causes == [frozenset({0})]
    assert found.cures.cures == [frozenset({0, 1})], "bf16 with zero rows is finite, and learns less"


def test_reference_that_fails_with_another_seed_is_refused(ask: Ask) -> None:
    with pytest.raises(InputError, match="--reference fails with seed=1"):
        ask(lambda levels, seed: ("overflow", 9.0) if "dtype=fp16" in levels or seed == 1 else FINE)


def test_crashed_cell_is_skipped(ask: Ask) -> None:
    def does(levels: set[str], seed: int) -> Did | None:
        if levels == {"dtype=fp16", "init=zero"}:
            return None
        return ("overflow", 9.0) if {"dtype=fp16", "init=zero"} <= levels else FINE

    found, _ = ask(does)
    assert found.causes.skipped == [frozenset({0, 1})]
    assert found.causes.causes == [frozenset({0, 1, 2})], "all together are the least that is known to be enough"


def test_invalid_combination_is_skipped(ask: Ask) -> None:
    sides = {"failing": ["data=glossary", "init=zero"], "reference": ["vocab=none", "init=mean"]}

    def does(levels: set[str], seed: int) -> Did:
        return ("overflow", 9.0) if {"data=glossary", "init=zero"} <= levels else FINE

    found, _ = ask(does, **sides)
    unbuildable = frozenset({0, 1})  # data=glossary with vocab=none
    assert unbuildable in found.causes.skipped
    assert found.causes.causes == [frozenset({0, 1, 2})], "all together are the least that could be built"


def test_another_event_that_comes_first_decides_nothing(ask: Ask) -> None:
    """dtype or optim alone bring it about; optim with init meets another event, which must not acquit optim."""

    def does(levels: set[str], seed: int) -> Did:
        if levels == {"optim=adamw_torch", "init=zero"}:
            return "divergence", 9.0
        return ("overflow", 9.0) if levels & {"dtype=fp16", "optim=adamw_torch"} else FINE

    found, _ = ask(does, seeds=1)
    assert set(found.causes.causes) == {frozenset({0}), frozenset({2})}
    assert frozenset({1, 2}) in found.causes.skipped


def test_a_later_failure_is_not_called_stochastic(ask: Ask) -> None:
    def does(levels: set[str], seed: int) -> Did:
        return ("overflow", 9.0) if "dtype=fp16" in levels else FINE

    found, _ = ask(does, seeds=1)
    assert not found.stochastic


def test_dtype_is_narrowed_to_its_fields(ask: Ask) -> None:
    def does(levels: set[str], seed: int) -> Did:
        return ("overflow", 9.0) if levels & {"dtype=fp16", "dtype.storage=fp16"} else FINE

    found, _ = ask(does)
    narrowed = found.narrowed[frozenset({0})]
    named = [narrowed.problem.changes[i][0] for cause in narrowed.fields.causes for i in cause]
    assert named == [("dtype.storage=fp16",)] and narrowed.cells < 8


def test_autopsy_ranks_the_changes(make_record: MakeRecord, tmp_path: Path) -> None:
    problem = problem_of([f"out={tmp_path}"], FAILING, REFERENCE, 1, 1)
    said: list[str] = []
    told = autopsy(
        "fp16-activation-overflow",
        suggestions=[Suggestion(level, level) for level in ("dtype=bf16", "dtype=fp32")],
        untrained=True,
    )
    plan = problem.plan(problem.levels(problem.all_changes), 8, 0)
    failing = CellResult(plan, make_record({"loss": 0}), None, told, [])
    assert rank(problem, failing, said.append) == [4.0, 1.0, 0.25]
    assert said == [
        "most likely (autopsy): dtype=fp16",
        "unlikely (the batch also fails on the untrained weights): optim=adamw_torch",
    ]
    assert rank(problem, replace(failing, autopsy=None), said.append) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("common", "seeds", "said"),
    [
        (["seed=x"], 3, "seed=x is out of range"),
        ([], 0, "--seeds 0 is out of range"),
    ],
)
def test_invalid_seeds_are_refused(common: list[str], seeds: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        problem_of(common, FAILING, REFERENCE, 1, seeds)


def test_a_key_for_all_cells_and_for_one_side_is_refused() -> None:
    with pytest.raises(InputError, match="init is given for all runs and for one side"):
        problem_of(["init=mean"], ["dtype=fp16", "init=zero"], ["dtype=bf16"], 1, 1)


def test_levels_between_are_typed_by_key_and_refused_where_both_sides_agree() -> None:
    problem = problem_of([], ["dtype=fp16", "optim.lr=2e-4"], ["dtype=bf16", "optim.lr=2e-5"], 1, 1)
    assert levels_between(["optim.lr=6e-5,1e-4"], problem) == ((), (("optim.lr=6e-5",), ("optim.lr=1e-4",)))
    with pytest.raises(InputError, match="--between init does not differ between the two sides: name one of dtype"):
        levels_between(["init=mean"], problem)


def test_seed_is_not_a_level() -> None:
    with pytest.raises(InputError, match="a seed is not a level"):
        problem_of([], [*FAILING, "seed=1"], REFERENCE, 1, 3)
