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


# memory


class Table(nn.Module):
    """Filled cell by cell, and then a column."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        costs, table = self.head(x), torch.zeros(3, 3)
        for i in range(3):
            table[i, 1] = costs[i].sum() * counts[i] / counts[i]
        table[:, 0] = costs[:, 0]
        return table


def test_column_written_around_a_nan_does_not_hide_it(tmp_path: Path) -> None:
    x = torch.randn(3, 3)
    batches = [(x, torch.ones(3)), (x, torch.tensor([1.0, 0.0, 1.0]))]
    autopsy = diagnose(Table(), batches, tmp_path)
    assert (autopsy.step, *found(autopsy)) == (1, "forward", "invalid", "aten.div.Tensor")
    assert line(autopsy).startswith("table[i, 1] =")


class Mended(nn.Module):
    """A column that is divided by zero and then written anew, beside one that takes a logarithm of zero."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            table = torch.zeros(3, 3)
            table[:, 1] = torch.log(x)
            table[:, 0] = x / x
            table[:, 0] = 1.0
        return self.head(table)  # type: ignore[no-any-return]


def test_column_that_is_written_anew_is_not_blamed(tmp_path: Path) -> None:
    autopsy = diagnose(Mended(), [torch.ones(3), torch.tensor([1.0, 0.0, 1.0])], tmp_path)
    assert found(autopsy) == ("forward", "divide_by_zero", "aten.log.default")
