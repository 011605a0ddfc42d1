"""A step that fails for a reason that its operation does not tell is explained by how else it fails."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bare_loop import call, diagnose, train
from torch import Tensor, nn

from nangrid import NonFiniteError, Watch
from nangrid.records.autopsy import Autopsy, read_autopsy


class Calculation(nn.Module):
    """A layer that hands on its input, and a calculation on its output."""

    def __init__(self, then: Callable[[Tensor], Tensor], size: int = 4) -> None:
        super().__init__()
        self.layer, self.then = nn.Linear(size, size, bias=False), then
        nn.init.eye_(self.layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.layer(x))


def table(autopsy: Autopsy) -> dict[str, bool]:
    assert 0 < len([trial for trial in autopsy.variants if "operation alone" not in trial.change]) <= 12
    return {trial.change: trial.finite for trial in autopsy.variants}


def test_kernel_of_attention_that_overflows(tmp_path: Path) -> None:
    """The flash kernel multiplies queries and keys before it scales them."""

    def attend(x: Tensor) -> Tensor:
        heads = x.unflatten(-1, (2, 4)).transpose(1, 2)
        return F.scaled_dot_product_attention(heads.detach() * 1e19, heads.detach() * 1e19, heads)

    autopsy = diagnose(Calculation(attend, 8), [torch.ones(1, 5, 8)], tmp_path)
    tried = table(autopsy)
    assert (tried["flash attention"], tried["math attention"]) == (False, True)
    assert autopsy.verdict == "Only the flash attention kernel fails: the step is finite with math."
    assert autopsy.explanation.endswith(autopsy.verdict)


class Massive(nn.Module):
    """A normalisation with a large gain, whose output exceeds 65504 on a row that one channel dominates."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(1024, 1024, bias=False), nn.LayerNorm(1024)
        nn.init.eye_(self.layer.weight)
        nn.init.constant_(self.norm.weight, 2500.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x)).float()


def test_kernel_whose_result_float16_cannot_hold(tmp_path: Path) -> None:
    model, usual = Massive().half(), torch.arange(1024.0)[None].remainder(7).half()
    massive = usual.clone()
    massive[0, 9] = 3000
    sgd = torch.optim.SGD(model.parameters(), lr=1e-6)
    autopsy = diagnose(model, [usual, massive], tmp_path, lambda out: out.logsumexp(-1).mean(), sgd)
    assert (autopsy.step, autopsy.op) == (1, "aten.native_layer_norm.default")
    tried = table(autopsy)
    assert (tried["the operation alone in float32"], tried["the step again"]) == (True, False)
    assert autopsy.verdict == "Half precision is too narrow: the operation alone is finite in float32."
    assert autopsy.explanation.startswith("An activation exceeded 65504") and autopsy.explanation.endswith(
        autopsy.verdict
    )


def test_one_sample_of_a_batch(tmp_path: Path) -> None:
    batch = torch.ones(6, 4)
    batch[4] = 3e38
    autopsy = diagnose(Calculation(lambda x: x.sum(-1)), [batch], tmp_path)
    assert "sample 4 of micro-batch 0" in autopsy.verdict
    assert not table(autopsy)["the step again"]


def test_a_slow_step_says_that_it_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("nangrid.watch.autopsy.experiments.variants.SLOW_S", 0.0)
    diagnose(Calculation(lambda x: x.log().sum(-1)), [-torch.ones(2, 4)], tmp_path)
    assert "step 0 was replayed in 0 s to find where its first non-finite number arose; it runs" in caplog.text


def test_slow_variants_are_told_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("nangrid.watch.autopsy.experiments.variants.SLOW_S", 0.0)
    batch = torch.ones(6, 4)
    batch[4] = 3e38
    diagnose(Calculation(lambda x: x.sum(-1)), [batch], tmp_path)
    assert "run 1 of at most 12, the step again: not finite (0 s)" in caplog.text


def test_one_micro_batch_of_a_window(tmp_path: Path) -> None:
    batches = [torch.ones(1, 4), torch.full((1, 4), 3e38), torch.ones(1, 4)]
    autopsy = diagnose(Calculation(lambda x: x.sum(-1)), batches, tmp_path, accumulate=3)
    assert table(autopsy)["a micro-batch alone: micro-batch 1"] is False
    assert autopsy.verdict == "A part of the batch is enough: micro-batch 1."


@torch.library.custom_op("nangrid_test::running_sum", mutates_args=())
def running_sum(x: Tensor) -> Tensor:
    """A kernel with a mistake: it adds up in memory that it never cleared."""
    out = torch.empty(x.shape[0])
    if not torch.is_nonzero(out.isfinite().all()) or out.abs().max() > 0:
        return x.sum(-1) + out
    return x.sum(-1)


