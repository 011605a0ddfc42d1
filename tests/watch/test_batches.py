"""watch.batches: loops as people write them, each with a natural fault in forward, backward or optimizer."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nangrid import NonFiniteError, Watch
from nangrid.records.autopsy import Autopsy, read_autopsy

Batches = Callable[[Any], Iterator[Any]]
Loop = Callable[[Batches, "Scene"], None]
FAULTY = {"lr": 100.0, "weight_decay": 3e38}
BAD = 4
"""Index of the batch that a faulty loop fails at."""


class Scene:
    """A model, its optimizer and seven batches, one of which makes a step of the loop fail."""

    def __init__(self, fault: str = "") -> None:
        torch.manual_seed(0)
        self.fault = fault
        self.model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 1))
        self.optimizer: Any = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.inputs = [torch.rand(4, 3) + 0.1 for _ in range(7)]
        self.losses: list[float] = []
        if fault == "forward":
            self.inputs[BAD][1, 2] = 0
        if fault == "backward":
            self.inputs[BAD] = self.inputs[BAD] * 0 + 1

    def loss(self, x: Tensor) -> Tensor:
        """The logarithm of 0 is infinite, and the slope of a root at 0."""
        out = self.model(torch.log(x)).mean()
        return out.pow(2) + ((torch.log(x).sum() * out + 0).pow(2)).sqrt()

    def step(self) -> None:
        """Update; a faulty optimizer has a weight decay that overflows."""
        if self.fault == "optimizer" and len(self.losses) >= BAD:
            self.optimizer.param_groups[0].update(FAULTY)
        self.optimizer.step()


def plain(batches: Batches, s: Scene) -> None:
    for x in batches(s.inputs):
        s.optimizer.zero_grad()
        loss = s.loss(x)
        s.losses.append(loss.item())
        loss.backward()
        nn.utils.clip_grad_norm_(s.model.parameters(), 1.0)
        s.step()


def with_a_scheduler(batches: Batches, s: Scene) -> None:
    scheduler = torch.optim.lr_scheduler.StepLR(s.optimizer, 2, 0.5)
    for number, x in enumerate(batches(s.inputs), 1):
        loss = s.loss(x) / number
        s.losses.append(loss.item())
        loss.backward()
        s.step()
        if s.fault != "optimizer":
            scheduler.step()
        s.optimizer.zero_grad()


def accumulating(batches: Batches, s: Scene) -> None:
    for number, x in enumerate(batches(s.inputs)):
        loss = s.loss(x) / 2
        s.losses.append(loss.item())
        loss.backward()
        if number % 2 == 1 or number == len(s.inputs) - 1:
            s.step()
            s.optimizer.zero_grad()


def by_next(batches: Batches, s: Scene) -> None:
    drawn = iter(batches(s.inputs))
    for number in range(len(s.inputs)):
        s.optimizer.zero_grad()
        x = next(drawn)
        if number == 1:
            continue
        loss = s.loss(x)
        s.losses.append(loss.item())
        loss.backward()
        s.step()


def amp(batches: Batches, s: Scene) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
    for x in batches(s.inputs):
        with torch.autocast("cpu", torch.bfloat16):
            loss = s.loss(x)
        s.losses.append(loss.item())
        s.optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(s.optimizer)
        nn.utils.clip_grad_norm_(s.model.parameters(), 1.0)
        if s.fault == "optimizer" and len(s.losses) > BAD:
            s.optimizer.param_groups[0].update(FAULTY)
        scaler.step(s.optimizer)
        scaler.update()


class Task:
    """A loop in a method, with the loss in another one."""

    def __init__(self, s: Scene) -> None:
        self.s = s
        self.seen = 0

    def fit(self, batches: Batches) -> None:
        for x in batches(self.s.inputs):
            self.training_step(x)
            if self.seen % 3 == 0:
                self.s.model.eval()
                with torch.no_grad():
                    self.s.model(x)
                self.s.model.train()

    def training_step(self, x: Tensor) -> None:
        self.seen += 1
        loss = self.s.loss(x)
        self.s.losses.append(loss.item())
        self.s.optimizer.zero_grad()
        loss.backward()
        self.s.step()


def in_a_class(batches: Batches, s: Scene) -> None:
    Task(s).fit(batches)


def stepping_in_backward(batches: Batches, s: Scene) -> None:
    def step(parameter: nn.Parameter) -> None:
        if s.fault == "optimizer" and len(s.losses) > BAD:
            s.optimizer[0].param_groups[0].update(FAULTY)
        by_parameter[parameter].step()
        by_parameter[parameter].zero_grad()

    by_parameter = dict(zip(s.model.parameters(), s.optimizer, strict=True))
    handles = [p.register_post_accumulate_grad_hook(step) for p in s.model.parameters()]
    for x in batches(s.inputs):
        loss = s.loss(x)
        s.losses.append(loss.item())
        loss.backward()
    for handle in handles:
        handle.remove()


def with_closures(batches: Batches, s: Scene) -> None:
    for x in batches(s.inputs):

        def closure(x: Tensor = x) -> Tensor:
            s.optimizer.zero_grad()
            loss = s.loss(x)
            s.losses.append(loss.item())
            loss.backward()
            return loss

        if s.fault == "optimizer" and len(s.losses) >= BAD:
            s.optimizer.param_groups[0].update(FAULTY)
        s.optimizer.step(closure)


def changing_its_batch(batches: Batches, s: Scene) -> None:
    for x in batches(s.inputs):
        s.optimizer.zero_grad()
        loss = s.loss(x.mul_(2))
        x.div_(0)  # no longer needed
        loss.backward()
        s.step()


LOOPS = [
    plain,
    with_a_scheduler,
    accumulating,
    by_next,
    amp,
    in_a_class,
    stepping_in_backward,
    with_closures,
]
ORIGINS = {
    "forward": ("forward", "aten.log.default"),
    "backward": ("backward", "aten.div.Tensor"),
    "optimizer": ("optimizer", ""),
}


def scene(loop: Loop, fault: str = "") -> Scene:
    s = Scene(fault)
    if loop is stepping_in_backward:
        s.optimizer = [torch.optim.SGD([p], lr=0.05, momentum=0.9) for p in s.model.parameters()]
    return s


def stopped(loop: Loop, s: Scene, out_dir: Path, **options: Any) -> Autopsy:
    """The autopsy of a loop that fails; before the onset its losses equal those of the plain loop, bit by bit."""
    with pytest.raises(NonFiniteError) as raised:
        loop(Watch(s.model, s.optimizer, out_dir, **options).batches, s)
    autopsy = raised.value.autopsy
    assert autopsy is not None and read_autopsy(out_dir) == autopsy
    return autopsy


@pytest.mark.parametrize("fault", ["forward", "backward", "optimizer"])
@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_a_loop_with_a_fault(loop: Loop, fault: str, tmp_path: Path) -> None:
    unwatched = scene(loop, fault)
    loop(iter, unwatched)
    s = scene(loop, fault)
    autopsy = stopped(loop, s, tmp_path)
    assert autopsy.reproduced, autopsy.evidence
    phase, op = ORIGINS[fault]
    assert autopsy.phase == phase and autopsy.op.startswith(op or "aten.")
    assert fault == "optimizer" or autopsy.source.startswith("test_batches.py:")
    assert s.losses[: BAD - 1] == unwatched.losses[: BAD - 1]


def test_a_batch_that_the_loop_changes_is_not_blamed(tmp_path: Path) -> None:
    autopsy = stopped(changing_its_batch, Scene("forward"), tmp_path)
    assert (autopsy.phase, autopsy.op, autopsy.reproduced) == ("forward", "aten.log.default", True)


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_a_healthy_loop_is_not_changed(loop: Loop, tmp_path: Path) -> None:
    unwatched = scene(loop)
    loop(iter, unwatched)
    state, s = torch.get_rng_state(), scene(loop)
    watch = Watch(s.model, s.optimizer, tmp_path)
    loop(watch.batches, s)
    watch.close()
    assert s.losses == unwatched.losses and all(map(math.isfinite, s.losses))
    assert all(map(torch.equal, s.model.parameters(), unwatched.model.parameters()))
    assert torch.equal(state, torch.get_rng_state())
    assert list(tmp_path.iterdir()) == []


def test_a_loop_that_an_exception_left_hears_of_no_later_loop(tmp_path: Path) -> None:
    s = Scene("forward")
    abandoned = Watch(s.model, s.optimizer, tmp_path / "abandoned").batches(s.inputs)
    next(abandoned)  # as in a notebook, where the traceback keeps an interrupted loop alive
    autopsy = stopped(plain, s, tmp_path / "second")
    assert (autopsy.step, autopsy.op, autopsy.reproduced) == (BAD, "aten.log.default", True)
    assert not (tmp_path / "abandoned").exists()


def test_the_experiments_run_the_body_for_a_part_of_its_batch(tmp_path: Path) -> None:
    model, odd = nn.Linear(3, 3), torch.ones(4, 3)
    odd[2] = 1e30
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.raises(NonFiniteError) as raised:
        for x in Watch(model, optimizer, tmp_path).batches([torch.ones(4, 3), odd]):
            optimizer.zero_grad()
            (x * x * model(x)).mean().backward()
            optimizer.step()
    autopsy = raised.value.autopsy
    assert autopsy is not None and autopsy.reproduced and autopsy.op == "aten.mul.Tensor"
    assert autopsy.verdict == "A part of the batch is enough: sample 2 of micro-batch 0."
