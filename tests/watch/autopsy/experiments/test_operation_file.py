"""The failing operation fails alone, in a fresh interpreter that imports torch and nothing else."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bare_loop import diagnose
from torch import Tensor, nn


class Calculation(nn.Module):
    def __init__(self, then: Callable[..., Tensor]) -> None:
        super().__init__()
        self.layer, self.then = nn.Linear(4, 4), then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.layer(x))


def half_product(x: Tensor) -> Tensor:
    large = torch.full((4, 64), 300.0, dtype=torch.float16)
    return (x.half() * 0 + 300) @ large


def masked(x: Tensor) -> Tensor:
    mask = torch.zeros(6, 4)
    mask[2] = -math.inf
    return (x + mask).softmax(-1)


CASES: list[tuple[Callable[[Tensor], Tensor], str, str]] = [
    (lambda x: (x - x.detach()).abs().log(), "aten.log.default", "-inf"),
    (masked, "aten._softmax.default", "nan"),
    (half_product, "aten.mm.default", "inf"),
]


@pytest.mark.parametrize(("then", "op", "number"), CASES)
def test_operation_fails_alone(then: Callable[[Tensor], Tensor], op: str, number: str, tmp_path: Path) -> None:
    autopsy = diagnose(Calculation(then), [torch.randn(6, 4)], tmp_path, lambda out: out.float().sum())
    assert (autopsy.op, autopsy.alone) == (op, True)
    script = tmp_path / "operation.py"
    assert len(script.read_text().splitlines()) <= 20 and "safetensors.torch" not in script.read_text()
    assert (tmp_path / "operands.safetensors").stat().st_size < 1000, "cut to what is needed"
    blocked = "import sys; sys.modules['nangrid'] = sys.modules['safetensors'] = None; import runpy; "
    command = [sys.executable, "-c", f"{blocked}runpy.run_path({str(script)!r})"]
    done = subprocess.run(command, cwd=tmp_path.parent, capture_output=True, text=True)
    assert done.returncode == 0 and number in done.stdout, done.stdout + done.stderr


def test_operation_of_a_fused_optimizer_is_cut_to_one_parameter(tmp_path: Path) -> None:
    model: Any = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    adam = torch.optim.Adam(model.parameters(), eps=0, fused=True)
    autopsy = diagnose(model, [torch.tensor([1])], tmp_path, optimizer=adam)
    assert (autopsy.op, autopsy.alone) == ("aten._fused_adam_.default", True)
    namespace: dict[str, Any] = {"__file__": str(tmp_path / "operation.py")}
    exec((tmp_path / "operation.py").read_text(), namespace)
    shapes = {name: list(tensor.shape) for name, tensor in namespace["given"].items()}
    assert shapes["self0"] == [1, 1] and "self1" not in shapes
    assert not namespace["given"]["self0"].isfinite().all()
