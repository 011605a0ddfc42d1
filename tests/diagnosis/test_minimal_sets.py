"""The search finds every cause and cure of every monotone event, and asks nothing that it could know."""

import random
from itertools import chain, combinations
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nangrid.diagnosis.minimal_sets import Changes, NotMonotoneError, OutOfRunsError, search
from nangrid.diagnosis.monotony import check_monotony, exhaust

MOST = 6


def subsets(n: int) -> list[Changes]:
    return [frozenset(s) for s in chain.from_iterable(combinations(range(n), k) for k in range(n + 1))]


@st.composite
def monotone(draw: st.DrawFn) -> tuple[int, list[Changes]]:
    """A number of changes, and the causes of an event among them."""
    n = draw(st.integers(1, MOST))
    some = st.frozensets(st.integers(0, n - 1), min_size=1)
    sets = draw(st.lists(some, min_size=1, max_size=4))
    return n, [s for s in set(sets) if not any(other < s for other in sets)]


@settings(max_examples=150, deadline=None)
@given(monotone())
def test_every_cause_and_cure_is_found(space: tuple[int, list[Changes]]) -> None:
    n, causes = space
    asked: list[Changes] = []

    def ask(changes: Changes) -> bool:
        asked.append(changes)
        return any(cause <= changes for cause in causes)

    found = search(n, ask)
    everything = frozenset(range(n))
    hitting = [s for s in subsets(n) if all(s & cause for cause in causes)]
    assert set(found.causes) == set(causes)
    assert set(found.cures) == {s for s in hitting if not any(other < s for other in hitting)}
    assert found.asked == asked and len(set(asked)) == len(asked)
    assert frozenset() not in asked and everything not in asked
    proof = (set(causes) | {everything - cure for cure in found.cures}) - {frozenset(), everything}
    assert proof <= set(asked), "each cause and cure has a cell of its own"


@settings(max_examples=100, deadline=None)
@given(monotone())
def test_asking_everything_finds_the_same(space: tuple[int, list[Changes]]) -> None:
    n, causes = space

    def ask(changes: Changes) -> bool:
        return any(cause <= changes for cause in causes)

    few, all_of_them = search(n, ask), exhaust(n, ask)
    assert (set(few.causes), set(few.cures)) == (set(all_of_them.causes), set(all_of_them.cures))
    assert len(few.asked) <= len(all_of_them.asked) == 2**n - 2


@settings(max_examples=150, deadline=None)
@given(monotone(), st.data())
def test_sets_without_an_answer_are_skipped_and_mislead_nobody(
    space: tuple[int, list[Changes]], data: st.DataObject
) -> None:
    """Levels that do not go together, cells that crash: the rest is found as by asking everything."""
    n, causes = space
    between = subsets(n)[1:-1]
    mute = data.draw(st.sets(st.sampled_from(between))) if between else set()

    def ask(changes: Changes) -> bool | None:
        return None if changes in mute else any(cause <= changes for cause in causes)

    few, all_of_them = search(n, ask), exhaust(n, ask)
    assert (set(few.causes), set(few.cures)) == (set(all_of_them.causes), set(all_of_them.cures))
    assert set(few.skipped) <= mute == set(all_of_them.skipped)
    assert few.complete and all_of_them.complete


@settings(max_examples=100, deadline=None)
@given(monotone(), st.integers(0, 8), st.lists(st.floats(0.1, 10), min_size=MOST, max_size=MOST))
def test_a_search_that_runs_out_says_so_and_says_nothing_wrong(
    space: tuple[int, list[Changes]], runs: int, weights: list[float]
) -> None:
    n, causes = space
    left = [None] * runs

    def ask(changes: Changes) -> bool:
        if not left:
            raise OutOfRunsError
        left.pop()
        return any(cause <= changes for cause in causes)

    found = search(n, ask, weights[:n])
    assert all(any(cause <= claimed for cause in causes) for claimed in found.causes)
    assert all(all(cause & claimed for cause in causes) for claimed in found.cures)
    assert not found.complete or set(found.causes) == set(causes)


@settings(max_examples=100, deadline=None)
@given(monotone())
def test_further_cells_of_a_monotone_event_agree(space: tuple[int, list[Changes]]) -> None:
    n, causes = space

    def ask(changes: Changes) -> bool:
        return any(cause <= changes for cause in causes)

    found = search(n, ask)
    agreeing = check_monotony(n, ask, found)
    assert len(agreeing) <= max(1, n // 3) and not set(agreeing) & {*found.asked, frozenset(), frozenset(range(n))}


def test_thirty_changes_take_milliseconds_and_few_cells() -> None:
    causes = [{3}, {7, 19}, {2, 11, 29}]
    found = search(30, lambda changes: any(cause <= changes for cause in causes))
    assert {frozenset(cause) for cause in causes} == set(found.causes) and len(found.cures) == 6
    assert found.complete and len(found.asked) <= 45


def test_a_larger_set_that_is_not_enough_is_noticed() -> None:
    """Of three changes the first brings the event about, and the second hides it again."""

    def ask(changes: Changes) -> bool:
        return 0 in changes and (1 not in changes or 2 in changes)

    with pytest.raises(NotMonotoneError) as raised:
        check_monotony(3, ask, search(3, ask))
    assert raised.value.smaller < raised.value.larger
    assert exhaust(3, ask).causes == [frozenset({0})]


@pytest.mark.parametrize(
    ("kind", "most"),
    [("one", {5: 8, 6: 9, 7: 10}), ("interacting", {5: 15, 6: 16, 7: 20}), ("separate", {5: 9, 6: 12, 7: 12})],
)
def test_few_cells_do(kind: str, most: dict[int, int]) -> None:
    for n, bound in most.items():
        counts = []
        for seed in range(20):
            first, second = random.Random(f"{kind} {n} {seed}").sample(range(n), 2)
            causes = {"one": [{first}], "interacting": [{first, second}], "separate": [{first}, {second}]}[kind]
            found = search(n, lambda changes, causes=causes: any(cause <= changes for cause in causes))
            counts.append(len(found.asked) + 2)
        assert median(counts) <= bound
