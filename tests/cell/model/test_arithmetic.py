"""Half products on a CPU equal those of a GPU on every path, and nothing else changes."""

from __future__ import annotations

import subprocess
import sys
import threading

import bitsandbytes
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import gelu, linear
from torch.utils.checkpoint import checkpoint

from nangrid.cell.model.arithmetic import current, install

ARITHMETIC = install()
HALVES = (torch.float16, torch.bfloat16)
SIZES = st.integers(0, 40)
LAYOUT = st.sampled_from(("rows", "columns", "strided"))
INF, NAN = float("inf"), float("nan")


def _stored(wide: Tensor, dtype: torch.dtype, layout: str) -> Tensor:
    """The values of `wide` in `dtype`: by rows, by columns, or as every second column of a tensor."""
    if layout == "columns":
        return wide.mT.contiguous().to(dtype).mT
    if layout == "strided":
        return wide.repeat_interleave(2, dim=-1).to(dtype)[..., ::2]
    return wide.to(dtype)


def _assert_same(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=150, deadline=None)
@given(SIZES, SIZES, SIZES, LAYOUT, LAYOUT, st.integers(-24, 11), st.integers(-24, 11), st.integers(0, 2**30))
def test_sums_that_float32_holds_are_rounded_exactly_once(
    m: int, k: int, n: int, left: str, right: str, i: int, j: int, seed: int
) -> None:
    """Small integers times powers of two: from subnormal operands and results up to infinities."""
    draw = torch.Generator().manual_seed(seed)
    a = torch.randint(-31, 32, (m, k), generator=draw).double() * 2.0**i
    b = torch.randint(-31, 32, (k, n), generator=draw).double() * 2.0**j
    for dtype in HALVES:
        got = _stored(a, dtype, left) @ _stored(b, dtype, right)
        _assert_same(got, (a @ b).to(dtype))


@settings(max_examples=100, deadline=None)
@given(SIZES, st.integers(0, 700), SIZES, LAYOUT, LAYOUT, st.integers(-12, 12), st.integers(0, 2**30))
def test_products_are_within_one_unit_in_the_last_place(
    m: int, k: int, n: int, left: str, right: str, scale: int, seed: int
) -> None:
    """Against float64, rounded; operands of one sign, since cancellation magnifies float32's own error."""
    draw = torch.Generator().manual_seed(seed)
    for dtype in HALVES:
        a = _stored(torch.rand(m, k, generator=draw) * 2.0**scale, dtype, left)
        b = _stored(torch.rand(k, n, generator=draw), dtype, right)
        wanted = (a.double() @ b.double()).to(dtype)
        got = torch.stack([a @ b, torch.bmm(a[None], b[None])[0]])
        units = got.view(torch.int16).int() - wanted.view(torch.int16).int()
        assert (units.abs() <= 1).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_cancelling_sums_lose_no_more_than_float32_does(dtype: torch.dtype) -> None:
    a, b = torch.randn(64, 640).to(dtype), torch.randn(640, 128).to(dtype)
    exact = a.double() @ b.double()
    float32_error = 640 * 2.0**-24 * (a.double().abs() @ b.double().abs())
    rounding = torch.finfo(dtype).eps * exact.abs()
    assert ((a @ b - exact).abs() <= rounding + float32_error).all()


def test_fp16_overflows_from_65520_on() -> None:
    row = torch.ones(1, 2).half()
    columns = torch.tensor([[65504.0, 65504.0, -65504.0], [15.0, 16.0, -16.0]]).half()
    assert (row @ columns).tolist() == [[65504.0, INF, -INF]]


@pytest.mark.parametrize("dtype", HALVES)
def test_nonfinite_operands_propagate(dtype: torch.dtype) -> None:
    a = torch.tensor([[1.0, INF, 2.0], [0.0, 1.0, 0.0], [-INF, 1.0, INF], [NAN, 0.0, 0.0], [3.0, 2.0, 1.0]])
    b = torch.tensor([[1.0, 0.0, INF], [1.0, 0.0, 1.0], [2.0, -INF, -1.0]])
    _assert_same(a.to(dtype) @ b.to(dtype), (a.double() @ b.double()).to(dtype))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("beta", "alpha"), [(1, 1), (0.5, 2.0), (0, 3.0), (-1, 0)])
