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


def printable(text: str) -> str:
    r"""The text with control characters spelled out, `\x1b` for ESC, and with secrets replaced by their names."""
    return _ACTING.sub(lambda match: match[0].encode("unicode_escape").decode(), redacted(text))


def say(text: object = "", *, error: bool = False) -> None:
    """Print to standard output, or to standard error."""
    print(printable(str(text)), file=sys.stderr if error else sys.stdout, flush=True)
