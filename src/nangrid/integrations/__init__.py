"""The watch on other people's training loops."""

from nangrid.integrations.trainer import TrainerStep, TrainerWatch, unwrapped, watch_trainer

__all__ = ["TrainerStep", "TrainerWatch", "unwrapped", "watch_trainer"]
