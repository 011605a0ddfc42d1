"""The tracer separates elements, memory ranges and tensor layouts."""

import math
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from bare_loop import diagnose, located
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nangrid.records.autopsy import Autopsy
from nangrid.records.explain import explain


def line(autopsy: Autopsy) -> str:
    """The source line that the autopsy names."""
    name, _, number = autopsy.source.partition(":")
    assert name == Path(__file__).name
    return Path(__file__).read_text().splitlines()[int(number) - 1].strip()


def same(out: Any) -> Any:
    return out


# new and propagated values


class Divergence(nn.Module):
    """Two policies with banned tokens; the student bans one more."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(x)
        student = logits.index_fill(-1, torch.tensor([0, 5]), -math.inf).log_softmax(-1)
        teacher = logits.detach().index_fill(-1, torch.tensor([5]), -math.inf).log_softmax(-1)
        return (student.exp() * (student - teacher)).sum()


def test_new_nan_next_to_propagated_infinities(tmp_path: Path) -> None:
    autopsy = diagnose(Divergence().half(), [torch.randn(2, 4).half()], tmp_path, same)
    assert located(autopsy) == ("forward", "invalid", "aten.sub.Tensor"), "no overflow of the halves"
    assert autopsy.output is not None and autopsy.output.first_index == [0, 5]
    assert [operand.at for operand in autopsy.inputs] == [-math.inf, -math.inf]
    assert "at [0, 5]" in explain(autopsy)


# memory


class Table(nn.Module):
    """Filled element by element, then by a column."""

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
    assert (autopsy.step, *located(autopsy)) == (1, "forward", "invalid", "aten.div.Tensor")
    assert line(autopsy).startswith("table[i, 1] =")


class Mended(nn.Module):
    """One column is divided by zero and then overwritten, another takes a logarithm of zero."""

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


def test_overwritten_column_is_not_the_origin(tmp_path: Path) -> None:
    autopsy = diagnose(Mended(), [torch.ones(3), torch.tensor([1.0, 0.0, 1.0])], tmp_path)
    assert located(autopsy) == ("forward", "divide_by_zero", "aten.log.default")


# layouts and dtypes


class Rotary(nn.Module):
    """Unit queries, rotated as complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(4, 4, bias=False)
        self.register_buffer("turns", torch.polar(torch.ones(3, 2), torch.arange(6.0).view(3, 2)))

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x)
        query = query / query.norm(dim=-1, keepdim=True)
        turned = torch.view_as_complex(query.unflatten(-1, (2, 2))) * self.turns
        return torch.view_as_real(turned.conj() * self.turns).flatten(-2)


def test_complex_numbers_propagate_a_nan(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 4)
    autopsy = diagnose(Rotary(), [x, x * torch.tensor([1.0, 0.0, 1.0])[:, None]], tmp_path)
    assert (autopsy.step, *located(autopsy)) == (1, "forward", "invalid", "aten.div.Tensor")


