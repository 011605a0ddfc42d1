"""The loops of spread_libraries.py with DeepSpeed's ZeRO 1 and 2."""

import os
import sys
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
from accelerate import DeepSpeedPlugin
from spread_libraries import found_by_ranks, use
from two_ranks import note

CONFIGURATION = {
    "zero_optimization": {"stage": 2},
    "zero_allow_untested_optimizer": True,
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
}

if __name__ == "__main__":
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled
    use("DEEPSPEED")
    plugin = DeepSpeedPlugin(zero_stage=1, gradient_accumulation_steps=2, gradient_clipping=1.0)
    note(found_by_ranks(Path(sys.argv[1]), {"deepspeed_plugin": plugin}, deepspeed=CONFIGURATION))
