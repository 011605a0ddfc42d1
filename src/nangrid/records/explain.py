"""How is an autopsy told in a few plain lines?"""

from __future__ import annotations

from nangrid.records.autopsy import Autopsy, TensorRecord

_MOST_NAMED = 4


def explain(autopsy: Autopsy) -> str:
    """Where, what, who, why, and what to try; one line each."""
    lines = [_where(autopsy)]
    if autopsy.inputs:
        ends = f"; {autopsy.dtype} ends at {autopsy.dtype_max:.4g}" if autopsy.kind == "overflow" else ""
        lines.append(f"  {operands(autopsy)}{ends}")
    if autopsy.tokens:
        named = ", ".join(_token(token.text, token.id, token.position) for token in autopsy.tokens[:_MOST_NAMED])
        more = len(autopsy.tokens) - _MOST_NAMED
        lines.append(f"  tokens: {named}" + (f" and {more} more" if more > 0 else ""))
    if autopsy.parameters:
        named = ", ".join(autopsy.parameters[:2])
        lines.append(f"  {len(autopsy.parameters)} parameters hit: {named}" + ", ..." * (len(autopsy.parameters) > 2))
    lines.append(f"  {autopsy.mechanism}: {autopsy.explanation}")
    if autopsy.suggestions:
        lines.append(f"  try: {', '.join(s.advice for s in autopsy.suggestions)}")
    if not autopsy.reproduced:
        lines.append("  CAUTION: the replay did not reproduce the live step's bits")
    return "\n".join(lines)


def operands(autopsy: Autopsy) -> str:
    """Those of the first non-finite element, or how large they are where more than one of each went into it."""
    shown = autopsy.inputs[:3]
    if autopsy.output and all(operand.at is not None for operand in shown):
        where = f"at {autopsy.output.first_index}" if autopsy.output.first_index else "operands"
        return f"{where}: " + ", ".join(f"{operand.name} {operand.at:.4g}" for operand in shown)
    return "operands up to: " + ", ".join(f"{operand.name} {operand.absmax:.4g}{_others(operand)}" for operand in shown)


def _others(operand: TensorRecord) -> str:
    """What else it holds: the size is of its finite elements."""
    counts = [(operand.n_inf, "infinite"), (operand.n_nan, "NaN")]
    told = ", ".join(f"{count} {what}" for count, what in counts if count)
    return f" (and {told})" if told else ""


def _where(autopsy: Autopsy) -> str:
    if not autopsy.op:
        return f"origin: {_preexisting(autopsy) or 'not found'} ({autopsy.phase})"
    place = f" in {autopsy.module}" if autopsy.module else ""
    source = f" ({autopsy.source})" if autopsy.source else ""
    return f"origin: {autopsy.op}{place}{source}, {autopsy.phase} {autopsy.kind}"


def _preexisting(autopsy: Autopsy) -> str:
    """That a tensor was non-finite before it was read, and which of its elements if that is known; else empty."""
    name = autopsy.preexisting
    if not name:
        return ""
    elements = [line.removeprefix(f"{name}: ") for line in autopsy.evidence[1:2] if line.startswith(f"{name}: ")]
    return "; ".join([f"{name} was non-finite before it was read", *elements])


def _token(text: str, token: int, position: int) -> str:
    return f"{text!r} (id {token}, position {position})" if text else f"id {token} (position {position})"
