"""`why`: says what went wrong in a directory, where, why, how sure that is, and what to change first."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from nangrid.commands.exits import exit_code
from nangrid.commands.parser import make_parser
from nangrid.records.output.printed import say_json
from nangrid.records.safety.text import say
from nangrid.reporting.answer import answer_about, as_markdown, as_screen

EPILOG = """\
python -m src.why outputs/default                  a grid, or a diagnosis
python -m src.why outputs/default/cells/2769c279   one cell
python -m src.why autopsy                          the out_dir= of a watch
python -m src.why out --markdown                   for an issue on GitHub

proven: the replay repeated the step to the last bit, and an experiment on it
names the origin. likely: some of that is missing. unknown: nothing was found.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 whatever went wrong in the run, 2 if the path holds nothing that can be read."""
    parser = make_parser("why", "Say what went wrong, why, how sure that is, and what to change first.", EPILOG)
    parser.add_argument("path", metavar="PATH", help="folder of an autopsy, cell, grid, diagnosis or Trainer")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="Markdown for an issue, without text of the data")
    form.add_argument("--json", action="store_true", help="JSON, without text of the data")
    parser.add_argument("--with-text", action="store_true", help="show the text of tokens in Markdown and JSON too")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _why(options))


def _why(options: Namespace) -> None:
    for_others = options.markdown or options.json
    answer = answer_about(options.path, with_text=options.with_text or not for_others)
    if options.json:
        say_json(answer)
    else:
        say(as_markdown(answer) if options.markdown else as_screen(answer))
