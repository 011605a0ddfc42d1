"""Loops of DistributedDataParallel, as torchrun runs them on two ranks; the fault is on rank 1."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from faults import BAD, give_batches, ones, without_labels, zero_input
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel
from two_ranks import ending, note

from nangrid import Watch

Batches = Callable[[Any], Iterator[Any]]


class Scene:
    """Two replicas of a model, and six batches of each rank's own."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = DistributedDataParallel(
            nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.BatchNorm1d(8), nn.Linear(8, 3))
        )
        self.critic = DistributedDataParallel(nn.Linear(3, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.critics = torch.optim.SGD(self.critic.parameters(), lr=1e-2)
        give_batches(self)

    @property
    def data(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.inputs, self.labels, strict=True))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The logarithm of 0 is infinite, and the slope of a root at 0."""
        return self.loss_of(self.model(torch.log(x)), x, y)

    def loss_of(self, out: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(out, y) + (torch.log(x).sum() * out.mean()).pow(2).sqrt()


def accumulating(batches: Batches, s: Scene) -> None:
    for number, (x, y) in enumerate(batches(s.data)):
        steps = number % 2 == 1
        with nullcontext() if steps else s.model.no_sync():
            loss = s.loss(x, y) / 2
            s.losses.append(loss.item())
            loss.backward()
        shown = loss.detach().clone()
        dist.all_reduce(shown)
        if steps:
            nn.utils.clip_grad_norm_(s.model.parameters(), 1.0)
            s.optimizer.step()
            s.optimizer.zero_grad()


def plain(batches: Batches, s: Scene) -> None:
    for x, y in batches(s.data):
        s.optimizer.zero_grad()
        loss = s.loss(x, y)
        loss.backward()
        s.optimizer.step()


def scaled(batches: Batches, s: Scene) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for x, y in batches(s.data):
        s.optimizer.zero_grad()
        scaler.scale(s.loss(x, y)).backward()
        scaler.step(s.optimizer)
        scaler.update()


def two_optimizers(batches: Batches, s: Scene) -> None:
    for x, y in batches(s.data):
        out = s.model(torch.log(x))
        s.critics.zero_grad()
        s.critic(out.detach()).pow(2).mean().backward()
        s.critics.step()
        s.optimizer.zero_grad()
        (s.loss_of(out, x, y) + s.critic(out).mean()).backward()
        s.optimizer.step()


def weight_decay(s: Scene) -> None:
    """The update overflows on both ranks, which train on the same gradients."""
    s.optimizer.param_groups[0].update(lr=100.0, weight_decay=3e38)


def half_the_bits(s: Scene) -> None:
    """Gradients that float32 holds and float16 does not."""
    s.model.register_comm_hook(None, fp16_compress_hook)
    if s.rank == 1:
        s.inputs[BAD].fill_(1e-30)
        s.model.module[3].weight.data.mul_(1e6)


def kill(s: Scene) -> None:
    """Rank 1 is killed in the second forward pass: while both ranks look for the failure of the first."""
    s.inputs[0].fill_(torch.nan)
    calls = count(1)

    def forward(*_: Any) -> None:
        if next(calls) == 2 and s.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    s.model.module[0].register_forward_pre_hook(forward)


def healthy(folder: Path) -> bool:
    """Whether the watch leaves every bit of a finite run alone."""
    found = []
    for watched in (True, False):
        scene = Scene()
        watch = Watch(scene.model, scene.optimizer, folder) if watched else None
        accumulating(watch.batches if watch else iter, scene)
        found.append([torch.tensor(scene.losses), *scene.model.state_dict().values()])
    return all(map(torch.equal, *found)) and not folder.exists()


def stopped(loop: Callable[[Batches, Scene], None], fault: Callable[[Scene], None], folder: Path) -> dict[str, Any]:
    """How a loop ends."""
    scene = Scene()
    fault(scene)
    several = loop is two_optimizers
    models = [scene.model, scene.critic] if several else scene.model
    watch = Watch(models, [scene.optimizer, scene.critics] if several else scene.optimizer, folder)
    return ending(lambda: loop(watch.batches, scene))


def closure(folder: Path) -> dict[str, Any]:
    scene = Scene()
    ones(scene)
    watch = Watch(scene.model, scene.optimizer, folder)

    def backward(batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = scene.loss(*batch)
        loss.backward()
        return loss

    return ending(lambda: [watch.step(backward, batch) for batch in scene.data])


if __name__ == "__main__":
    dist.init_process_group("gloo")
    folder = Path(sys.argv[1])
    found: dict[str, Any] = {"healthy": healthy(folder / "healthy"), "closure": closure(folder / "closure")}
    for loop, fault in (
        (plain, without_labels),
        (accumulating, zero_input),
        (plain, ones),
        (plain, weight_decay),
        (two_optimizers, ones),
        (scaled, ones),
        (plain, half_the_bits),
    ):
        name = f"{loop.__name__}_{fault.__name__}"
        found[name] = stopped(loop, fault, folder / name)
    note(found)
    found["killed"] = stopped(plain, kill, folder / "killed")
    note(found)
