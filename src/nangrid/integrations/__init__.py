"""The watch on other people's training loops."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nangrid.records.errors import requiring

if TYPE_CHECKING:
    from nangrid.integrations.headroom import HeadroomCallback
    from nangrid.integrations.lightning import LightningWatch
    from nangrid.integrations.start_from import train_from
    from nangrid.integrations.trainer import TrainerStep, TrainerWatch, watch_trainer

__all__ = ["HeadroomCallback", "LightningWatch", "TrainerStep", "TrainerWatch", "train_from", "watch_trainer"]

_MODULES = {"HeadroomCallback": "headroom", "LightningWatch": "lightning", "train_from": "start_from"}


def __getattr__(name: str) -> Any:
    # Imported on first use: the watch of Lightning needs no transformers, and that of transformers no Lightning.
    if name not in __all__:
        raise AttributeError(f"module 'nangrid.integrations' has no attribute {name!r}")
    module = f"nangrid.integrations.{_MODULES.get(name, 'trainer')}"
    if name == "LightningWatch":
        return getattr(import_module(module), name)
    with requiring("nangrid.integrations", "grid"):
        return getattr(import_module(module), name)
