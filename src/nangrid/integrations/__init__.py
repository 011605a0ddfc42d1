"""The watch on other people's training loops."""

from nangrid.records.errors import requiring

with requiring("nangrid.integrations", "grid"):
    from nangrid.integrations.headroom import HeadroomCallback
    from nangrid.integrations.start_from import train_from
    from nangrid.integrations.trainer import TrainerStep, TrainerWatch, watch_trainer
    from nangrid.watch.state.optimizers import unwrapped

__all__ = ["HeadroomCallback", "TrainerStep", "TrainerWatch", "train_from", "unwrapped", "watch_trainer"]
