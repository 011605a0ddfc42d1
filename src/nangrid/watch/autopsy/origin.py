"""Finds the operation that produced the first non-finite number on the way to the value that tripped the clock.

From that value the writes are followed back to their producers. Intentional infinities, such as an attention mask, are
passed over: where one of them turned into a NaN, that operation is the origin. A tensor of -inf from outside is a mask
unless the first operation that mixes its elements multiplies matrices or convolves: then it is data.

Many NaNs are harmless, such as those of a padded row that is cut away later. If a step has several producers, it is run
again with all but one of them ablated. The first producer that trips the clock alone is the origin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from nangrid.watch.autopsy.trace import Write

MOST_TRIED = 5
"""Producers that are tried alone, at the cost of one step each."""

_MIXES = ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "linear", "convolution", "native_batch_norm",
          "native_layer_norm", "native_group_norm", "mse_loss", "smooth_l1_loss", "huber_loss")  # fmt: skip
"""Operations that calculate with their elements, for which -inf is never meant."""
_CARRIES = ("add", "sub", "mul", "div", "neg", "_to_copy", "copy", "clone", "cat", "stack", "index", "index_select",
            "slice", "where", "expand", "repeat", "_unsafe_view", "select", "masked_fill")  # fmt: skip
"""Operations that keep elements apart."""


@dataclass(frozen=True)
class Origin:
    """Where the first non-finite number arose: an operation's write, or a tensor non-finite before the step."""

    index: int
    write: Write
    path: tuple[str, ...]
    """The operations from the origin to the value that tripped the clock."""
    reader: Write | None = None
    """The first operation that read the tensor, where the origin is a tensor non-finite before the step."""
    rivals: frozenset[tuple[int, int]] = frozenset()
    """Other producers (`Write.at`), if the clock trips with zeros in place of what they made non-finite."""


def find_origin(
    writes: list[Write], ends: Iterable[int], still_trips_without: Callable[[frozenset[tuple[int, int]]], bool]
) -> Origin | None:
    """The earliest producer behind any of the writes `ends` that trips the clock alone; None if there is no end.

    `still_trips_without`: whether the clock trips when what these writes (`Write.at`) made non-finite is ablated.
    """
    writes = _with_data_told_from_masks(writes)
    search, ends = _Search(writes), list(ends)
    if not ends:
        return None
    likely = min(search.root(end) for end in ends)
    producers = sorted({producer for end in ends for producer in search.producers(end)})

    def all_but(kept: Iterable[int]) -> frozenset[tuple[int, int]]:
        return frozenset(writes[i].at for i in set(producers).difference(kept) if writes[i].producer)

    def trips_by(kept: Iterable[int]) -> bool:
        others = all_but(kept)
        return not others or still_trips_without(others)

    # Of several on one line the earliest is the origin. One run tells whether any before the likely one counts.
    earlier = [producer for producer in producers if producer < likely]
    # What was non-finite before the step cannot be ablated, and would trip the clock in their stead.
    tells = all(writes[producer].producer for producer in producers if producer >= likely)
    first = earlier if earlier and tells and trips_by(earlier) else []
    candidates = [*first, likely, *(producer for producer in producers if producer > likely)][:MOST_TRIED]
    # If only several producers together trip the clock, such as inf - inf, the likely one stands.
    alone = next((candidate for candidate in candidates if trips_by([candidate])), None)
    index = likely if alone is None else alone
    steps = next(filter(None, (search.path(end, index) for end in ends)))
    path = [writes[step] for step in steps]
    reader = path[1] if writes[index].preexisting and len(path) > 1 else None
    rivals = frozenset[tuple[int, int]]() if alone is None else all_but([alone])
    return Origin(index, writes[index], tuple(write.op for write in path), reader, rivals)


def _with_data_told_from_masks(writes: list[Write]) -> list[Write]:
    """The writes; a tensor from outside that holds -inf alone and is read as data no longer counts as a mask."""
    return [
        replace(write, negative=False) if write.preexisting and write.negative and _is_data(writes, index) else write
        for index, write in enumerate(writes)
    ]


def _is_data(writes: list[Write], index: int) -> bool:
    """Whether the elements of a tensor from outside first meet each other in a product."""
    carriers = {index}
    for number, write in enumerate(writes):
        if carriers.isdisjoint(write.reads):
            continue
        name = write.op.removeprefix("aten.").split(".")[0]
        if name in _MIXES:
            return True
        # Arithmetic by element and copies carry the infinities on; a softmax or an attention expects them.
        if write.producer or name.removesuffix("_") not in _CARRIES:
            return False
        carriers.add(number)
    return False


class _Search:
    """Follows writes back to their roots; `roots` holds those already known."""

    def __init__(self, writes: list[Write]) -> None:
        self.writes = writes
        self.roots: dict[int, int] = {}

    def root(self, end: int) -> int:
        """The write that the value written by `end` goes back to."""
        # Sources are always earlier writes, so that one ascending pass resolves them all.
        for index in self._behind(end):
            self.roots[index] = self._root_of(index)
        return self.roots[end]

    def producers(self, end: int) -> list[int]:
        """The writes behind `end` that produced something unintentional from nothing but intentional values."""
        return [index for index in self._behind(end) if self._is_genuine(index)]

    def _is_genuine(self, index: int) -> bool:
        write = self.writes[index]
        if is_intentional(write) or not (write.preexisting or write.producer):
            return False
        return all(is_intentional(self.writes[self.roots[cause]]) for cause in write.causes)

    def _behind(self, end: int) -> list[int]:
        """All writes that `end` depends on, itself included, in ascending order."""
        reached, waiting = set(), [end]
        while waiting:
            index = waiting.pop()
            if index not in reached:
                reached.add(index)
                waiting += self.writes[index].reads
        return sorted(reached)

    def _root_of(self, index: int) -> int:
        """The root of one write, given the roots of all writes before it."""
        write = self.writes[index]
        # A NaN among the sources outweighs infinities: inf + NaN is NaN because of the NaN.
        sources = [s for s in write.sources if self.writes[s].nan] or list(write.sources)
        roots = sorted({self.roots[s] for s in sources})
        genuine = [root for root in roots if not is_intentional(self.writes[root])]
        if genuine:
            return genuine[0]
        # All roots are intentional infinities. A NaN made of them (inf - inf) is this operation's doing and has a
        # producer here; an infinity is still the mask's, passed on.
        return index if write.producer is not None or not roots else roots[0]

    def path(self, end: int, root: int) -> list[int]:
        """Writes from `root` to `end`, preferably along sources; empty if none lead there."""
        leads = {root}
        for index in self._behind(end):
            if not leads.isdisjoint(self.writes[index].reads):
                leads.add(index)
        if end not in leads:
            return []
        steps = [end]
        while steps[-1] != root:
            write = self.writes[steps[-1]]
            steps.append(next(source for source in (*write.sources, *write.reads) if source in leads))
        return steps[::-1]


def is_intentional(write: Write) -> bool:
    """Whether its infinities were put there on purpose: a fill with -inf, or a mask passed in from outside."""
    if write.preexisting:
        return write.negative and not write.nan
    return write.producer is not None and write.producer.intentional
