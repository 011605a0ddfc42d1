"""A replay restores modes, buffers, rewritten frozen weights, batches and trainables added later."""

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bare_loop import diagnose, located, train
from torch import Tensor, nn

from nangrid import NonFiniteError, Watch
from nangrid.records.autopsy import read_autopsy
from nangrid.records.errors import InputError, RecordError
from nangrid.watch.state.snapshot import Snapshot

HUGE = 1e22
"""A loss whose gradients are finite while their norm is not."""


class Student(nn.Module):
    """A frozen teacher follows the student at every forward pass; the backbone may be left in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
        self.head, self.teacher = nn.Linear(4, 1), nn.Linear(4, 1).requires_grad_(False)

    def forward(self, x: Tensor, scale: float) -> Tensor:
        with torch.no_grad():
            self.teacher.weight.lerp_(self.head.weight, 0.3)
        hidden = self.backbone(x)
        return (self.head(hidden) - self.teacher(hidden) + 1.0) * scale


def plain(model: nn.Module, batches: list[Any]) -> list[float]:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss = model(*batch).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("backbone_trains", [True, False])
def test_a_run_with_a_frozen_step_equals_an_unwatched_run(backbone_trains: bool, tmp_path: Path) -> None:
    x = torch.ones(2, 4)
    batches = [(x, 1.0), (x, HUGE), (x, 1.0), (x, 1.0)]
    losses = []
    for run in (plain, lambda m, b: train(m, b, tmp_path, torch.sum, max_grad_norm=1.0)):
        torch.manual_seed(0)
        model = Student()
        model.backbone.train(backbone_trains)
        losses.append(run(model, batches))
        assert model.backbone.training == backbone_trains
    assert losses[0] == losses[1]


def test_what_a_closure_counts_is_not_counted_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, calls = nn.Linear(4, 1), []
    watch = Watch(model, torch.optim.SGD(model.parameters(), lr=1e-3), tmp_path, max_grad_norm=1.0)

    def closure(scale: float) -> Tensor:
        calls.append(scale)
        loss = (model(torch.ones(2, 4)) * scale).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with caplog.at_level(logging.WARNING):
        for scale in (1.0, HUGE, 1.0):
            watch.step(closure, scale)
    assert calls == [1.0, HUGE, 1.0]
    assert "step 1 is frozen" in caplog.text
    with pytest.warns(UserWarning, match="infinite-norm-freeze"):
        watch.close()
    assert (tmp_path / "frozen" / "autopsy.json").exists()


class Scaled(nn.Module):
    """A buffer is rewritten in different ways, and finally used as a divisor."""

    def __init__(self, write: Callable[["Scaled"], None]) -> None:
        super().__init__()
        self.layer, self.write = nn.Linear(4, 4), write
        self.register_buffer("left", torch.tensor(5.0))
        self.length = 4
        self.register_buffer("cache", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        self.write(self)
        if x.shape[-2] > self.length:
            self.length = x.shape[-2]
            self.register_buffer("cache", torch.ones(self.length))
        out: Tensor = self.layer(x) * self.cache[: x.shape[-2], None]
        return out / self.left * (self.left != 0) if self.left > 0 else out * 0 / self.left


def assign(model: Scaled) -> None:
    model.left = model.left - 1


def through_data(model: Scaled) -> None:
    model.left.data.sub_(1)


@pytest.mark.parametrize("write", [assign, through_data])
def test_a_buffer_is_as_it_was_before_the_step(write: Callable[[Scaled], None], tmp_path: Path) -> None:
    batches = [torch.ones(1, 4, 4)] * 4 + [torch.ones(1, 9, 4)]
    autopsy = diagnose(Scaled(write), batches, tmp_path)
    assert (autopsy.step, *located(autopsy)) == (4, "forward", "invalid", "aten.div.Tensor")


class Rooted(nn.Module):
    """A loss function with its own trainable scale."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, out: Tensor) -> Tensor:
        return out.pow(2).mean() + self.scale.sqrt().sum()


def test_parameters_of_a_loss_function_are_watched(tmp_path: Path) -> None:
    model, criterion = nn.Linear(4, 1), Rooted()
    optimizer = torch.optim.SGD([*model.parameters(), *criterion.parameters()], lr=1e-3)
    autopsy = diagnose(model, [torch.ones(2, 4)], tmp_path, criterion, optimizer)
    assert (autopsy.clock, autopsy.node) == ("gradient", "SqrtBackward0")
    assert autopsy.parameters == ["the optimizer's parameter 2"]