def test_kernel_that_reads_memory_it_never_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running_sum.register_autograd(lambda ctx, grad: grad[:, None].expand(-1, 4))
    original = torch.empty

    def reused(*args: Any, **kwargs: Any) -> Tensor:
        """Memory that held something else before, as an allocator hands it out."""
        return original(*args, **kwargs).fill_(torch.nan)

    monkeypatch.setattr(torch, "empty", reused)
    autopsy = diagnose(Calculation(lambda x: running_sum(x)), [torch.ones(2, 4)], tmp_path)
    tried = table(autopsy)
    assert (tried["zeros in new memory"], tried["NaN in new memory"]) == (True, False)
    assert autopsy.verdict.startswith("It reads memory that was never written")


def naive_softmax(graph: torch.fx.GraphModule, inputs: Any) -> Any:
    """A compiler that leaves out the maximum of a softmax."""

    def softmax(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x.exp() / x.exp().sum(-1, keepdim=True)

    for node in graph.graph.nodes:
        if "softmax" in str(node.target):
            node.op, node.target, node.args, node.kwargs = "call_function", softmax, (node.args[0],), {}
    graph.recompile()
    return graph.forward


def test_graph_that_fails_only_when_compiled(tmp_path: Path) -> None:
    model = torch.compile(Calculation(lambda x: x.softmax(-1)), backend=naive_softmax)
    with pytest.raises(NonFiniteError) as raised:
        train(model, [torch.full((2, 4), 100.0)], tmp_path, lambda out: out[:, 0].sum())
    autopsy = raised.value.autopsy
    assert autopsy is not None and autopsy == read_autopsy(tmp_path)
    assert table(autopsy) == {"compiled, as it was": False}
    assert autopsy.verdict == "Only the compiled graph fails: the same step is finite when it runs eagerly."


class Quaternion(nn.Module):
    """The real part of a rotation: Inductor rounds once, in float32, where eager bfloat16 rounds after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))

    def forward(self, angle: Tensor) -> Tensor:
        angle = angle * self.gain
        return (1 - angle.cos().square() - angle.sin().square()).sqrt()


@pytest.mark.parametrize(
    ("at_pole", "verdict"),
    [
        (False, "Only the compiled graph fails: the same step is finite when it runs eagerly."),
        (True, "Only the compiled graph fails in the loss: when the same step runs eagerly, it fails in the gradient"),
    ],
)
def test_graph_that_fails_only_under_inductor(at_pole: bool, verdict: str, tmp_path: Path) -> None:
    """The squares sum up to 1.0000001 in float32, and to less than 1, or to 1, in bfloat16."""
    angles = torch.arange(0.01, 1.5, 0.01).bfloat16()
    exact, eager = 1 - angles.float().cos().square() - angles.float().sin().square(), Quaternion()(angles)
    angles = angles[(exact < 0) & (eager == 0 if at_pole else eager > 0)][:8]
    model = torch.compile(Quaternion())
    with pytest.raises(NonFiniteError) as raised:
        train(model, [angles], tmp_path, lambda out: out.float().sum(), torch.optim.SGD(model.parameters(), lr=0.1))
    autopsy = raised.value.autopsy
    assert autopsy is not None and (autopsy.clock, autopsy.mechanism) == ("loss", "unknown")
    assert table(autopsy)["compiled, as it was"] is False
    assert autopsy.verdict.startswith(verdict) and autopsy.explanation.endswith(autopsy.verdict)


def test_named_mechanism_costs_no_variants(tmp_path: Path) -> None:
    autopsy = diagnose(Calculation(lambda x: (x * 0).log()), [torch.ones(1, 4)], tmp_path)
    assert (autopsy.mechanism, autopsy.variants, autopsy.verdict) == ("log-of-zero", [], "")


def test_experiments_leave_the_run_as_it_was(tmp_path: Path) -> None:
    """Parameters, random states and training mode are those of the failing step."""
    model = Calculation(lambda x: F.dropout(x.sum(-1)))
    before = model.layer.weight.clone()
    watch = Watch(model, torch.optim.Adam(model.parameters()), tmp_path)
    torch.manual_seed(3)
    with pytest.raises(NonFiniteError):
        watch.step(lambda x: call(model, x).sum(), torch.full((4, 4), 3e38))
    drawn = torch.rand(3)
    torch.manual_seed(3)
    F.dropout(torch.ones(4))
    assert torch.equal(drawn, torch.rand(3)) and torch.equal(before, model.layer.weight)
