"""A terminal that shows text from records and is not controlled by it."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from nangrid.records.safety.text import printable


class CleanConsole(Console):
    """Rich's console; control characters inside of texts are spelled out, its own styles and movements stay."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of the renderable; rich adds its escape sequences to them later."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))
