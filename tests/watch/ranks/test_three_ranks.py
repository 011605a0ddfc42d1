"""Three gloo ranks: all leave the loop together, with shards of unequal sizes too."""

from two_ranks import Found, found_by

found = found_by("three_ranks.py", ended=(0, 0, 0))


def test_replicas(found: Found) -> None:
    autopsy = found.merged("replicas")
    assert (autopsy.rank, autopsy.step, autopsy.op, autopsy.reproduced) == (1, 1, "aten.log.default", True)
    assert set(autopsy.by_communication) == {"0", "2"}


def test_shards(found: Found) -> None:
    autopsy = found.merged("shards")
    assert (autopsy.rank, autopsy.phase, autopsy.mechanism) == (1, "backward", "derivative-at-pole")
    assert autopsy.reproduced and set(autopsy.by_communication) == {"0", "2"}
