"""The inspector for GPUs, run on the CPU: the same results a little later, without synchronising."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from bare_loop import diagnose, squares
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nangrid import NonFiniteError, Watch
from nangrid.records.autopsy import Autopsy
from nangrid.watch.autopsy.examine import Background
from nangrid.watch.deferred import IN_FLIGHT, DeferredInspector
from nangrid.watch.inspector import Inspector
from nangrid.watch.state.tensors import trainables

ONES = torch.ones(2, 8)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr("nangrid.watch.watch.inspector_for", DeferredInspector)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))


def root_at(step: int) -> Callable[[Tensor], Tensor]:
    """A loss whose gradient is infinite at one step only."""
    calls = iter(range(100))
    return lambda out: (out - out.detach()).sqrt().sum() if next(calls) == step else squares(out)


def same_finding(found: Autopsy, other: Autopsy) -> bool:
    keys = ("step", "clock", "phase", "kind", "op", "node", "parameters", "mechanism", "untrained", "inputs")
    return all(getattr(found, key) == getattr(other, key) for key in keys)


def test_a_gradient_is_reported_steps_later_with_its_original_values(tmp_path: Path, late: Callable[[], None]) -> None:
    batches: list[Any] = [ONES, ONES * 2, torch.full((2, 8), 1e30), ONES, ONES, ONES, ONES]
    at_once = diagnose(net(), batches, tmp_path / "at_once", max_grad_norm=1.0)
    late()
    later = diagnose(net(), batches, tmp_path / "later", max_grad_norm=1.0)
    assert at_once.step == 2 and same_finding(later, at_once)


def test_parameters_ruined_by_the_optimizer(tmp_path: Path, late: Callable[[], None]) -> None:
    batches = [torch.tensor([1, 2])] * 5
    at_once = diagnose(nn.Embedding(10, 4).half(), batches, tmp_path / "at_once")
    late()
    later = diagnose(nn.Embedding(10, 4).half(), batches, tmp_path / "later")
    assert at_once.mechanism == "adam-eps-underflow" and later.mechanism == at_once.mechanism
    assert (later.step, later.clock, later.op) == (0, "parameter", at_once.op)


def test_a_loss_that_no_scale_mends_is_reproduced(tmp_path: Path, late: Callable[[], None]) -> None:
    late()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    autopsy = diagnose(net(), [ONES] * 5, tmp_path, lambda out: (out * 0).log().sum(), scaler=scaler)
    assert (autopsy.step, autopsy.clock, autopsy.mechanism) == (0, "loss", "log-of-zero")


@pytest.mark.parametrize("mended", [False, True])
def test_a_nan_loss_over_finite_gradients_counts_unless_the_loop_mended_them(
    mended: bool, tmp_path: Path, late: Callable[[], None]
) -> None:
    """With all labels masked the loss is 0 / 0, and no gradient reaches the model."""
    late()
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    watch, failed = Watch(model, optimizer, tmp_path), False
    try:
        for number, batch in enumerate(watch.batches([ONES] * 5)):
            optimizer.zero_grad()
            out = model(batch)
            loss = squares(out)
            if number == 1:
                loss = (out * 0).log().sum() if mended else out.detach().new_zeros(()) / 0 + 0 * squares(out)
            loss.backward()  # type: ignore[no-untyped-call]
            if mended:
                for parameter in model.parameters():
                    parameter.grad = torch.nan_to_num(parameter.grad, 0.0, 0.0, 0.0)
            optimizer.step()
    except NonFiniteError as error:
        failed = True
        assert error.autopsy is not None and (error.autopsy.step, error.autopsy.clock) == (1, "loss")
    assert failed is not mended


def test_the_last_step_is_checked_on_close(tmp_path: Path, late: Callable[[], None]) -> None:
    late()
    model = net()
    watch = Watch(model, torch.optim.SGD(model.parameters(), 0.1), tmp_path)

    def closure(batch: Tensor) -> Tensor:
        loss = squares(model(batch))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    for batch in (ONES, torch.full((2, 8), 1e30)):
        watch.step(closure, batch)
    with pytest.raises(NonFiniteError) as raised:
        watch.close()
    assert raised.value.autopsy is not None and raised.value.autopsy.step == 1


class Loop:
    """What an inspector needs from a loop."""

    scaler = None

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        self.trainables = trainables(model)

    def forward_backward(self, micro_batch: Any) -> Tensor:
        loss = squares(self.model(micro_batch.inputs if hasattr(micro_batch, "inputs") else micro_batch))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def clip(self) -> Tensor:
        return nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)

    def update(self) -> None:
        self.optimizer.step()


class Waits(TorchDispatchMode):
    """Counts the operations that wait for the device: reading a number from a tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def watched(kind: type[Inspector], steps: int) -> tuple[list[Any], int]:
    """The readings of a healthy run, and how often the inspector's own calls waited for the device."""
    loop = Loop(net())
    inspector, waits, readings = kind(loop, None, Background()), Waits(), []
    for number in range(steps):
        loop.optimizer.zero_grad()
        with waits:
            inspector.begin(number)
            inspector.micro_batch(ONES)
        loss = loop.forward_backward(ONES)
        with waits:
            inspector.loss(loss)
            inspector.gradients()
        norm = loop.clip()
        with waits:
            inspector.norm(norm)
        loop.update()
        with waits:
            inspector.updated()
            readings += inspector.close(1e-2, 0.0)
        assert len(readings) == (number + 1 if kind is Inspector else max(0, number + 1 - IN_FLIGHT))
    return [vars(reading) for reading in readings + inspector.flush()], waits.count


