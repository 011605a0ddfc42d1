"""nangrid: what made a fine-tuning run go NaN, where the first non-finite number arose, what cures it."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nangrid.watch import Finding

__all__ = ["NonFiniteError", "Watch", "check"]


def __getattr__(name: str) -> Any:
    # Commands that only read records must not wait for torch.
    if name in ("NonFiniteError", "Watch"):
        from nangrid import watch

        return getattr(watch, name)
    raise AttributeError(f"module 'nangrid' has no attribute {name!r}")


def check(model: Any, dataset: Iterable[Mapping[str, Any]], args: Any = None) -> "list[Finding]":
    """What is wrong with a run before its first step, the gravest first; nothing is trained or changed.

    `dataset`: samples of `input_ids` and maybe `labels` and `attention_mask`. `args`: its TrainingArguments, if any.
    """
    from nangrid.watch import preflight, settings_of

    return preflight(model, dataset, settings_of(args))
