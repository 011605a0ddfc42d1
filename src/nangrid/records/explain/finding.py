"""Writes what an autopsy found as the short statements of an answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nangrid.records.autopsy import AUTOPSY, SCRIPT, Autopsy
from nangrid.records.explain.certainty import mechanism_certainty, origin_certainty
from nangrid.records.explain.lines import KINDS, elements_before, numbers, token_list
from nangrid.records.mechanisms import TITLES, UNKNOWN
from nangrid.records.output.answer import Finding

TESTED = ": tested, the step is finite"


def finding_of(autopsy: Autopsy, folder: Path, *, with_text: bool = True) -> Finding:
    """The autopsy in `folder` as statements. `with_text`: show the text of tokens, which is the user's data."""
    return Finding(
        autopsy=str(folder / AUTOPSY),
        happened=_happened(autopsy),
        where=_where(autopsy),
        operation=_operation(autopsy),
        tokens=token_list(autopsy.tokens, with_text=with_text),
        mechanism=autopsy.mechanism,
        title=TITLES.get(autopsy.mechanism, autopsy.mechanism),
        why=autopsy.explanation,
        origin=origin_certainty(autopsy),
        reason=mechanism_certainty(autopsy),
        change=_changes(autopsy),
        overrides=[suggestion.override for suggestion in autopsy.suggestions if suggestion.override],
        ruled_out=list(_ruled_out(autopsy)),
        unchecked=list(_unchecked(autopsy)),
        operand_script=str(_of_its_rank(autopsy, folder) / SCRIPT) if autopsy.alone else None,
    )


def _of_its_rank(autopsy: Autopsy, folder: Path) -> Path:
    """The folder with the files of the rank that a merged autopsy is of."""
    own = f"rank{autopsy.rank}"
    candidates = folder / own, folder.parent / own / folder.name  # CELL/frozen and CELL/rank1/frozen
    return next((path for path in candidates if path.is_dir()), folder)


def _happened(autopsy: Autopsy) -> str:
    known = {
        "frozen": f"From step {autopsy.step} on the gradient norm is infinite, so clipping makes every update zero.",
        "raised": f"Step {autopsy.step} was ended by an error, after a number had become non-finite.",
    }
    clock = clock_name(autopsy.clock)
    return known.get(autopsy.clock, f"{clock[:1].upper()}{clock[1:]} became non-finite in step {autopsy.step}.")


def clock_name(clock: str) -> str:
    """A clock as a person calls it: `a gradient`, `the loss`."""
    article = "a" if clock in ("gradient", "parameter") else "the"
    return f"{article} {clock.replace('eval_', 'evaluation ').replace('_', ' ')}"


def _where(autopsy: Autopsy) -> str:
    if not (autopsy.op or autopsy.preexisting):
        return "not found"
    rank = "" if autopsy.rank is None else f"rank {autopsy.rank}"
    place = [rank, autopsy.source, autopsy.module]
    phases = {"input": "before the step", "optimizer": "optimizer update"}
    phase = phases.get(autopsy.phase, f"{autopsy.phase} pass")
    micro_batch = f"micro-batch {autopsy.micro_batch}" if autopsy.micro_batch else ""
    return ", ".join(filter(None, [*place, phase, micro_batch]))


def _operation(autopsy: Autopsy) -> str:
    if autopsy.preexisting:
        return f"{autopsy.preexisting} was non-finite before it was read: {elements_before(autopsy) or 'some elements'}"
    if not autopsy.op:
        return ""
    return f"{autopsy.op} ({KINDS.get(autopsy.kind, autopsy.kind)}){f' {numbers(autopsy)}' if autopsy.inputs else ''}"


def _changes(autopsy: Autopsy) -> list[str]:
    """The suggestions, those that the replay has tested first."""
    advice = [suggestion.advice for suggestion in autopsy.suggestions]
    return sorted(advice, key=lambda text: not text.endswith(TESTED))


def _ruled_out(autopsy: Autopsy) -> Iterator[str]:
    if autopsy.reproduced:
        yield "a random glitch (the replay repeated the step to the last bit)"
    if autopsy.untrained:
        start = "it is the first step" if autopsy.step == 0 else "the untrained weights fail on this batch, too"
        yield f"drift during the training ({start})"
    if autopsy.untrained is False:
        yield "this batch alone (on the untrained weights it is finite)"
    if autopsy.inputs and not autopsy.preexisting and not any(o.n_nan or o.n_inf for o in autopsy.inputs):
        yield "non-finite weights or data (the operation read finite numbers)"
    for trial in autopsy.cures:
        if not trial.finite:
            yield f"{trial.change} (tested, the step still fails)"


def _unchecked(autopsy: Autopsy) -> Iterator[str]:
    if not autopsy.reproduced:
        yield "the live step's bits, which the replay did not repeat"
    if autopsy.untrained is None:
        yield "the untrained weights on this batch, which were not kept"
    found = bool(autopsy.op or autopsy.preexisting)
    if found and autopsy.ablated is None:
        yield "whether the step is finite with zeros in place of the operation's non-finite numbers"
    if autopsy.op and not autopsy.cures:
        yield "whether a change of the code there helps: nangrid knows none to try for this operation"
    if autopsy.mechanism == UNKNOWN and found:
        yield "the mechanism, because none that nangrid knows fits"