def test_a_layer_unfrozen_later_is_watched(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    calls: list[int] = []

    def loss_of(out: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 1:
            model[0].requires_grad_(True)
        return (out - out.detach()).sqrt().sum() if len(calls) > 2 else out.sum()

    autopsy = diagnose(model, [torch.ones(2, 4)] * 3, tmp_path, loss_of, optimizer)
    assert autopsy.step == 2 and set(autopsy.parameters) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_the_first_update_of_an_unfrozen_layer_is_replayed_from_before_it(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    groups = [{"params": list(model[0].parameters()), "lr": 1e38}, {"params": list(model[1].parameters())}]
    optimizer = torch.optim.SGD(groups, lr=1e-3)
    calls: list[int] = []

    def thaw(module: nn.Module, args: Any) -> None:
        calls.append(1)
        model[0].requires_grad_(len(calls) > 1)  # in the very step

    model.register_forward_pre_hook(thaw)
    autopsy = diagnose(model, [torch.ones(2, 4)] * 3, tmp_path, lambda out: out.sum() * 100, optimizer)
    assert (autopsy.step, autopsy.clock, autopsy.phase) == (1, "parameter", "optimizer")


def test_a_replay_that_raises_hides_no_onset(tmp_path: Path) -> None:
    model, calls = nn.Linear(4, 1), []

    def loss_of(out: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise KeyError("labels")
        return out.sum() / 0

    with pytest.raises(NonFiniteError, match=r"loss went non-finite at step 0\nstep 0 could not be replayed: KeyError"):
        train(model, [torch.ones(2, 4)], tmp_path, loss_of)
    assert Snapshot.load(tmp_path).step == 0


class Normalised(nn.Module):
    """Observations divided by their spread, which is zero if all are equal."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Any:
        scores = torch.zeros(2).masked_fill(torch.tensor([True, False]), float("-inf")).softmax(0)
        return self.layer((x - x.mean(0)) / x.std(0)) * scores.sum()


def guarded(out: Tensor) -> Tensor:
    loss = out.pow(2).mean()
    if not torch.isfinite(loss):
        raise FloatingPointError("loss is nan")
    return loss


def of_a_policy(out: Tensor) -> Tensor:
    policy = torch.distributions.Normal(out, 1.0, validate_args=True)
    return -policy.log_prob(policy.sample()).mean()


def of_another_kind(out: Tensor) -> Tensor:
    raise FloatingPointError("nothing to do with it")


@pytest.mark.parametrize(("loss_of", "error"), [(guarded, FloatingPointError), (of_a_policy, ValueError)])
def test_a_guard_in_the_closure_gets_a_note_with_the_origin(
    loss_of: Callable[[Tensor], Tensor], error: type[Exception], tmp_path: Path
) -> None:
    batches = [torch.randn(5, 3), torch.ones(5, 3)]
    with pytest.raises(error) as raised:
        train(Normalised(), batches, tmp_path, loss_of)
    (note,) = raised.value.__notes__
    assert "a number was already non-finite:\norigin: aten.div.Tensor" in note and "self 0, other 0" in note
    autopsy = read_autopsy(tmp_path)
    assert autopsy is not None and (autopsy.step, autopsy.clock, autopsy.reproduced) == (1, "raised", True)


def test_an_unrelated_exception_gets_no_note(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError) as raised:
        train(Normalised(), [torch.ones(5, 3)], tmp_path, of_another_kind)
    assert not hasattr(raised.value, "__notes__") and read_autopsy(tmp_path) is None


@dataclass
class Sample:
    """A batch type that no snapshot can save."""

    x: Tensor


def test_a_batch_that_cannot_be_saved_is_still_replayed(tmp_path: Path) -> None:
    autopsy = diagnose(
        nn.Linear(4, 1), [{"input": torch.zeros(2, 4)}], tmp_path / "dict", lambda out: (out * 0).log().sum()
    )
    assert autopsy.reproduced

    def loss_of(out: Any) -> Tensor:
        return (out.x * 0).log().sum()

    class Wrapped(nn.Linear):
        def forward(self, input: Any) -> Any:
            return Sample(super().forward(input.x))

    autopsy = diagnose(Wrapped(4, 1), [Sample(torch.ones(2, 4))], tmp_path / "own", loss_of)
    assert autopsy.mechanism == "log-of-zero"
    with pytest.raises(RecordError, match="is a Sample, which cannot be saved: pass tensors or numbers"):
        Snapshot.load(tmp_path / "own")


def test_a_closure_may_pop_labels_from_its_batch(tmp_path: Path) -> None:
    model = nn.Linear(4, 1)
    watch = Watch(model, torch.optim.SGD(model.parameters(), lr=1e-3), tmp_path)

    def closure(batch: dict[str, Any]) -> Tensor:
        labels = batch.pop("labels")
        loss = (model(**batch) * labels).sum() / labels.sum()
        loss.backward()
        return loss

    with pytest.raises(NonFiniteError) as raised:
        watch.step(closure, {"input": torch.ones(2, 4), "labels": torch.zeros(2, 1)})
    assert raised.value.autopsy is not None and raised.value.autopsy.reproduced
    assert set(Snapshot.load(tmp_path).micro_batches[0].inputs) == {"input", "labels"}


def test_numbers_of_every_kind_are_saved(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(1e-3))
    watch = Watch(model, optimizer, tmp_path)
    batch = {"x": np.array([0.5, np.nan]), "ids": np.array([3, 7], dtype=np.uint16), "n": np.int64(5), "name": "a"}

    def closure(given: dict[str, Any]) -> Tensor:
        loss = model(torch.from_numpy(given["x"]).float()[:, None]).sum()
        loss.backward()
        return loss

    with pytest.raises(NonFiniteError):
        watch.step(closure, batch)
    (kept,) = Snapshot.load(tmp_path).micro_batches
    np.testing.assert_array_equal(kept.inputs["x"], batch["x"])
    np.testing.assert_array_equal(kept.inputs["ids"], batch["ids"])
    assert kept.inputs["ids"].dtype == np.uint16 and (kept.inputs["n"], kept.inputs["name"]) == (5, "a")


def test_complex_parameters_are_watched(tmp_path: Path) -> None:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.irfft(torch.fft.rfft(x) * self.weight)

    assert len(train(Spectral(), [torch.ones(2, 4)] * 3, tmp_path)) == 3


def test_unsupported_optimizers_and_schedulers_are_rejected(tmp_path: Path) -> None:
    model = nn.Linear(4, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match="LBFGS runs its closure several times"):
        Watch(model, torch.optim.LBFGS(model.parameters()), tmp_path)
    with pytest.raises(InputError, match="step it yourself"):
        Watch(model, sgd, tmp_path, scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau(sgd))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lazy = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(InputError, match="lazy parameters"):
        Watch(lazy, sgd, tmp_path)


def test_an_optimizer_that_cannot_train_the_model_is_rejected(tmp_path: Path) -> None:
    frozen = nn.Linear(4, 1).requires_grad_(False)
    with pytest.raises(InputError, match="nothing would be trained"):
        Watch(frozen, torch.optim.SGD(frozen.parameters(), lr=0.1), tmp_path)
    meta = nn.Linear(4, 1, device="meta")
    with pytest.raises(InputError, match="meta device"):
        Watch(meta, torch.optim.SGD(meta.parameters(), lr=0.1), tmp_path)


@pytest.mark.parametrize(("loss", "said"), [(None, "a NoneType"), (1.5, "a float"), (torch.ones(2), r"shape \[2\]")])
def test_a_closure_that_returns_no_loss_is_rejected(loss: Any, said: str, tmp_path: Path) -> None:
    model = nn.Linear(4, 1)
    watch = Watch(model, torch.optim.SGD(model.parameters(), lr=0.1), tmp_path)
    with pytest.raises(InputError, match=f"The closure returned .*{said}"):
        watch.step(lambda: loss)


@pytest.mark.parametrize("wrong", ["no backward pass", "no_grad", "the optimizer of another model"])
def test_a_step_that_trains_nothing_is_warned_of_once(
    wrong: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, other = nn.Linear(4, 1), nn.Linear(4, 1)
    trained = other if wrong == "the optimizer of another model" else model
    watch = Watch(model, torch.optim.SGD(trained.parameters(), lr=0.1), tmp_path)

    def closure() -> Tensor:
        with torch.set_grad_enabled(wrong != "no_grad"):
            loss: Tensor = model(torch.ones(2, 4)).sum()
        if trained is other:
            loss.backward()
        return loss

    for _ in range(3):
        watch.step(closure)
    assert [message[:46] for message in caplog.messages] == ["no parameter of the optimizer has a gradient i"]


def test_an_optimizer_of_float32_copies_is_watched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Linear(4, 1).bfloat16()
    copies = [p.detach().float() for p in model.parameters()]
    watch = Watch(model, torch.optim.SGD(copies, lr=0.1), tmp_path)

    def closure() -> Tensor:
        loss: Tensor = model(torch.ones(2, 4, dtype=torch.bfloat16)).sum()
        loss.backward()
        for copy, p in zip(copies, model.parameters(), strict=True):
            copy.grad, p.grad = p.grad.float(), None
        return loss

    assert all(torch.isfinite(watch.step(closure)) for _ in range(2)) and caplog.messages == []
