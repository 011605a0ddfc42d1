"""Prints text that may come from a record, without what would act on a terminal or show a secret."""

from __future__ import annotations

import re
import sys

from nangrid.records.safety.secret import redacted

_ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, C1 included, except tab and line feed
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that reorder what is shown
    "\u2028\u2029\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"  # separators, tags, half surrogate pairs
)

_FORMULA = re.compile(r"[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # the last four: full-width forms of the first four
_NUMBER = re.compile(r"[+-]?[\d.]+(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def printable(text: str) -> str:
    r"""The text with control characters spelled out, `\x1b` for ESC, and with secrets replaced by their names."""
    return _ACTING.sub(lambda match: match[0].encode("unicode_escape").decode(), redacted(text))


def cell_text(value: object) -> object:
    """The value for a cell of a CSV file; a text that a spreadsheet would take for a formula gets a `'` in front."""
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def say(text: object = "", *, error: bool = False) -> None:
    """Print to standard output, or to standard error."""
    print(printable(str(text)), file=sys.stderr if error else sys.stdout, flush=True)
