"""Designs hold what they promise, and those that are committed are the ones that the script makes."""

import runpy
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from nangrid.search.designs import covering, full, one_factor, pairs

ROOT = Path(__file__).parents[2]

levels = st.lists(st.integers(2, 4), min_size=2, max_size=6).map(
    lambda sizes: {f"group.{n}": [str(level) for level in range(size)] for n, size in enumerate(sizes)}
)


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
