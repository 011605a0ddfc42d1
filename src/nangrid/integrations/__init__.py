"""The watch on other people's training loops."""

from nangrid.integrations.trainer import TrainerWatch, unwrapped, watch_trainer

__all__ = ["TrainerWatch", "unwrapped", "watch_trainer"]
