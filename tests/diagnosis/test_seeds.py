"""A diagnosis where seeds disagree, runs are short, or there are many levels; the cells are looked up, not trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nangrid.analysis.claims import Grade
from nangrid.diagnosis.diagnose import Diagnosis, diagnose
from nangrid.diagnosis.oracle import DiagnosisProblem
from nangrid.diagnosis.script import ScriptPlanner
from nangrid.diagnosis.summary import print_summary
from nangrid.grid.collect import GridOutcome
from nangrid.grid.local import LocalExecutor
from nangrid.grid.plan import CellPlan
from nangrid.records.cell import CellRecord, Trains
from nangrid.records.diagnosis import read_diagnoses
from nangrid.records.grid import GridDirectory
from nangrid.records.history import write_history

MakeRecord = Callable[..., CellRecord]
Fails = Callable[[dict[str, Any], int], bool | str]
"""Whether a run with these levels and this seed fails; the name of a clock is another event."""


def train(levels: dict[str, Any]) -> None:
    raise AssertionError("not to be called here")


@dataclass(frozen=True)
class TruthTable(LocalExecutor):
    """Instead of training: looks up whether a run fails."""

    fails: Fails = lambda levels, seed: False
    make_record: MakeRecord = CellRecord

    def run(self, plans: Sequence[CellPlan], grid: GridDirectory) -> GridOutcome:
        return GridOutcome({plan.cell_id: self._cell(plan) for plan in plans})

    def _cell(self, plan: CellPlan) -> CellRecord:
        fails = self.fails(plan.factors, plan.factors["seed"])
        clock = "loss" if fails is True else fails
        steps = 1 if fails else plan.config.horizon
        plan.directory().mkdir(parents=True, exist_ok=True)
        write_history(plan.directory(), [{"step": step, "loss": 3.0} for step in range(steps)])
        return self.make_record(
            {str(clock): 0} if clock else None,
            cell_id=plan.cell_id,
            trains=Trains(None, [], 1e-3, 4.0, 3.0),
            horizon=plan.config.horizon,
            steps_done=steps,
        )


Ask = Callable[..., Diagnosis]


@pytest.fixture
def ask(make_record: MakeRecord, tmp_path: Path) -> Ask:
    """The diagnosis between settings that are all 1 and settings that are all 0."""

    def run(fails: Fails, settings: str, seeds: int = 3, max_runs: int = 100, **between: Sequence[int]) -> Diagnosis:
        failing = dict.fromkeys(settings.split(), 1)
        planner = ScriptPlanner.of(
            train, failing, dict.fromkeys(failing, 0), between, out=str(tmp_path), threads=1, start_from=None
        )
        executor = TruthTable(fails=fails, make_record=make_record)
        sides = ("failing", "reference")
        all_seeds = tuple(range(seeds))
        problem = DiagnosisProblem(
            planner.changes, planner.plan, executor, all_seeds, sides, max_runs, planner.between if between else ()
        )
        found = diagnose(problem, 8, lambda line: None)
        print_summary(found, problem, "nangrid report")
        return found

    return run


def test_seeds_that_disagree_are_counted_until_each_answer_is_told_from_chance(ask: Ask, tmp_path: Path) -> None:
    """With even seeds it takes both; with odd ones the first alone."""
    found = ask(lambda run, seed: bool(run["a"] and (seed % 2 or run["b"])), "a b")
    assert found.stochastic and found.causes.causes == [frozenset({0})]
    cause = found.cause_claims[frozenset({0})]
    assert cause.grade is Grade.PROVEN and cause.rate.seeds // 2 + 2 > 3 and cause.rate.count < cause.rate.seeds
    assert found.cures.cures == [frozenset({0})], "b=0 does not cure odd seeds"
    ((record,), _) = read_diagnoses(tmp_path)
    assert {(claim.kind, *claim.levels, claim.grade) for claim in record.claims} == {
        ("cause", "a=1", "proven"),
        ("cure", "a=0", "proven"),
    }
    assert any("seeds disagree: the failing run fails in " in line for line in record.lines)


def test_with_one_seed_there_is_nothing_to_disagree(ask: Ask) -> None:
    found = ask(lambda run, seed: bool(run["a"] and (seed % 2 or run["b"])), "a b", seeds=1)
    assert not found.stochastic and found.causes.causes == [frozenset({0, 1})]
    assert found.cause_claims[frozenset({0, 1})].grade is Grade.SEEN, "no replay repeated it"


def test_one_accident_among_many_seeds_is_no_cause_and_leaves_no_proven_cure(ask: Ask) -> None:
    found = ask(lambda run, seed: bool(run["a"] and (seed == 2 or run["b"])), "a b")
    assert found.stochastic and found.causes.causes == [frozenset({0, 1})]
    assert found.cure_claims[frozenset({0})].grade is Grade.PROVEN
    assert found.cure_claims[frozenset({1})].grade is Grade.SEEN, "it failed once, and the reference never did"


def test_a_failure_of_one_seed_is_not_told_from_chance(ask: Ask, tmp_path: Path) -> None:
    found = ask(lambda run, seed: bool(run["a"] and run["b"] and seed == 0), "a b")
    assert found.sequential is not None and not found.sequential.told_apart
    assert {claim.grade for claim in (*found.cause_claims.values(), *found.cure_claims.values())} == {Grade.SEEN}
    ((record,), _) = read_diagnoses(tmp_path)
    assert any("could still be chance; no combination was searched" in line for line in record.lines)


def other_event_first(run: dict[str, Any], seed: int) -> bool | str:
    """a fails, but not with seed 1, where a and b together have another event."""
    return ("parameter" if run["a"] and run["b"] else False) if seed == 1 else bool(run["a"])


def test_a_seed_in_which_another_event_comes_first_is_replaced(ask: Ask, tmp_path: Path) -> None:
    found = ask(other_event_first, "a b")
    assert not found.stochastic and [left_out.seed for left_out in found.left_out] == [1]
    cause, cure = found.cause_claims[frozenset({0})], found.cure_claims[frozenset({0})]
    assert (cause.grade, cause.rate.count, cause.rate.seeds) == (Grade.PROVEN, 3, 3)
    assert (cure.grade, cure.rate.count, cure.rate.seeds) == (Grade.PROVEN, 4, 4), "also with the seed left out"
    ((record,), _) = read_diagnoses(tmp_path)
    said = "seed 1 is left out of the causes: the failing run fails with unexplained parameter first; a=1 alone did not"
    assert any(said in line for line in record.lines)


def test_a_seed_in_which_the_failing_run_fails_otherwise_still_tests_the_cures(ask: Ask) -> None:
    found = ask(lambda run, seed: "parameter" if seed == 1 and run["b"] else bool(run["a"]), "a b")
    assert found.stochastic and found.cures.cures == [frozenset({0})]
    assert found.cure_claims[frozenset({0})].grade is Grade.SEEN, "b fails with seed 1"


def test_a_replacement_that_denies_a_cause_is_a_disagreement(ask: Ask) -> None:
    """With seed 3 it takes both."""
    found = ask(lambda run, seed: bool(run["a"] and run["b"]) if seed == 3 else other_event_first(run, seed), "a b")
    assert found.stochastic and not found.left_out


def test_where_most_seeds_say_nothing_no_claim_is_proven(ask: Ask) -> None:
    found = ask(lambda run, seed: other_event_first(run, 1 if seed % 2 else seed), "a b")
    assert not found.stochastic and [left_out.seed for left_out in found.left_out] == [1, 3]
    for claim in (*found.cause_claims.values(), *found.cure_claims.values()):
        assert claim.graded == "could still be chance; 1 more seed would tell"


def test_an_event_by_chance_before_one_that_always_follows_has_no_cause(ask: Ask) -> None:
    """Whatever a run does by chance with some seeds, all others of a=1 fail otherwise: those of a=1 that tell agree."""

    def fails(run: dict[str, Any], seed: int) -> bool | str:
        by_chance = seed % 4 == {(1, 1): 0, (0, 1): 1, (1, 0): 2, (0, 0): 3}[run["a"], run["b"]]
        return by_chance or ("parameter" if run["a"] else False)

    found = ask(fails, "a b")
    assert found.sequential is not None and not found.sequential.told_apart
    assert {claim.grade for claim in found.cause_claims.values()} == {Grade.SEEN}


def test_where_seeds_disagree_and_no_runs_are_left_the_first_answers_are_kept(ask: Ask, tmp_path: Path) -> None:
    found = ask(lambda run, seed: bool(run["a"] and (seed % 2 == 0 or run["b"])), "a b", max_runs=12)
    assert found.sequential is not None and not found.sequential.told_apart and found.spent
    assert found.causes.causes == [frozenset({0})] and found.cures.cures == [frozenset({0})]
    assert {claim.grade for claim in (*found.cause_claims.values(), *found.cure_claims.values())} == {Grade.SEEN}
    ((record,), _) = read_diagnoses(tmp_path)
    assert any("could still be chance; combinations were searched with one seed" in line for line in record.lines)


def test_cures_are_not_proven_before_the_causes_are(ask: Ask) -> None:
    """Seed 2 was not run with the cause: how often it fails is not known, nor how often a cell trains by chance."""
    found = ask(lambda run, seed: bool(run["a"] and (seed < 2 or run["b"])), "a b", max_runs=8)
    assert found.spent and {claim.grade for claim in found.cause_claims.values()} == {Grade.SEEN}
    assert {claim.grade for claim in found.cure_claims.values()} == {Grade.SEEN}


def test_spent_runs_leave_the_rest_undecided(ask: Ask, tmp_path: Path) -> None:
    found = ask(lambda run, seed: bool(run["a"]), "a b c", max_runs=5)
    assert found.spent and found.runs == 5
    assert {claim.grade for claim in found.cause_claims.values()} == {Grade.SEEN}
    assert len(list((tmp_path / "cells").iterdir())) == 5
    ((record,), _) = read_diagnoses(tmp_path)
    assert "  undecided: whether smaller or other causes and cures exist; 5 runs are spent" in record.lines


def test_levels_between_are_searched_too(ask: Ask, tmp_path: Path) -> None:
    """One level between fails alone, another together with a level of the failing run."""
    found = ask(lambda run, seed: run["a"] in (1, 3) or (run["b"] == 2 and run["c"] == 1), "a b c", a=[2, 3], b=[2])
    assert found.causes.causes == [frozenset({0})] and found.between is not None
    causes = {" ".join(override for level in cause.levels for override in level) for cause in found.between.causes}
    assert causes == {"a=3", "b=2 c=1"} and found.between.undecided == 0
    assert {cause.claim.grade for cause in found.between.causes} == {Grade.PROVEN}
    ((record,), _) = read_diagnoses(tmp_path)
    assert sum(claim.kind == "cause" for claim in record.claims) == 3


def test_an_event_that_is_not_monotone_stays_inside_the_budget(ask: Ask) -> None:
    """b hides a, unless c is there too."""

    def fails(run: dict[str, Any], seed: int) -> bool:
        return bool(run["a"] and (not run["b"] or run["c"]))

    few, many = ask(fails, "a b c d e f g h", max_runs=30), ask(fails, "a b c d", max_runs=100)
    assert few.runs <= 30 and many.not_monotone and not many.spent
    assert set(many.causes.causes) == {frozenset({0})}


def test_one_guilty_of_thirty_settings_and_a_pair_take_less_than_forty_runs(ask: Ask) -> None:
    settings = " ".join(f"s{number}" for number in range(30))
    found = ask(lambda run, seed: bool(run["s7"] or (run["s3"] and run["s20"])), settings)
    assert found.causes.causes == [frozenset({7}), frozenset({3, 20})]
    assert found.cures.cures == [frozenset({3, 7}), frozenset({7, 20})]
    assert found.runs < 40 and found.agreeing == 4 and not found.spent