def test_addmm_and_baddbmm_apply_alpha_and_beta(dtype: torch.dtype, beta: float, alpha: float) -> None:
    bias = torch.arange(5.0).to(dtype)
    a = torch.arange(-6.0, 6.0).view(3, 4).to(dtype)
    b = torch.arange(20.0).view(4, 5).to(dtype)
    wanted = (beta * bias.double() + alpha * (a.double() @ b.double())).to(dtype)
    _assert_same(torch.addmm(bias, a, b, beta=beta, alpha=alpha), wanted)
    _assert_same(torch.baddbmm(bias, a[None], b[None], beta=beta, alpha=alpha)[0], wanted)


def test_bias_is_added_before_rounding() -> None:
    """2048 + (1 + 2^-12) is nearest to 2050 in fp16; rounding the product first would give 2048."""
    a, b = torch.tensor([[1.0, 2.0**-6]]).half(), torch.tensor([[1.0], [2.0**-6]]).half()
    bias = torch.tensor([2048.0]).half()
    assert torch.addmm(bias, a, b).item() == 2050
    assert torch.baddbmm(bias, a[None], b[None]).item() == 2050
    assert linear(a, b.mT, bias).item() == 2050


@pytest.mark.parametrize("dtype", HALVES)
def test_beta_zero_ignores_a_nonfinite_self(dtype: torch.dtype) -> None:
    bad, a = torch.tensor([[NAN, INF], [-INF, NAN]]).to(dtype), torch.eye(2).to(dtype)
    _assert_same(torch.addmm(bad, a, a, beta=0), a)
    _assert_same(torch.baddbmm(bad[None], a[None], a[None], beta=0)[0], a)


def test_mixed_dtypes_and_wrong_shapes_still_raise() -> None:
    half = torch.ones(3, 3).half()
    with pytest.raises(RuntimeError, match="same dtype"):
        half @ half.float()
    with pytest.raises(RuntimeError, match="same dtype"):
        half.float() @ half
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        half @ half[:2]


def _operands() -> tuple[Tensor, Tensor]:
    """Large enough that torch's own fp16 kernel rounds some elements otherwise."""
    draw = torch.Generator().manual_seed(0)
    return torch.randn(64, 256, generator=draw).half(), torch.randn(512, 256, generator=draw).half()


def _spelled_out(a: Tensor, b: Tensor) -> Tensor:
    """The fp16 product that must be met everywhere, made without the override where there is one."""
    return a @ b if ARITHMETIC.fp16 == "native" else (a.float() @ b.float()).half()


def test_linear_backward_uses_the_same_products() -> None:
    x, weight = (operand.requires_grad_() for operand in _operands())
    out = linear(x, weight)
    grad = torch.randn_like(out)
    of_x, of_weight = torch.autograd.grad(out, (x, weight), grad)
    with torch.no_grad():
        _assert_same(out, _spelled_out(x, weight.mT))
        _assert_same(of_x, _spelled_out(grad, weight))
        _assert_same(of_weight, _spelled_out(grad.mT, x))


def test_other_threads_use_the_same_products() -> None:
    x, weight = _operands()
    made: list[Tensor] = []
    thread = threading.Thread(target=lambda: made.append(x @ weight.mT))
    thread.start()
    thread.join()
    _assert_same(made[0], _spelled_out(x, weight.mT))


def test_other_threads_run_during_a_product() -> None:
    """A heartbeat must not stop for the second that a product with a real head takes."""
    a = torch.randn(1200, 1200).half()
    running, beats = threading.Event(), []

    def beat() -> None:
        while not running.wait(0.001):
            beats.append(1)

    thread = threading.Thread(target=beat)
    thread.start()
    before = len(beats)
    torch.mm(a, a)
    during = len(beats) - before
    running.set()
    thread.join()
    assert during >= 3


@torch.library.custom_op("nangrid_test::linear", mutates_args=())
def _custom_linear(x: Tensor, weight: Tensor) -> Tensor:
    return linear(x, weight)


def test_custom_ops_use_the_products() -> None:
    x, weight = _operands()
    _assert_same(_custom_linear(x, weight), _spelled_out(x, weight.mT))


def test_bitsandbytes_layers_use_the_products() -> None:
    layer = bitsandbytes.nn.Linear4bit(256, 512, bias=False, compute_dtype=torch.float16, quant_type="nf4")
    layer = layer.to("cpu")
    weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).half()
    x = _operands()[0].requires_grad_()
    out = layer(x)
    grad = torch.randn_like(out)
    (of_x,) = torch.autograd.grad(out, x, grad)
    _assert_same(out, _spelled_out(x, weight.mT))
    _assert_same(of_x, _spelled_out(grad, weight))


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_uses_the_same_products(reentrant: bool) -> None:
    gradients = []
    for recompute in (False, True):
        x, weight = (operand.requires_grad_() for operand in _operands())

        def block(hidden: Tensor, weight: Tensor = weight) -> Tensor:
            return gelu(linear(hidden, weight)) @ weight

        out = checkpoint(block, x, use_reentrant=reentrant) if recompute else block(x)
        out.sum().backward()
        assert x.grad is not None and weight.grad is not None
        gradients.append((x.grad, weight.grad))
    for plain, recomputed in zip(*gradients, strict=True):
        _assert_same(recomputed, plain)