class Fourier(nn.Module):
    """Mixes its tokens by a Fourier transform."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft2(torch.exp(self.gate(x))).real


def test_overflow_before_a_fourier_transform(tmp_path: Path) -> None:
    autopsy = diagnose(Fourier(), [torch.randn(2, 3, 4) * 1000], tmp_path)
    assert located(autopsy) == ("forward", "overflow", "aten.exp.default")


def test_infinite_product_of_complex_numbers(tmp_path: Path) -> None:
    def loss(out: Tensor) -> Tensor:
        turned = torch.complex(out, out)
        return (turned * turned.detach()).abs().sum()

    autopsy = diagnose(nn.Linear(2, 2), [torch.full((1, 2), 1e25)], tmp_path, loss)
    assert located(autopsy) == ("forward", "overflow", "aten.mul.Tensor")


class Distance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4, sparse=True)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (self.embed(a) - self.embed(b)).pow(2).sum(-1).sqrt()


def test_gradient_that_is_sparse(tmp_path: Path) -> None:
    model, ids = Distance(), torch.tensor([1, 2])
    batches = [(ids, torch.tensor([3, 4])), (ids, torch.tensor([3, 2]))]
    autopsy = diagnose(model, batches, tmp_path, torch.mean, torch.optim.SparseAdam(model.parameters(), 1e-2))
    assert (autopsy.step, *located(autopsy)) == (1, "backward", "divide_by_zero", "aten.div.Tensor")
    assert (autopsy.node, autopsy.parameters) == ("SqrtBackward0", ["embed.weight"])


class Graph(nn.Module):
    """A mean over neighbours, by a sparse product."""

    def __init__(self, layout: torch.layout) -> None:
        super().__init__()
        self.head, self.layout = nn.Linear(3, 3), layout

    def forward(self, edges: Tensor, x: Tensor) -> Tensor:
        weights = torch.ones(edges.shape[1])
        adjacency = torch.sparse_coo_tensor(edges, weights, (4, 4)).coalesce()
        degree = adjacency.to_dense().sum(1)
        scale = 1 / degree
        scaled = torch.sparse_coo_tensor(edges, scale[edges[1]], (4, 4)).coalesce()
        if self.layout is torch.sparse_csr:
            scaled = scaled.to_sparse_csr()
        return torch.sparse.mm(scaled, self.head(x))


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_product_with_an_isolated_node(layout: torch.layout, tmp_path: Path) -> None:
    edges, x = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]]), torch.randn(4, 3)
    autopsy = diagnose(Graph(layout), [(edges, x), (edges[:, :3], x)], tmp_path)
    assert (autopsy.step, *located(autopsy)) == (1, "forward", "divide_by_zero", "aten.reciprocal.default")


class EightBits(nn.Module):
    """Activations as an fp8 matrix product would see them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        scale = x.abs().amax(-1, keepdim=True) / 448
        narrow = (x / scale).to(torch.float8_e4m3fn)
        out: Tensor = self.head(narrow.to(x.dtype) * scale)
        return out


def test_float8_propagates_a_nan(tmp_path: Path) -> None:
    x = torch.randn(3, 8)
    autopsy = diagnose(EightBits(), [x, x * torch.tensor([[1.0], [0.0], [1.0]])], tmp_path)
    assert (autopsy.step, *located(autopsy)) == (1, "forward", "invalid", "aten.div.Tensor")


