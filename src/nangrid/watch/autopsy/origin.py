"""Which operation made the first non-finite number on the way to the value that rang the clock?

From that value the writes are followed back to where a non-finite number was born. Infinities that were intentional
(an attention mask) are passed over: where one of them turned into a NaN, that operation is the origin.

Many a NaN is harmless: that of a padded row which is cut away. So where there are several producers, the step is run
with all but one of them ablated, and the first one that rings the clock alone is the origin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nangrid.watch.autopsy.trace import Write

MOST_ASKED = 5
"""Births of which each is tried alone, at the cost of a step."""


@dataclass(frozen=True)
class Origin:
    """Where the first non-finite number arose: an operation's write, or a tensor non-finite before the step."""

    index: int
    write: Write
    path: tuple[str, ...]
    """The operations from the origin to the value that rang the clock."""
    reader: Write | None = None
    """The first of them that read a tensor non-finite before the step."""


def find_origin(
    writes: list[Write], ends: Iterable[int], still_rings_without: Callable[[frozenset[tuple[int, int]]], bool]
) -> Origin | None:
    """The earliest producer behind any of the writes `ends`; None if there is no end.

    `still_rings_without`: whether the clock rings when what was born at these (`Write.at`) is ablated.
    """
    search, ends = _Search(writes), list(ends)
    if not ends:
        return None
    likely = min(search.root(end) for end in ends)
    producers = sorted({producer for end in ends for producer in search.producers(end)})

    def rings_alone(index: int) -> bool:
        others = frozenset(writes[other].at for other in producers if other != index and writes[other].producer)
        return not others or still_rings_without(others)

    asked = [likely, *(producer for producer in producers if producer != likely)][:MOST_ASKED]
    index = next(filter(rings_alone, asked), likely)
    steps = next(filter(None, (search.path(end, index) for end in ends)))
    path = [writes[step] for step in steps]
    reader = path[1] if writes[index].preexisting and len(path) > 1 else None
    return Origin(index, writes[index], tuple(write.op for write in path), reader)


class _Search:
    def __init__(self, writes: list[Write]) -> None:
        self.writes = writes
        self.roots: dict[int, int] = {}

    def root(self, end: int) -> int:
        """The write to blame for the write `end`. Sources are always earlier writes: one pass upwards."""
        for index in self._behind(end):
            self.roots[index] = self._settle(index)
        return self.roots[end]

    def producers(self, end: int) -> list[int]:
        """The writes behind `end` that bore something which was not intentional, and not out of what was."""
        return [index for index in self._behind(end) if self._is_genuine(index)]

    def _is_genuine(self, index: int) -> bool:
        write = self.writes[index]
        if is_intentional(write) or not (write.preexisting or write.producer):
            return False
        return all(is_intentional(self.writes[self.roots[cause]]) for cause in write.causes)

    def _behind(self, end: int) -> list[int]:
        seen, waiting = set(), [end]
        while waiting:
            index = waiting.pop()
            if index not in seen:
                seen.add(index)
                waiting += self.writes[index].reads
        return sorted(seen)

    def _settle(self, index: int) -> int:
        write = self.writes[index]
        sources = [s for s in write.sources if self.writes[s].nan] or list(write.sources)
        roots = sorted({self.roots[s] for s in sources})
        genuine = [root for root in roots if not is_intentional(self.writes[root])]
        if genuine:
            return genuine[0]
        # A NaN out of intentional infinities is this operation's doing; an infinity is the mask's, carried on.
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
    """Whether its infinities were put there on purpose: a fill with -inf, a mask given from outside."""
    return (
        write.negative and not write.nan if write.preexisting else bool(write.producer and write.producer.intentional)
    )