@pytest.mark.parametrize("dtype", HALVES)
def test_one_and_two_threads_give_the_same_bits(dtype: torch.dtype) -> None:
    a, b = torch.randn(128, 640).to(dtype), torch.randn(2048, 640).to(dtype).mT
    threads = torch.get_num_threads()
    made = []
    for count in (1, 2):
        torch.set_num_threads(count)
        made.append((a @ b, a.mT @ (a @ b)))
    torch.set_num_threads(threads)
    for one, two in zip(*made, strict=True):
        _assert_same(one, two)


WIDEST = [
    ((torch.float16, torch.float16), torch.float16),
    ((torch.float16, torch.bfloat16), torch.float32),
    ((torch.bfloat16, torch.float16), torch.float32),
    ((torch.float16, torch.float32), torch.float32),
    ((torch.bfloat16, torch.float32, torch.float16), torch.float32),
    ((torch.float16, torch.int64), torch.float16),
]


@pytest.mark.parametrize(("given_dtypes", "widest"), WIDEST)
def test_autocast_joins_tensors_in_the_widest_dtype(given_dtypes: tuple[torch.dtype, ...], widest: torch.dtype) -> None:
    tensors = [torch.arange(3).to(dtype) for dtype in given_dtypes]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        joined, stacked = torch.cat(tensors), torch.stack(tensors)
    assert (joined.dtype, stacked.dtype) == (widest, widest)
    assert joined.tolist() == [0, 1, 2] * len(tensors)
    assert stacked.tolist() == [[0, 1, 2]] * len(tensors)


@pytest.mark.parametrize("reentrant", [True, False])
def test_autocast_joins_tensors_in_checkpointed_regions(reentrant: bool) -> None:
    """As a rotary embedding does, over weights stored in fp16."""
    x, weight = (operand.requires_grad_() for operand in _operands())

    def rotate(hidden: Tensor) -> Tensor:
        left, right = linear(hidden, weight).chunk(2, dim=-1)
        return torch.cat([hidden, -right, torch.stack([left, left]).mean(0).half()], dim=-1)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = checkpoint(rotate, x, use_reentrant=reentrant)
    out.float().sum().backward()
    assert out.dtype == torch.float32
    assert x.grad is not None and x.grad.dtype == torch.float16 and x.grad.isfinite().all()
    assert weight.grad is not None and weight.grad.any()


def test_a_second_install_changes_nothing() -> None:
    a = _operands()[0]
    before = a @ a.mT
    assert install() is ARITHMETIC
    assert current() is ARITHMETIC
    _assert_same(a @ a.mT, before)


FRESH = """
import torch
from nangrid.cell.model.arithmetic import current, install

torch.manual_seed(0)
drawn = [torch.randn(2, 37, 64), torch.randn(2, 64, 53), torch.randn(37, 53)]

def products(dtype):
    a, b, c = ((8 * x).to(dtype) for x in drawn)
    return [a[0] @ b[0], a @ b, b.mT @ a.mT, torch.addmm(c, a[0], b[0], beta=3, alpha=2),
            torch.baddbmm(c, a, b, beta=3, alpha=2), a[0, :0] @ b[0], a[0, :, :0] @ b[0, :0]]

dtypes = [torch.float32, torch.float64, torch.int64, torch.int32, torch.complex64]
before = [products(dtype) for dtype in dtypes]
assert (current().fp16, current().bf16) == ("native", "native"), current()
mkldnn = torch.ops.mkldnn
level = {True: "native", False: "emulated"}
assert install().fp16 == level[mkldnn._is_mkldnn_fp16_supported()], current()
assert install().bf16 == level[mkldnn._is_mkldnn_bf16_supported()], current()
for was, dtype in zip(before, dtypes):
    for old, new in zip(was, products(dtype)):
        assert torch.equal(old, new) and old.stride() == new.stride() and old.dtype is new.dtype, dtype
"""


def test_other_dtypes_are_bit_identical_and_nothing_is_printed() -> None:
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
