"""Loops over an engine of DeepSpeed (ZeRO 1 and 2) on two ranks; the fault is on rank 1."""

import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
import torch
import torch.distributed as dist
from faults import give_batches, ones, weight_decay, without_labels, zero_input
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from two_ranks import ending, note

from nangrid import Watch
from nangrid.records.errors import InputError
from nangrid.watch.ledger import read_optimizer

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "deepspeed_loop.py"


class Scene:
    """A model in an engine, and six batches of each rank's own."""

    def __init__(
        self,
        stage: int = 2,
        dtype: str = "",
        zero: dict[str, Any] | None = None,
        last_layer: bool = False,
        **of_dtype: Any,
    ) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 3, bias=False))
        trained = model[2] if last_layer else model
        self.optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-2)
        configuration = {
            "train_micro_batch_size_per_gpu": 4,
            "gradient_accumulation_steps": 2,
            "gradient_clipping": 1.0,
            "zero_optimization": {"stage": stage, **(zero or {})},
            "zero_allow_untested_optimizer": True,
        }
        if dtype:
            configuration[dtype] = {"enabled": True, **of_dtype}
        self.engine, *_ = deepspeed.initialize(model=model, optimizer=self.optimizer, config=configuration)
        give_batches(self)

    def train(self, batches: Callable[[Any], Any]) -> None:
        for x, y in batches(list(zip(self.inputs, self.labels, strict=True))):
            out = self.engine(torch.log(x).to(self.engine.module[0].weight.dtype)).float()
            # The slope of a root is infinite at 0.
            loss = nn.functional.cross_entropy(out, y) + (torch.log(x).sum() * out.mean()).pow(2).sqrt()
            self.losses.append(loss.item())
            self.engine.backward(loss)
            self.engine.step()


def healthy(folder: Path, **how: Any) -> bool:
    """Whether the watch leaves every bit of a finite run alone."""
    found: list[list[Tensor]] = []
    for watched in (True, False):
        scene = Scene(**how)
        watch = Watch(scene.engine, scene.optimizer, folder) if watched else None
        scene.train(watch.batches if watch else iter)
        found.append([torch.tensor(scene.losses), *scene.engine.module.parameters()])
        if watch:
            ledger: Any = SimpleNamespace()
            read_optimizer(watch.inspector.step.optimizer, ledger)
            assert ledger.optimizer_state == "float32"
    return all(map(torch.equal, *found)) and not folder.exists()


def stopped(scene: Scene, fault: Callable[[Scene], None], folder: Path, snapshot: str = "full") -> dict[str, Any]:
    """How a loop ends."""
    fault(scene)
    watch = Watch(scene.engine, scene.optimizer, folder, snapshot=snapshot)
    return ending(lambda: scene.train(watch.batches))


def refused(**how: Any) -> str:
    """Why a Watch of such an engine is refused."""
    scene = Scene(**how)
    try:
        Watch(scene.engine, scene.optimizer)
    except InputError as error:
        return str(error)
    return ""


def example(folder: Path) -> dict[str, Any]:
    """The example of the guide, as it is, with parameters in two groups; a sample of rank 1 is negative."""
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    nn.init.constant_(model.weight, 0.5)
    inputs = torch.rand(24, 3) + 1
    inputs[[6, 7]] = -2  # one of them is in rank 1's second batch
    configuration = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
        "zero_optimization": {"stage": 2},
    }
    train = runpy.run_path(str(EXAMPLE))["train"]
    return ending(lambda: train(model, TensorDataset(inputs, torch.rand(24, 3)), configuration))


if __name__ == "__main__":
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled
    dist.init_process_group("gloo")
    folder = Path(sys.argv[1])
    found: dict[str, Any] = {
        f"healthy{stage}": healthy(folder / f"healthy{stage}", stage=stage, dtype="bf16" if stage == 1 else "")
        for stage in (1, 2)
    }
    for fault in (zero_input, ones, without_labels, weight_decay):
        found[fault.__name__] = stopped(Scene(), fault, folder / fault.__name__)
        found["half_" + fault.__name__] = stopped(Scene(1, "bf16"), fault, folder / ("half_" + fault.__name__))
    found["part_zero_input"] = stopped(Scene(last_layer=True), zero_input, folder / "part_zero_input")
    found["light"] = stopped(Scene(), weight_decay, folder / "light", snapshot="light")
    found["light_zero_input"] = stopped(Scene(), zero_input, folder / "light_zero_input", snapshot="light")
    deepspeed.get_accelerator().is_fp16_supported = lambda: True  # it is, but slow
    found["fp16_ones"] = stopped(Scene(2, "fp16", initial_scale_power=4), ones, folder / "fp16_ones")
    scene = Scene(2, "fp16", initial_scale_power=4)
    found["light_fp16_ones"] = stopped(scene, ones, folder / "light_fp16_ones", snapshot="light")
    found["fp16_searching"] = healthy(folder / "fp16_searching", dtype="fp16")
    found["refused"] = [
        refused(stage=0),
        refused(stage=3),
        refused(zero={"round_robin_gradients": True}),
        refused(dtype="fp16", loss_scale=8.0),
    ]
    found["example"] = example(folder / "example")
    note(found)
