"""Compares what tools said with the truth; each tool is judged on what it claims."""

from __future__ import annotations

from typing import Any

from case import Case, base_op

FIELDS = ("step", "phase", "kind", "op", "module", "line")
CLAIMS = {
    "nangrid": FIELDS,
    "anomaly mode": ("step", "op", "line"),
    "Lightning detect_anomaly": ("step", "op", "line"),
    "Lightning check_finite": ("step",),
    "HF debug": ("step", "module"),
    "module hooks": ("step", "module"),
    "sherlorch": ("step", "op", "module"),
    "trainscope": ("step",),
}
"""Tool -> what it claims to know."""
FUNCTIONS = {
    "truediv": "div",
    "rtruediv": "reciprocal div",
    "softmax": "_softmax",
    "linear": "addmm mm",
    "matmul": "bmm mm",
    "einsum": "bmm",
    "cross_entropy": "nll_loss_forward nll_loss2d_forward",
    "nll_loss": "nll_loss_forward",
    "normalize": "div",
    "ctc_loss": "_ctc_loss",
    "half": "_to_copy",
    "to": "_to_copy",
    "conv2d": "convolution",
    "multi_head_attention_forward": "_softmax",
    "square": "pow",
}
"""The name of a torch function -> the ATen operations that count as right for it."""


def marks(case: Case, tool: str, answer: dict[str, Any]) -> dict[str, bool]:
    """Field -> right or wrong, for the fields that a tool claims, all against one reading of the truth."""
    claims = CLAIMS[tool]
    if case.onset is None or not answer or "crashed" in answer:
        return dict.fromkeys(claims, False)
    # nangrid names the clock, too: the step is right only with it.
    step = (answer.get("step"), answer.get("clock", case.onset[1])) == case.onset
    readings = [{"step": step, **_reading(tool, origin, answer)} for origin in case.origins]
    best = max(readings, key=lambda reading: sum(reading[claim] for claim in claims))
    return {claim: best[claim] for claim in claims}


def _reading(tool: str, origin: Any, answer: dict[str, Any]) -> dict[str, bool]:
    op = answer.get("op", "")
    if "node" in answer and tool != "nangrid":
        right_op = origin.accepts_node(answer.get("node"))
    elif tool == "sherlorch":
        name = op.strip("_")
        right_op = any(origin.accepts_op(word) for word in [op, name, *FUNCTIONS.get(name, "").split()])
    else:
        right_op = origin.accepts_op(op)
    # A hook that sees a non-finite input only knows that the fault lies before.
    seen = answer.get("where", "output") == "output" or origin.phase == "input"
    return {
        "phase": answer.get("phase") == origin.phase,
        "kind": answer.get("kind") in origin.kinds,
        "op": right_op,
        "module": seen and answer.get("module", "") == origin.module,
        "line": origin.accepts_line(answer.get("line")),
    }


def mechanism_mark(case: Case, answer: dict[str, Any]) -> str:
    """right, wrong, missed (a name fits, none was given) or unnamed (rightly: none fits)."""
    said = answer.get("mechanism") or "unknown"
    if said == "unknown":
        return "missed" if case.mechanisms else "unnamed"
    return "right" if said in case.mechanisms else "wrong"


def described(answer: dict[str, Any]) -> str:
    """The answer in one line."""
    if not answer:
        return "nothing"
    if "crashed" in answer:
        return f"crashed: {answer['crashed']}"
    words = [answer.get("phase"), answer.get("kind"), base_op(answer.get("op")) or answer.get("node")]
    place = f"in {answer.get('module') or '(no module)'} at {answer.get('line') or '?'}"
    return f"step {answer.get('step')} {' '.join(filter(None, words))} {place} [{answer.get('mechanism', '')}]"
