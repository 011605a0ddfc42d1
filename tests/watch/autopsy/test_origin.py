"""Natural faults in hand-written loops, each with its true origin; values are planted only as corrupt data."""

from pathlib import Path

import pytest
import torch
from bare_loop import diagnose, located, squares
from torch import Tensor, nn

from nangrid import Watch
from nangrid.records.explain import explain
from nangrid.watch.autopsy.replay import replay
from nangrid.watch.state.snapshot import MicroBatch, Snapshot
from nangrid.watch.state.tensors import trainables


class Net(nn.Module):
    """Two layers with a gain between them."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.first, self.second, self.gain = nn.Linear(8, 8), nn.Linear(8, 1), gain

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(x)) * self.gain)
        return out


class Attention(nn.Module):
    """One head with a boolean mask."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query = self.query(x)
        scores = (query @ query.transpose(-1, -2)).masked_fill(~mask, float("-inf"))
        return scores.softmax(-1) @ query


class Logarithm(nn.Module):
    """A logarithm of something that starts at zero, used only where it is finite."""

    def __init__(self, guarded: bool) -> None:
        super().__init__()
        self.weight, self.guarded = nn.Parameter(torch.zeros(3)), guarded

    def forward(self, x: Tensor) -> Tensor:
        if self.guarded:
            return torch.where(self.weight > 0, torch.log(self.weight), torch.zeros(3)) * x
        return torch.log(torch.relu(self.weight * x))


