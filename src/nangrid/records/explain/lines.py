"""Explains an autopsy in a few plain lines, which end the output of a failing run."""

from __future__ import annotations

import math
import operator
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator

from nangrid.records.autopsy import Autopsy, TensorRecord, TokenRecord

_WIDTH = 80
_MOST_TOKENS = 4
_MOST_OPERANDS = 3
_MOST_PARAMETERS = 2
KINDS = {
    "divide_by_zero": "division by zero",
    "invalid": "invalid operation",
    "nonfinite_input": "non-finite input",
}
"""Kinds of IEEE 754 that read otherwise than they are spelled."""
_RESULTS: dict[str, tuple[str, Callable[[float, float], float]]] = {
    "add": ("sum", operator.add),
    "sub": ("difference", operator.sub),
    "mul": ("product", operator.mul),
}


def explain(autopsy: Autopsy) -> str:
    """The origin, its operands, the tokens and parameters involved, the mechanism, and what to try.

    Lines are wrapped to 80 columns between words.
    """
    wrapper = textwrap.TextWrapper(_WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(wrapper.fill(line) for line in _lines(autopsy))


def _lines(autopsy: Autopsy) -> Iterator[str]:
    rank = "" if autopsy.rank is None else f"rank {autopsy.rank}, "
    yield f"origin: {rank}{_origin(autopsy)}"
    if autopsy.inputs:
        yield f"  {numbers(autopsy)}"
    if autopsy.tokens:
        yield f"  tokens: {token_list(autopsy.tokens)}"
    if autopsy.parameters:
        yield f"  {_parameters(autopsy.parameters)}"
    if autopsy.by_communication:
        yield f"  {_received(autopsy.by_communication)}"
    yield f"  {autopsy.mechanism}: {autopsy.explanation}"
    if autopsy.suggestions:
        yield f"  try: {'; or '.join(suggestion.advice for suggestion in autopsy.suggestions)}"
    if not autopsy.reproduced:
        yield "  CAUTION: no replay reproduced the original step exactly"


def numbers(autopsy: Autopsy) -> str:
    """The operands, and the largest number of the dtype where that was exceeded."""
    return f"{operands(autopsy)}{_limit(autopsy)}"


def operands(autopsy: Autopsy) -> str:
    """The operands' elements at the first non-finite output; their largest values where a whole row went into it."""
    shown = autopsy.inputs[:_MOST_OPERANDS]
    if autopsy.output and all(_is_one_number(operand) for operand in shown):
        where = f"at {autopsy.output.first_index}" if autopsy.output.first_index else "operands"
        return f"{where}: " + ", ".join(f"{o.name} {format_number(math.nan if o.at is None else o.at)}" for o in shown)
    return "largest finite operands: " + ", ".join(
        f"{operand.name} {format_number(operand.absmax)}{_nonfinite(operand)}" for operand in shown
    )


def _is_one_number(operand: TensorRecord) -> bool:
    """Whether one number of the operand went into the element; a NaN among the scalars has no `at`."""
    return operand.at is not None or (not operand.shape and operand.n_nan == 1)


def format_number(value: float) -> str:
    """A number as a person would write it: 65504, 13184, 0.1035, 3.39e38."""
    size = abs(value)
    if size < 1e6 and value == int(value):
        return f"{value:.0f}"
    return f"{value:.6g}" if 1e3 <= size < 1e6 else f"{value:.4g}".replace("e+", "e")


def _origin(autopsy: Autopsy) -> str:
    if autopsy.preexisting:
        return _preexisting(autopsy)
    if not autopsy.op:
        return "not found, no replay met a non-finite value"
    place = f" in {autopsy.module}" if autopsy.module else ""
    source = f" ({autopsy.source})" if autopsy.source else ""
    return f"{autopsy.op}{place}{source}, {autopsy.phase} {KINDS.get(autopsy.kind, autopsy.kind)}"


def _preexisting(autopsy: Autopsy) -> str:
    """The tensor that was non-finite before the step, what first read it, and which of its elements if known."""
    place = f" in {autopsy.module}" * bool(autopsy.module) + f" ({autopsy.source})" * bool(autopsy.source)
    reader = f" by {autopsy.op}{place}" if autopsy.op else ""
    elements = elements_before(autopsy)
    return f"{autopsy.preexisting} was non-finite before it was read{reader}" + f": {elements}" * bool(elements)


def elements_before(autopsy: Autopsy) -> str:
    """Which elements of the tensor were non-finite before the step; empty if that is not known."""
    name = autopsy.preexisting
    lines = [line.removeprefix(f"{name}: ") for line in autopsy.evidence[1:2] if line.startswith(f"{name}: ")]
    return "".join(line.removeprefix("non-finite in ") for line in lines)


def _nonfinite(operand: TensorRecord) -> str:
    counts = [(operand.n_inf, "infinite"), (operand.n_nan, "NaN")]
    others = ", ".join(f"{count} {what}" for count, what in counts if count)
    return f" (and {others})" if others else ""


def _limit(autopsy: Autopsy) -> str:
    """The largest number of the dtype where that was exceeded."""
    if autopsy.kind != "overflow":
        return ""
    return f"{_result(autopsy)}; largest {autopsy.dtype}: {format_number(autopsy.dtype_max)}"


def _result(autopsy: Autopsy) -> str:
    """The sum, difference or product of two numbers, which a reader would otherwise add up."""
    known = _RESULTS.get(autopsy.op.removeprefix("aten.").partition(".")[0].rstrip("_"))
    operands = [operand.at for operand in autopsy.inputs if operand.at is not None]
    if known is None or len(operands) != 2 or len(autopsy.inputs) != 2:
        return ""
    name, operation = known
    return f", {name} {format_number(operation(*operands))}"


def token_list(tokens: list[TokenRecord], *, with_text: bool = True) -> str:
    """Each distinct (token, position) once, with the number of samples that have it there."""
    samples = Counter((token.text * with_text, token.id, token.position) for token in dict.fromkeys(tokens))
    named = [_token(*token) + (f" in {count} samples" if count > 1 else "") for token, count in samples.items()]
    more = len(named) - _MOST_TOKENS
    return ", ".join(named[:_MOST_TOKENS]) + (f" and {more} more" if more > 0 else "")


def _token(text: str, token: int, position: int) -> str:
    return f"{text!r} (id {token}, position {position})" if text else f"id {token} (position {position})"


def _received(names: dict[str, list[str]]) -> str:
    """How many gradients of each rank were finite before the ranks exchanged theirs."""
    ranks = [f"{_count(received)} on rank {rank}" for rank, received in names.items()]
    return f"non-finite by communication alone: the gradients of {', '.join(ranks)}"


def _count(names: list[str]) -> str:
    return "1 parameter" if len(names) == 1 else f"{len(names)} parameters"


def _parameters(names: list[str]) -> str:
    return f"{_count(names)} affected: {', '.join(names[:_MOST_PARAMETERS])}" + ", ..." * (
        len(names) > _MOST_PARAMETERS
    )