def test_the_same_readings_without_synchronising() -> None:
    at_once, waits = watched(Inspector, 5)
    later, no_waits = watched(DeferredInspector, 5)
    assert later == at_once
    assert waits >= 5 * 4 and no_waits == 0


def test_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    from nangrid.integrations import watch_trainer

    class Regression(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()
            self.calls = iter(range(100))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            out = self.net(x)
            return {"loss": (out - out.detach()).sqrt().sum() if next(self.calls) == 2 else squares(out)}

    monkeypatch.setattr("nangrid.integrations.trainer.inspector_for", DeferredInspector)
    options = {"max_steps": 20, "use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    data = [{"x": torch.randn(8)} for _ in range(40)]
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path / "out"), **options)
    trainer = transformers.Trainer(model=Regression(), args=arguments, train_dataset=data)
    steps: list[int] = []
    watch = watch_trainer(trainer, tmp_path / "autopsy", on_step=lambda reading: steps.append(reading.step))
    trainer.train()
    assert watch.clocks.onset is not None and watch.clocks.onset.step == 2 == watch.inspector.autopsy.step
    assert steps == list(range(len(steps))) and len(steps) == trainer.state.global_step < 10


def scaled_losses(out_dir: Path | None, fused: bool, scale: float, bad: int = -1) -> tuple[list[Tensor], int]:
    """The losses of a loop with a GradScaler, and how often it waited for the device; step `bad` fails."""
    model, scaler, waits = net(), torch.amp.GradScaler("cpu", init_scale=scale), Waits()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
    data: Iterable[Tensor] = [ONES * (1 + number) for number in range(8)]
    losses = []
    if out_dir:
        data = Watch(model, optimizer, out_dir).batches(data)
    with waits:
        for number, x in enumerate(data):
            optimizer.zero_grad()
            loss = squares(model(x)) + (model(x) * float(number != bad)).abs().sum().log() * float(bad >= 0)
            losses.append(loss.detach())
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
    return losses, waits.count


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scale", [8.0, 2.0**127], ids=["found", "searching"])
@pytest.mark.parametrize("is_late", [False, True])
def test_healthy_loop_with_a_scaler(
    is_late: bool, scale: float, fused: bool, tmp_path: Path, late: Callable[[], None]
) -> None:
    if is_late:
        late()
    plain, waits = scaled_losses(None, fused, scale)
    watched, all_waits = scaled_losses(tmp_path / "records", fused, scale)
    assert torch.equal(torch.stack(plain), torch.stack(watched)) and not (tmp_path / "records").exists()
    assert all_waits == waits or not is_late or scale > 8, "a late inspector waits for skipped steps alone"


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("is_late", [False, True])
def test_step_that_a_scaler_skips_at_every_scale(
    is_late: bool, fused: bool, tmp_path: Path, late: Callable[[], None]
) -> None:
    if is_late:
        late()
    with pytest.raises(NonFiniteError) as raised:
        scaled_losses(tmp_path, fused, 1024.0, bad=3)
    autopsy = raised.value.autopsy
    assert autopsy is not None and (autopsy.step, autopsy.op, autopsy.reproduced) == (3, "aten.log.default", True)


def test_loop_that_an_exception_leaves_before_the_numbers_have_arrived(
    tmp_path: Path, late: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    late()
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 100.0, weight_decay=3e38)

    def loop() -> None:
        for x in Watch(model, optimizer, tmp_path).batches([ONES] * 5):
            out = model(x)
            if not torch.isfinite(out).all():
                raise ValueError("a guard of the loop")
            optimizer.zero_grad()
            squares(out).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    with pytest.raises(ValueError, match="a guard"):
        loop()
    assert (tmp_path / "autopsy.json").exists() and "the loop was left after a non-finite number" in caplog.text


def test_optimizer_of_several_whose_update_fails(tmp_path: Path, late: Callable[[], None]) -> None:
    """The other optimizer of the step reads the NaN before the numbers have arrived."""
    late()
    first, second = nn.Linear(8, 8), nn.Linear(8, 1)
    one = torch.optim.SGD(first.parameters(), 100.0, weight_decay=3e38)
    other = torch.optim.SGD(second.parameters(), 0.1)
    with pytest.raises(NonFiniteError) as raised:
        for x in Watch([first, second], [one, other], tmp_path).batches([ONES] * 5):
            for optimizer in (one, other):
                one.zero_grad()
                other.zero_grad()
                squares(second(first(x))).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    autopsy = raised.value.autopsy
    assert autopsy is not None and (autopsy.step, autopsy.clock, autopsy.phase) == (0, "parameter", "optimizer")
    assert autopsy.reproduced and all(name.startswith("0.") for name in autopsy.parameters)
