"""Which operation made the first non-finite number on the way to the value that rang the clock?

From that value the writes are followed back to where a non-finite number was born. Infinities that were meant
(an attention mask) are passed over: where one of them turned into a NaN, that operation is the origin.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nangrid.watch.trace import Write


@dataclass(frozen=True)
class Origin:
    """Where the first non-finite number arose: an operation's write, or a tensor non-finite before the step."""

    index: int
    write: Write
    path: tuple[str, ...]
    """The operations from the origin to the value that rang the clock."""


def find_origin(writes: list[Write], ends: Iterable[int]) -> Origin | None:
    """The earliest birth behind any of the writes `ends`; None if there is no end."""
    search = _Search(writes)
    found = [(end, root) for end in ends if (root := search.root(end)) is not None]
    if not found:
        return None
    end, index = min(found, key=lambda pair: pair[1])
    return Origin(index, writes[index], search.path(end, index))


class _Search:
    def __init__(self, writes: list[Write]) -> None:
        self.writes = writes
        self.roots: dict[int, int] = {}

    def root(self, end: int) -> int:
        """The write to blame for the write `end`. Sources are always earlier writes: one pass upwards."""
        for index in self._behind(end):
            self.roots[index] = self._settle(index)
        return self.roots[end]

    def _behind(self, end: int) -> list[int]:
        seen, waiting = set(), [end]
        while waiting:
            index = waiting.pop()
            if index not in seen:
                seen.add(index)
                waiting += self.writes[index].sources
        return sorted(seen)

    def _settle(self, index: int) -> int:
        write = self.writes[index]
        sources = [s for s in write.sources if self.writes[s].nan] or list(write.sources)
        roots = sorted({self.roots[s] for s in sources})
        genuine = [root for root in roots if not is_meant(self.writes[root])]
        if genuine:
            return genuine[0]
        # A NaN out of meant infinities is this operation's doing; an infinity is the mask's, carried on.
        return index if write.birth is not None or not roots else roots[0]

    def path(self, end: int, root: int) -> tuple[str, ...]:
        """Operations from `root` to `end`, along sources with that root."""
        steps, index = [self.writes[end].op], end
        while index != root:
            index = next(s for s in self.writes[index].sources if self.roots[s] == root)
            steps.append(self.writes[index].op)
        return tuple(reversed(steps))


def is_meant(write: Write) -> bool:
    """Whether its infinities were put there on purpose: a fill with -inf, a mask given from outside."""
    return write.negative and not write.nan if write.leaf else bool(write.birth and write.birth.meant)