class Interleaved(nn.Module):
    """Every second element is an intentional infinity; the finite ones between them are divisors."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        pairs = torch.stack([x, torch.full_like(x, float("-inf"))], dim=-1)
        return self.weight / pairs[..., 0]


def root_of_zero(out: Tensor) -> Tensor:
    return (out - out.detach()).sqrt().sum()


def test_a_view_between_infinities_does_not_hold_them(tmp_path: Path) -> None:
    autopsy = diagnose(Interleaved(), [torch.tensor([1.0, 2.0, 0.0, 4.0])], tmp_path)
    assert located(autopsy) == ("forward", "divide_by_zero", "aten.div.Tensor")
    assert "at [2]: parameter weight 1, other 0\n" in explain(autopsy)


def test_activation_beyond_the_largest_float16(tmp_path: Path) -> None:
    torch.manual_seed(0)
    autopsy = diagnose(Net(gain=1e4).half(), [torch.full((2, 8), 100.0).half()], tmp_path)
    assert located(autopsy) == ("forward", "overflow", "aten.mul.Tensor")
    assert autopsy.mechanism == "fp16-activation-overflow"
    assert (autopsy.clock, autopsy.dtype, autopsy.untrained) == ("loss", "float16", True)


def test_infinite_slope_of_a_root_at_zero_names_the_forward_line(tmp_path: Path) -> None:
    autopsy = diagnose(Net(), [torch.ones(2, 8)], tmp_path, root_of_zero, max_grad_norm=1.0)
    assert located(autopsy) == ("backward", "divide_by_zero", "aten.div.Tensor")
    assert autopsy.node == "SqrtBackward0"
    assert autopsy.source.startswith("test_origin.py:")
    assert len(autopsy.parameters) == 4


def test_eps_that_rounds_to_zero_in_half_precision(tmp_path: Path) -> None:
    autopsy = diagnose(nn.Embedding(10, 4).half(), [torch.tensor([1, 2])], tmp_path)
    assert located(autopsy) == ("optimizer", "invalid", "aten.addcdiv_.default")
    assert (autopsy.clock, autopsy.mechanism) == ("parameter", "adam-eps-underflow")
    assert autopsy.parameters == ["weight"]
    assert [operand.at for operand in autopsy.inputs[1:3]] == [0, 0], "nothing over nothing"
    assert autopsy.inputs[3].name == "value", "the step size is an operand, too"


def test_fully_masked_attention_row(tmp_path: Path) -> None:
    causal = torch.ones(1, 3, 3, dtype=torch.bool).tril()
    nowhere = causal.clone()
    nowhere[0, 0] = False
    x = torch.randn(1, 3, 4)
    autopsy = diagnose(Attention(), [(x, causal), (x, nowhere)], tmp_path)
    assert located(autopsy) == ("forward", "invalid", "aten._softmax.default")
    assert (autopsy.step, autopsy.mechanism) == (1, "masked-row-softmax")
    assert "largest finite operands: self" in explain(autopsy), "a whole row went into the element"
    assert "(and 4 infinite)" in explain(autopsy), "a row, and what is above the diagonal"


def test_batch_that_holds_a_nan(tmp_path: Path) -> None:
    broken = torch.ones(2, 8)
    broken[1, 3:] = torch.nan
    autopsy = diagnose(Net(), [torch.ones(2, 8), broken], tmp_path)
    assert (autopsy.phase, autopsy.kind, autopsy.step) == ("input", "nonfinite_input", 1)
    assert "batch" in autopsy.evidence[0]
    assert "origin: batch of micro-batch 0 was non-finite before it was read" in explain(autopsy)
    told = " ".join(explain(autopsy).split())
    assert "read by aten.addmm.default in first (test_origin.py:" in told
    assert "): 5 of 16 elements; 1 of 2 samples (1); 5 of 8 columns (3, 4, 5, 6, 7)" in told
    assert (autopsy.op, autopsy.module, autopsy.mechanism) == ("aten.addmm.default", "first", "nonfinite-data")


def test_frozen_row_that_holds_a_nan(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 1))
    with torch.no_grad():
        model[0].weight[13, 4] = torch.nan
    model[0].requires_grad_(False)
    autopsy = diagnose(model, [torch.tensor([1, 2]), torch.tensor([2, 13])], tmp_path)
    assert (autopsy.step, autopsy.phase) == (1, "input")
    assert autopsy.evidence[1].startswith(
        "parameter 0.weight: non-finite in 1 of 160 elements; 1 of 20 rows (13); 1 of 8 columns"
    )


def test_learning_rate_that_is_not_a_number(tmp_path: Path) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=float("nan"))
    autopsy = diagnose(model, [torch.ones(2, 8)], tmp_path, optimizer=optimizer)
    assert (autopsy.phase, autopsy.kind, autopsy.clock) == ("input", "nonfinite_input", "parameter")
    assert autopsy.mechanism == "nonfinite-learning-rate" and "alpha nan" in explain(autopsy)


@pytest.mark.parametrize(("guarded", "phase"), [(False, "forward"), (True, "backward")])
def test_logarithm_of_zero(guarded: bool, phase: str, tmp_path: Path) -> None:
    autopsy = diagnose(Logarithm(guarded), [torch.ones(3)], tmp_path)
    assert (autopsy.phase, autopsy.mechanism) == (phase, "log-of-zero")


def test_parameter_that_was_never_initialised(tmp_path: Path) -> None:
    model = Net()
    with torch.no_grad():
        model.first.weight[0, 0] = torch.inf
    autopsy = diagnose(model, [torch.ones(2, 8)], tmp_path)
    assert (autopsy.phase, autopsy.mechanism) == ("input", "uninitialised-parameter")


def test_accumulation_names_the_micro_batch(tmp_path: Path) -> None:
    batches = [torch.ones(2, 8), torch.ones(2, 8), torch.full((2, 8), 1e30)]
    autopsy = diagnose(Net(), batches, tmp_path, accumulate=3)
    assert autopsy.micro_batch == 2
    assert (autopsy.phase, autopsy.kind) == ("forward", "overflow")


def test_backward_in_another_thread_has_the_same_origin(tmp_path: Path) -> None:
    autopsy = diagnose(Net(), [torch.ones(2, 8)], tmp_path, root_of_zero, in_thread=True)
    assert autopsy.clock == "gradient"
    assert located(autopsy) == ("backward", "divide_by_zero", "aten.div.Tensor")
    assert autopsy.cures and autopsy.cures == diagnose(Net(), [torch.ones(2, 8)], tmp_path / "here", root_of_zero).cures


def test_torch_style_closure_and_a_finite_run(tmp_path: Path) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = Watch(model, optimizer, tmp_path)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = squares(model(torch.ones(2, 8)))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    losses = [watch.step(closure).item() for _ in range(5)]
    assert losses[-1] < losses[0]
    assert list(tmp_path.iterdir()) == []


def test_replay_from_disk_is_bit_identical(tmp_path: Path) -> None:
    model = Net()
    autopsy = diagnose(model, [torch.ones(2, 8), torch.full((2, 8), 1e30)], tmp_path)
    snapshot = Snapshot.load(tmp_path)
    assert (snapshot.step, snapshot.clock) == (autopsy.step, autopsy.clock) == (1, "loss")

    class Loop:
        """A fresh process would build the same model and a new optimizer."""

        scaler = None

        def __init__(self) -> None:
            self.model: nn.Module = Net()
            self.optimizer: torch.optim.Optimizer = torch.optim.Adam(self.model.parameters(), lr=0.5)
            self.trainables = trainables(self.model)

        def forward_backward(self, micro_batch: MicroBatch) -> Tensor:
            loss = squares(self.model(micro_batch.inputs))
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        def clip(self) -> Tensor:
            return torch.zeros(())

        def update(self) -> None:
            self.optimizer.step()

    again = replay(Loop(), snapshot)
    assert again.clock == "loss"
    assert again.outcome == snapshot.outcome
    assert again.origin is not None and again.origin.write.op == autopsy.op
