"""What the tracer must keep apart: elements, ranges of memory, and layouts of tensors."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bare_loop import diagnose, found
from torch import Tensor, nn

from nangrid.records.autopsy import Autopsy
from nangrid.reporting.explain import explain


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def line(autopsy: Autopsy) -> str:
    """The source line that the autopsy names."""
    name, _, number = autopsy.source.partition(":")
    assert name == Path(__file__).name
    return Path(__file__).read_text().splitlines()[int(number) - 1].strip()


def same(out: Any) -> Any:
    return out


# what a NaN is born of


class Divergence(nn.Module):
    """Two policies with banned tokens, the student with one more."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(x)
        student = logits.index_fill(-1, torch.tensor([0, 5]), -math.inf).log_softmax(-1)
        teacher = logits.detach().index_fill(-1, torch.tensor([5]), -math.inf).log_softmax(-1)
        return (student.exp() * (student - teacher)).sum()


def test_nan_beside_infinities_that_are_carried_on(tmp_path: Path) -> None:
    autopsy = diagnose(Divergence().half(), [torch.randn(2, 4).half()], tmp_path, same)
    assert found(autopsy) == ("forward", "invalid", "aten.sub.Tensor"), "no overflow of the halves"
    assert autopsy.output is not None and autopsy.output.first_index == [0, 5]
    assert [operand.at for operand in autopsy.inputs] == [-math.inf, -math.inf]
    assert "at [0, 5]" in explain(autopsy)
