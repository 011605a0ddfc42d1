"""Designs hold what they promise, and those that are committed are the ones that the script makes."""

import runpy
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from design import Levels, covering, full, one_factor
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]

levels = st.lists(st.integers(2, 4), min_size=2, max_size=6).map(
    lambda sizes: {f"group.{n}": [str(level) for level in range(size)] for n, size in enumerate(sizes)}
)


def pairs(levels: Levels, excluded: Sequence[Mapping[str, str]] = ()) -> set[frozenset[tuple[str, str]]]:
    """The pairs of levels that a covering array must hold: those that no exclusion of two levels forbids."""
    forbidden = {frozenset(some.items()) for some in excluded}
    found = set()
    for (factor, own), (other, its) in combinations(levels.items(), 2):
        found |= {frozenset({(factor, level), (other, second)}) for level in own for second in its}
    return found - forbidden


@settings(max_examples=40, deadline=None)
@given(levels, st.data())
def test_a_covering_array_has_every_pair_and_nothing_excluded(space: dict[str, list[str]], data: st.DataObject) -> None:
    first, second = list(space)[:2]
    excluded = data.draw(st.sampled_from([[], [{first: "0", second: "1"}]]))
    design = covering(space, excluded)
    seen = {
        frozenset({(f, cell[f]), (g, cell[g])})
        for cell in design
        for f in space
        for g in space
        if f != g
    }  # fmt: skip
    assert seen == pairs(space, excluded)
    assert len(design) <= len(full(space))


def test_one_factor_at_a_time_changes_one() -> None:
    base = {"dtype": "bf16", "init": "zero"}
    design = one_factor(base, {"dtype": ["bf16", "fp16"], "init": ["zero", "mean", "normal"]})
    assert design[0] == base and len(design) == 4
    assert all(sum(cell[f] != base[f] for f in base) == 1 for cell in design[1:])


def test_the_committed_designs_are_what_the_script_writes() -> None:
    script = runpy.run_path(str(ROOT / "sweeps" / "design.py"))
    for name, (what, design) in script["DESIGNS"].items():
        committed = (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text()
        assert committed == script["experiment"](name, what, design), "run python sweeps/design.py"
