"""Where is a run shown while it trains, apart from its records?"""

from nangrid.tracking.wandb_run import Run, open_run

__all__ = ["Run", "open_run"]
