"""On a GPU the watch finds the origins that it finds on a CPU, and never waits for the device."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bare_loop import Calculation
from gpu_loop import diagnose, on, train
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from nangrid import Watch
from nangrid.watch.deferred import IN_FLIGHT, DeferredInspector

pytestmark = pytest.mark.cuda
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "aten::item", "aten::_local_scalar_dense")
ROW = torch.tensor([[1.0, 2.0, 3.0]])


FAULTS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "log of zero": (lambda: Calculation(lambda x: (x * 0).log()), ROW),
    "overflow in float16": (lambda: Calculation(lambda x: x * 6e4).half(), ROW.half()),
    "slope of a root": (lambda: Calculation(lambda x: (x - x.detach()).square().sum().sqrt()), ROW),
    "0 / 0": (lambda: Calculation(lambda x: (x * (x > 9)).sum() / (x > 9).sum()), ROW),
    "masked row": (lambda: Calculation(lambda x: (x + x.new_full((3,), -torch.inf)).softmax(-1)), ROW),
    "exponential": (lambda: Calculation(lambda x: (x * 40).exp()), ROW),
    "eps of Adam": (lambda: nn.Embedding(5, 3).half(), torch.tensor([1])),
    "data": (lambda: Calculation(lambda x: x), torch.tensor([[1.0, torch.nan, 3.0]])),
}


def found(device: str, fault: str, out_dir: Path) -> tuple[Any, ...]:
    make, batch = FAULTS[fault]
    autopsy = diagnose(device, make(), [batch], out_dir)
    return autopsy.step, autopsy.clock, autopsy.phase, autopsy.kind, autopsy.mechanism, autopsy.source


@pytest.mark.parametrize("fault", FAULTS)
def test_origin_is_that_of_the_cpu(fault: str, device: str, tmp_path: Path) -> None:
    assert found(device, fault, tmp_path / "here") == found("cpu", fault, tmp_path / "cpu")


def test_flags_are_read_late_and_name_the_step_that_failed(device: str, tmp_path: Path) -> None:
    batches = [ROW, ROW, ROW * 1e38, *[ROW] * 5]
    trained: list[int] = []

    def loss_of(out: Tensor) -> Tensor:
        trained.append(1)
        return out.sum()

    autopsy = diagnose(device, Calculation(lambda x: x * 2), batches, tmp_path, loss_of)
    assert (autopsy.step, autopsy.clock, autopsy.kind) == (2, "loss", "overflow")
    assert len(trained) >= 3 + IN_FLIGHT, "the steps in flight had been queued, and the rest are replays"


def test_state_that_torch_keeps_on_the_cpu_is_no_false_alarm(device: str, tmp_path: Path) -> None:
    """AdamW's `step` is on the CPU and comes first; a copy to it from the GPU would have to be waited for."""
    train(device, Calculation(lambda x: x), [ROW] * 50, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("foreach", [False, True])
def test_watch_never_waits_for_the_device(foreach: bool, device: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=foreach)
    batch = on(device, torch.randn(4, 64))
    watch = Watch(model, optimizer, tmp_path, max_grad_norm=1.0)
    assert isinstance(watch.inspector, DeferredInspector)

    def closure(batch: Tensor) -> Tensor:
        loss: Tensor = model(batch).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def plain() -> None:
        optimizer.zero_grad()
        closure(batch)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    watched = waits(lambda: watch.step(closure, batch))
    assert watched <= waits(plain), watched
    watch.close()


def waits(step: Callable[[], Any]) -> Counter[str]:
    """How often ten warm steps wait for the device, by the kind of call."""
    for _ in range(IN_FLIGHT + 2):
        step()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities) as profiled:
        for _ in range(10):
            step()
        seen = Counter(event.name for event in profiled.events() or [])
    return Counter({name: seen[name] for name in WAITS if seen[name]})


@pytest.mark.parametrize("scale", [2.0**16, 2.0**100])
def test_amp_that_looks_for_its_scale_is_healthy(scale: float, device: str, tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler(device, init_scale=scale)
    train(device, nn.Linear(3, 1), [ROW] * 120, tmp_path, autocast=torch.float16, scaler=scaler)
    assert list(tmp_path.iterdir()) == [] and scaler.get_scale() <= 2.0**16


def test_amp_that_no_scale_helps(device: str, tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler(device, init_scale=2.0**10)
    options = {"autocast": torch.float16, "scaler": scaler}
    autopsy = diagnose(device, Calculation(lambda x: (x * 0).log()), [ROW] * 40, tmp_path, **options)
    assert (autopsy.phase, autopsy.mechanism) == ("forward", "log-of-zero")


class Attention(nn.Module):
    """One layer of attention, by the kernel of one backend; its values may overflow before."""

    def __init__(self, backend: SDPBackend, gain: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.backend, self.gain = nn.Linear(64, 64, bias=False, dtype=dtype), backend, gain

    def forward(self, x: Tensor) -> Tensor:
        heads = self.layer(x).unflatten(-1, (2, 32)).transpose(1, 2)
        with sdpa_kernel([self.backend]):
            return F.scaled_dot_product_attention(heads, heads, heads * self.gain, is_causal=True)


BACKENDS = ["MATH", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"]


@pytest.mark.parametrize("name", BACKENDS)
def test_origin_before_each_kernel_of_attention(name: str, device: str, tmp_path: Path) -> None:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    batch, backend = torch.randn(2, 16, 64).to(dtype), getattr(SDPBackend, name)
    try:
        train(device, Attention(backend, 1.0, dtype), [batch] * 3, tmp_path / "healthy")
    except RuntimeError as error:
        pytest.skip(f"no {name} on this device: {error}")
    broken = Attention(backend, 1e38, dtype)
    nn.init.constant_(broken.layer.weight, 10.0)
    autopsy = diagnose(device, broken, [batch.abs()], tmp_path / "broken")
    assert (autopsy.phase, autopsy.kind, autopsy.op) == ("forward", "overflow", "aten.mul.Tensor")