class Ragged(nn.Module):
    """Sequences of several lengths in one jagged tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)

    def forward(self, *sequences: Tensor) -> Tensor:
        offsets = torch.tensor([0, *(len(s) for s in sequences)]).cumsum(0)
        jagged = torch.nested.nested_tensor_from_jagged(torch.cat(sequences), offsets)
        return self.head(torch.log(jagged)).values()  # type: ignore[no-any-return]


def test_logarithm_of_a_jagged_tensor(tmp_path: Path) -> None:
    some, more = torch.rand(3, 4) + 0.1, torch.rand(2, 4) + 0.1
    autopsy = diagnose(Ragged(), [(some, more), (some, more * torch.tensor([[1.0], [0.0]]))], tmp_path)
    assert (autopsy.step, *located(autopsy)) == (1, "forward", "divide_by_zero", "aten.log.default")
    assert autopsy.output is not None and autopsy.output.first_index == [4, 0]


# a harmless NaN next to a real one


class Padded(nn.Module):
    """A frozen encoder whose padded rows are NaN and get dropped; a weight enters through its logarithm."""

    def __init__(self, log_of_all: bool = False) -> None:
        super().__init__()
        self.query, self.head, self.log_of_all = nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 1), log_of_all

    def forward(self, x: Tensor, keep: Tensor, weights: Tensor) -> Tensor:
        with torch.no_grad():
            query = self.query(x)
            scores = query @ query.transpose(-1, -2)
            scores = scores.masked_fill(~(keep[:, None] & keep[:, :, None]), -math.inf)
            context = scores.softmax(-1) @ x.abs()
        weighted = torch.log(context * weights) if self.log_of_all else torch.log(weights) + context
        return self.head(weighted[keep])  # type: ignore[no-any-return]


@pytest.mark.parametrize("log_of_all", [False, True])
def test_rows_of_padding_do_not_hide_a_logarithm_of_zero(log_of_all: bool, tmp_path: Path) -> None:
    x, keep, weights = torch.randn(2, 5, 4), torch.ones(2, 5, dtype=torch.bool), torch.ones(2, 5, 1)
    keep[1, 3:] = False
    zero = weights.clone()
    zero[0, 1] = 0
    batches = [(x, keep, weights), (x, keep, zero)]
    autopsy = diagnose(Padded(log_of_all), batches, tmp_path)
    assert (autopsy.step, *located(autopsy)) == (1, "forward", "divide_by_zero", "aten.log.default")
    assert autopsy.mechanism == "log-of-zero"
    assert autopsy.output is not None and autopsy.output.first_index[:2] == [0, 1]
    assert autopsy.path[0] == "aten.log.default" and autopsy.path[-1] == "aten.mean.default"


def test_padded_row_that_is_used_is_the_origin(tmp_path: Path) -> None:
    x, keep, weights = torch.randn(2, 5, 4), torch.ones(2, 5, dtype=torch.bool), torch.ones(2, 5, 1)
    keep[1] = False

    def loss(out: Tensor) -> Tensor:
        return out.mean()

    class Kept(Padded):
        def forward(self, x: Tensor, keep: Tensor, weights: Tensor) -> Tensor:
            scores = self.query(x).masked_fill(~keep[..., None], -math.inf)
            return self.head(scores.softmax(-1) + torch.log(weights))  # type: ignore[no-any-return]

    zero = weights.clone()
    zero[0, 1] = 0
    autopsy = diagnose(Kept(), [(x, keep, zero)], tmp_path, loss)
    assert located(autopsy) == ("forward", "invalid", "aten._softmax.default"), "each trips alone"


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor, n: Tensor, chosen: Tensor) -> Tensor:
        with torch.no_grad():
            left = x.sum(1, keepdim=True) * n / n
        right = self.head(x) * n / n
        return torch.where(chosen, left, right)


@pytest.mark.parametrize(("chosen", "name"), [(False, "right"), (True, "left")])
def test_unselected_branch_is_not_the_origin(chosen: bool, name: str, tmp_path: Path) -> None:
    x, one, zero = torch.randn(3, 4), torch.ones(3, 1), torch.tensor([[1.0], [0.0], [1.0]])
    choice = torch.tensor([[not chosen], [chosen], [not chosen]])
    autopsy = diagnose(Branches(), [(x, one, choice), (x, zero, choice)], tmp_path)
    assert (autopsy.step, *located(autopsy)) == (1, "forward", "invalid", "aten.div.Tensor")
    assert line(autopsy).startswith(f"{name} =")


class Columns(nn.Module):
    """One column is a diagnostic that is never read."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.head, self.in_place = nn.Linear(4, 1), in_place

    def forward(self, x: Tensor) -> Tensor:
        unused, used = torch.zeros(3) / torch.zeros(3), torch.log(self.head(x)[:, 0] * 0 + x[:, 2])
        if not self.in_place:
            return torch.stack([unused, used], 1)[:, 1]
        table = torch.zeros(3, 2)
        table[:, 1], table[:, 0] = used, unused
        return table[:, 1]


@pytest.mark.parametrize("in_place", [False, True])
def test_unread_column_is_not_the_origin(in_place: bool, tmp_path: Path) -> None:
    positive = torch.rand(3, 4) + 0.1
    batches = [positive, positive * torch.tensor([[1.0], [-1.0], [1.0]])]
    autopsy = diagnose(Columns(in_place), batches, tmp_path, torch.mean)
    assert (autopsy.step, *located(autopsy)) == (1, "forward", "invalid", "aten.log.default")


def test_ablation_that_makes_the_loop_raise_says_nothing(tmp_path: Path) -> None:
    """The ablated step raises, so the producers cannot be compared: the first one is reported."""

    def loss(out: Tensor) -> Tensor:
        if out.isfinite().all():
            raise ValueError("there is always a NaN")
        return out.mean()

    autopsy = diagnose(Columns(False), [torch.full((3, 4), -1.0)], tmp_path, loss)
    assert located(autopsy) == ("forward", "invalid", "aten.div.Tensor")


# lines within backward


