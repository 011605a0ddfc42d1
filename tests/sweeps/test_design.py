"""The designs have their promised properties, and the committed ones are what the script writes."""

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
    """The pairs of levels that a covering array must contain: all except the excluded ones."""
    forbidden = {frozenset(some.items()) for some in excluded}
    every = set()
    for (factor, firsts), (other, seconds) in combinations(levels.items(), 2):
        every |= {frozenset({(factor, first), (other, second)}) for first in firsts for second in seconds}
    return every - forbidden


@settings(max_examples=40, deadline=None)
@given(levels, st.data())
def test_a_covering_array_has_every_pair_and_nothing_excluded(space: dict[str, list[str]], data: st.DataObject) -> None:
    first, second = list(space)[:2]
    excluded = data.draw(st.sampled_from([[], [{first: "0", second: "1"}]]))
    design = covering(space, excluded)
    covered = {
        frozenset({(f, cell[f]), (g, cell[g])})
        for cell in design
        for f in space
        for g in space
        if f != g
    }  # fmt: skip
    assert covered == pairs(space, excluded)
    assert len(design) <= len(full(space))


def test_one_factor_at_a_time_changes_one() -> None:
    base = {"dtype": "bf16", "init": "zero"}
    design = one_factor(base, {"dtype": ["bf16", "fp16"], "init": ["zero", "mean", "normal"]})
    assert design[0] == base and len(design) == 4
    assert all(sum(cell[f] != base[f] for f in base) == 1 for cell in design[1:])


def test_the_committed_designs_are_what_the_script_writes() -> None:
    script = runpy.run_path(str(ROOT / "sweeps" / "design.py"))
    for name, (summary, design) in script["DESIGNS"].items():
        committed = (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text()
        assert committed == script["experiment"](name, summary, design), "run python sweeps/design.py"
