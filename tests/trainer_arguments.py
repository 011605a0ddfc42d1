"""Arguments of a short run of a Trainer that writes nothing but where it is told, of transformers or TRL."""

from pathlib import Path
from typing import Any


def arguments(out: Path, **changes: Any) -> dict[str, Any]:
    return {
        "output_dir": str(out / "out"),
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        **changes,
    }
