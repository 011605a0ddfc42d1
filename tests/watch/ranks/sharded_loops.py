"""Loops over a model that fully_shard (FSDP2) has spread over two ranks; the fault is on rank 1."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from faults import give_batches, ones, weight_decay, without_labels, zero_input
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from two_ranks import ending, note

from nangrid import Watch


class Scene:
    """A sharded model, and six batches of each rank's own."""

    def __init__(self, policy: MixedPrecisionPolicy | None = None) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 3, bias=False))
        for part in (self.model[2], self.model):
            fully_shard(part, mp_policy=policy or MixedPrecisionPolicy())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        give_batches(self)

    def train(self, batches: Callable[[Any], Any]) -> None:
        for number, (x, y) in enumerate(batches(list(zip(self.inputs, self.labels, strict=True)))):
            out = self.model(torch.log(x))
            # The slope of a root is infinite at 0.
            loss = nn.functional.cross_entropy(out, y) + (torch.log(x).sum() * out.mean()).pow(2).sqrt()
            self.losses.append(loss.item())
            loss.backward()
            if number % 2 == 1:
                nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
                self.optimizer.zero_grad()


class ScaledScene(Scene):
    """Trains with a GradScaler."""

    def train(self, batches: Callable[[Any], Any]) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for x, y in batches(list(zip(self.inputs, self.labels, strict=True))):
            out = self.model(torch.log(x))
            loss = nn.functional.cross_entropy(out, y) + (torch.log(x).sum() * out.mean()).pow(2).sqrt()
            self.losses.append(loss.item())
            self.optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(self.optimizer)
            scaler.update()


def healthy(folder: Path) -> bool:
    """Whether the watch leaves every bit of a finite run alone."""
    found: list[list[Tensor]] = []
    for watched in (True, False):
        scene = Scene()
        watch = Watch(scene.model, scene.optimizer, folder) if watched else None
        scene.train(watch.batches if watch else iter)
        weights = [parameter.to_local() for parameter in scene.model.parameters()]
        found.append([torch.tensor(scene.losses), *weights])
    return all(map(torch.equal, *found)) and not folder.exists()


def stopped(scene: Scene, fault: Callable[[Scene], None], folder: Path) -> dict[str, Any]:
    """How a loop ends."""
    fault(scene)
    watch = Watch(scene.model, scene.optimizer, folder)
    return ending(lambda: scene.train(watch.batches))


if __name__ == "__main__":
    dist.init_process_group("gloo")
    folder = Path(sys.argv[1])
    found: dict[str, Any] = {"healthy": healthy(folder / "healthy")}
    for fault in (zero_input, ones, without_labels, weight_decay):
        found[fault.__name__] = stopped(Scene(), fault, folder / fault.__name__)
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    found["scaled"] = stopped(ScaledScene(), ones, folder / "scaled")
    found["half"] = stopped(Scene(half), ones, folder / "half")
    note(found)
