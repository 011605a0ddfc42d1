"""Each clock trips at its own step, finite runs trip none, and frozen runs are distinguished from NaN ones."""

import math

import pytest
import torch
from torch import nn

from nangrid.records.cell import Onset
from nangrid.watch import Clocks


def step(clocks: Clocks, model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, clip: float) -> None:
    clocks.begin(len(clocks.readings))
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    clocks.micro_batch(loss)
    clocks.gradients()
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
    clocks.reading.grad_norm = norm.item()
    optimizer.step()
    clocks.updated(optimizer, before)


def watched(model: nn.Module) -> Clocks:
    return Clocks(dict(model.named_parameters()))


def test_finite_run_trips_no_clock_and_records_magnitudes() -> None:
    model = nn.Linear(3, 2)
    clocks, optimizer = watched(model), torch.optim.SGD(model.parameters(), lr=0.5)
    before = model.weight.detach().clone()
    step(clocks, model, optimizer, torch.ones(4, 3), clip=1e9)
    assert clocks.onset is None and not clocks.done
    assert clocks.without_gradient == []
    largest = max(p.grad.abs().max().item() for p in model.parameters() if p.grad is not None)
    assert clocks.reading.max_gradient == pytest.approx(largest)
    assert clocks.reading.max_update >= (model.weight - before).abs().max().item()


def test_infinite_gradient_of_a_finite_loss_trips_before_the_parameters() -> None:
    weight = nn.Parameter(torch.ones(2))
    clocks, optimizer = Clocks({"weight": weight}), torch.optim.SGD([weight], lr=0.1)
    clocks.begin(0)
    loss = (weight - weight.detach()).sqrt().sum()  # 0, with an infinite slope
    loss.backward()
    clocks.micro_batch(loss)
    clocks.gradients()
    optimizer.step()
    clocks.updated(optimizer, [torch.ones(2)])
    assert clocks.onset == Onset(0, "gradient")
    assert clocks.reading.nonfinite["gradient"] == 2
    assert clocks.first["parameter"] == 0
    assert clocks.first["loss"] is None


def test_zero_over_zero_in_the_optimizer_is_a_parameter_onset_and_the_loss_follows() -> None:
    embedding = nn.Embedding(4, 8, dtype=torch.float16)
    model = nn.Sequential(embedding)
    clocks = watched(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-8)  # eps is 0 in float16
    step(clocks, model, optimizer, torch.tensor([0, 1]), clip=1e9)
    assert clocks.onset == Onset(0, "parameter")
    assert clocks.first["loss"] is None and not clocks.done
    step(clocks, model, optimizer, torch.tensor([2, 3]), clip=1e9)
    assert clocks.first["loss"] == 1
    assert clocks.done


def test_infinite_norm_over_finite_gradients_is_frozen_and_not_an_onset() -> None:
    model = nn.Linear(4, 1, bias=False)
    clocks, optimizer = watched(model), torch.optim.SGD(model.parameters(), lr=0.1)
    nn.init.ones_(model.weight)
    step(clocks, model, optimizer, torch.ones(1, 4), clip=1.0)
    for _ in range(2):
        clocks.begin(len(clocks.readings))
        optimizer.zero_grad()
        (model.weight.sum() * 3e38).backward()
        clocks.micro_batch(torch.tensor(1.0))
        clocks.gradients()
        clocks.reading.grad_norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step()
        clocks.updated(optimizer, before)
    assert clocks.onset is None
    assert clocks.frozen_from == 1
    assert clocks.reading.max_update == 0.0


def test_run_that_recovers_is_not_frozen() -> None:
    clocks = watched(nn.Linear(1, 1))
    for norm in (math.inf, 1.0):
        clocks.begin(len(clocks.readings))
        clocks.reading.grad_norm = norm
    assert clocks.frozen_from is None


def test_trainable_without_a_gradient_is_named() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Linear(2, 2)})
    clocks = Clocks(dict(model.named_parameters()))
    clocks.begin(0)
    model["used"](torch.ones(1, 2)).sum().backward()
    clocks.gradients()
    assert clocks.without_gradient == ["idle.weight", "idle.bias"]


def test_evaluation_loss_trips_its_own_clock() -> None:
    clocks = watched(nn.Linear(1, 1))
    clocks.begin(0)
    clocks.evaluated(math.nan)
    assert clocks.onset == Onset(0, "eval_loss")


def test_update_that_overflows_only_as_a_float16_difference_is_no_onset() -> None:
    weight = nn.Parameter(torch.tensor([-60000.0], dtype=torch.float16))
    clocks = Clocks({"weight": weight})
    clocks.begin(0)
    with torch.no_grad():
        weight.fill_(60000.0)
    clocks.updated(torch.optim.SGD([weight], lr=1.0), [torch.tensor([-60000.0], dtype=torch.float16)])
    assert clocks.onset is None


def test_run_stops_three_steps_after_an_onset_that_never_reaches_the_loss() -> None:
    clocks = watched(nn.Linear(1, 1))
    done = []
    for number in range(5):
        clocks.begin(number)
        clocks.micro_batch(torch.tensor(1.0))
        if number == 1:
            clocks.evaluated(math.inf)
        done.append(clocks.done)
    assert done == [False, False, False, False, True]


def test_sparse_gradients_are_watched() -> None:
    embedding = nn.Embedding(10, 2, sparse=True)
    clocks = Clocks(dict(embedding.named_parameters()))
    clocks.begin(0)
    (embedding(torch.tensor([3])).sum() * math.inf).backward()
    clocks.gradients()
    assert clocks.onset == Onset(0, "gradient")
    assert clocks.reading.nonfinite["gradient"] == 2


def test_infinite_gradients_of_a_searching_scaler_are_not_frozen() -> None:
    """Clipping sees an infinite norm, but the scaler skips the step."""
    clocks = Clocks({"weight": nn.Parameter(torch.ones(2))})
    clocks.begin(0)
    clocks.trainables["weight"].grad = torch.full((2,), math.inf)
    clocks.gradients(ignore_nonfinite=True)
    clocks.reading.grad_norm = math.inf
    assert not clocks.reading.frozen and clocks.onset is None and clocks.frozen_from is None
