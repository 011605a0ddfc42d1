"""Where is a run shown while it trains, apart from its records?"""

from nangrid.tracking.wandb_run import NoRun, Run, open_run

__all__ = ["NoRun", "Run", "open_run"]