class Normalise(torch.autograd.Function):
    """The backward pass divides by the length, which only the forward pass guards against zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        length = x.norm(dim=-1, keepdim=True)
        ctx.save_for_backward(length)
        return x / length.clamp(min=1e-6)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (length,) = ctx.saved_tensors
        slope: Tensor = grad / length
        return slope


def test_source_line_of_a_custom_backward(tmp_path: Path) -> None:
    model, x = nn.Linear(4, 4, bias=False), torch.randn(3, 4)
    batches = [x, x * torch.tensor([[1.0], [0.0], [1.0]])]
    autopsy = diagnose(model, batches, tmp_path, lambda out: (Normalise.apply(out) - 1).pow(2).mean())
    assert (autopsy.step, *located(autopsy)) == (1, "backward", "divide_by_zero", "aten.div.Tensor")
    assert autopsy.node == "NormaliseBackward" and line(autopsy).startswith("slope: Tensor =")


def by_nothing(grad: Tensor) -> Tensor:
    return grad * 0 / torch.zeros(1)


class Block(nn.Module):
    """An exponential that overflows and is clamped, which hides it from the loss but not from the gradient."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.layer, self.reentrant = nn.Linear(3, 3, bias=False), reentrant
        nn.init.eye_(self.layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(x)
        if self.reentrant is None:
            return self.grow(hidden)
        out: Tensor = checkpoint(self.grow, hidden, use_reentrant=self.reentrant)
        return out

    def grow(self, hidden: Tensor) -> Tensor:
        return (hidden * 40).exp().clamp(max=10.0)


@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_nothing_about_the_origin(reentrant: bool, in_thread: bool, tmp_path: Path) -> None:
    """What fails is a part of the forward pass, although only the backward pass computes it again and reads it."""
    batches = [torch.tensor([[1.0, 2.0, 3.0]])]
    autopsies = [
        diagnose(Block(checkpointed), batches, tmp_path / str(checkpointed), torch.sum, in_thread=in_thread)
        for checkpointed in (None, reentrant)
    ]
    plain, checkpointed = (
        (located(a), a.clock, a.node, a.source, a.mechanism, a.inputs, a.cures, a.variants) for a in autopsies
    )
    assert checkpointed == plain
    assert plain[0] == ("forward", "overflow", "aten.exp.default") and plain[4] == "exp-overflow"


def test_source_line_of_a_gradient_hook(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    model.bias.register_hook(by_nothing)  # type: ignore[no-untyped-call]
    autopsy = diagnose(model, [torch.randn(2, 3)], tmp_path)
    assert located(autopsy) == ("backward", "invalid", "aten.div.Tensor")
    assert line(autopsy) == "return grad * 0 / torch.zeros(1)"


def update(parameter: Tensor) -> None:
    with torch.no_grad():
        parameter -= 0.01 * parameter.grad / parameter.grad.abs()  # type: ignore[union-attr,operator]
    parameter.grad = None


def test_source_line_of_an_update_within_backward(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(update)
    autopsy = diagnose(model, [torch.ones(1, 3), torch.tensor([[1.0, 0.0, 0.0]])], tmp_path, torch.mean)
    assert autopsy.step == 1 and line(autopsy).startswith("parameter -=")


def test_source_line_that_reads_a_nonfinite_constant(tmp_path: Path) -> None:
    """Class weights, the inverse of the class counts, computed outside torch."""

    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            counts = numpy.bincount(labels.numpy(), minlength=3)
            with numpy.errstate(divide="ignore"):
                weight = torch.from_numpy((1 / counts).astype(numpy.float32))
            weight = weight / weight.sum()
            return F.cross_entropy(self.head(x), labels, weight=weight)

    x = torch.randn(3, 4)
    batches = [(x, torch.tensor([0, 1, 2])), (x, torch.tensor([0, 1, 1]))]
    autopsy = diagnose(Weighted(), batches, tmp_path, same)
    assert (autopsy.step, autopsy.phase, autopsy.kind) == (1, "input", "nonfinite_input")
    assert line(autopsy) == "weight = weight / weight.sum()"
    assert f"first read by {autopsy.path[1]} ({autopsy.source})" in autopsy.evidence


def test_module_that_reads_a_broken_buffer(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    model[1].running_var[2] = math.nan
    autopsy = diagnose(model, [torch.randn(3, 4)], tmp_path)
    assert (autopsy.phase, autopsy.module) == ("input", "1")
    assert any(line.startswith("first read by aten.") for line in autopsy.evidence)


class Multiplied(nn.Module):
    """A mask multiplied by minus infinity: 0 * -inf wherever nothing is masked."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(4, 4)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        query, bias = self.query(x), (1 - keep) * -math.inf
        return (query @ query.transpose(-1, -2) + bias[:, None]).softmax(-1) @ query  # type: ignore[no-any-return]


def test_mask_times_minus_infinity(tmp_path: Path) -> None:
    autopsy = diagnose(Multiplied(), [(torch.randn(2, 3, 4), torch.ones(2, 3))], tmp_path)
    assert located(autopsy) == ("forward", "invalid", "aten.mul.Tensor")
    assert [(operand.name, operand.at) for operand in autopsy.inputs] == [("self", 0), ("other", -math.inf)]
