"""nangrid: what made a fine-tuning run go NaN, where the first non-finite number arose, what cures it."""

from typing import Any

__all__ = ["NonFiniteError", "Watch"]


def __getattr__(name: str) -> Any:
    # Commands that only read records must not wait for torch.
    if name in __all__:
        from nangrid import watch

        return getattr(watch, name)
    raise AttributeError(f"module 'nangrid' has no attribute {name!r}")
