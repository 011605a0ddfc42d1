"""Each mechanism is named on a small natural failure, and not on one that only looks like it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from bare_loop import diagnose, words
from torch import Tensor, nn

from nangrid.records.autopsy import Autopsy
from nangrid.records.explain import explain


class Calculation(nn.Module):
    """A layer that hands on its input, and a calculation on its output."""

    def __init__(self, then: Callable[..., Tensor], size: int = 3) -> None:
        super().__init__()
        self.layer, self.then = nn.Linear(size, size, bias=False), then
        nn.init.eye_(self.layer.weight)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return self.then(self.layer(x), *others)


def calculate(then: Callable[..., Tensor], batches: Any, out_dir: Path, **options: Any) -> Autopsy:
    batches = batches if isinstance(batches, list) else [batches]
    model = Calculation(then, batches[0][0].shape[-1] if isinstance(batches[0], tuple) else batches[0].shape[-1])
    return diagnose(model, batches, out_dir, lambda out: out.sum(), **options)


def hidden(x: Tensor) -> Tensor:
    """All logits banned."""
    return x.masked_fill(torch.ones(1, 3, dtype=torch.bool), -math.inf)


ROW = torch.tensor([[1.0, 2.0, 3.0]])
ALIKE = torch.tensor([[2.0, 2.0, 2.0], [1.0, 2.0, 3.0]])
NOTHING = torch.zeros(1, 3)


@pytest.mark.parametrize(
    ("then", "batch", "mechanism", "said"),
    [
        # slopes at a pole
        (lambda x: (x - x.detach()).square().sum().sqrt(), ROW, "derivative-at-pole", "square root"),
        (lambda x: torch.acos(x[:, 0]), ROW, "derivative-at-pole", "acos"),
        (lambda x: (x * 0).pow(0.45), ROW, "derivative-at-pole", "power"),
        (lambda x: torch.linalg.eigh(torch.diag(x[0]))[1].sum(), ALIKE, "derivative-at-pole", "eigenvectors"),
        # means over nothing
        (lambda x: (x * (x > 9)).sum() / (x > 9).sum(), ROW, "mean-over-nothing", "a count of 0"),
        (lambda x: (x * (x > 9).float()).sum(-1) / (x > 9).float().sum(-1), ROW, "mean-over-nothing", "a count of 0"),
        (lambda x: (x * (x > 9) * x).sum() / ((x > 9) * torch.ones(3)).sum(), ROW, "mean-over-nothing", "a count of 0"),
        (lambda x: x[x > 9].mean(), ROW, "mean-over-nothing", "over no elements"),
        (lambda x: x.std(0), ROW, "mean-over-nothing", "a single value"),
        # statistics of zero
        (lambda x: (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True), ALIKE, "zero-scale", "exactly zero"),
        (lambda x: x / x.norm(dim=-1, keepdim=True), NOTHING, "zero-scale", "exactly zero"),
        (lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True)), NOTHING, "zero-scale", "exactly zero"),
        (lambda x: x.relu() / x.relu().sum(-1, keepdim=True), NOTHING, "zero-scale", "exactly zero"),
        (lambda x: x / x.square().sum(-1, keepdim=True), NOTHING, "zero-scale", "exactly zero"),
        (lambda x: (x - x.mean()) / (x.std() + 1e-50), torch.ones(1, 3), "zero-scale", "exactly zero"),
        (lambda x: F.normalize(x, eps=1e-50), NOTHING, "zero-scale", "exactly zero"),
        # a softmax written out
        (lambda x: hidden(x) - hidden(x).amax(-1, keepdim=True), ROW, "masked-row-softmax", "masked everywhere"),
        (lambda x: hidden(x) - hidden(x).sum(-1, keepdim=True), ROW, "unknown", "No known mechanism"),
        # exponentials
        (lambda x: (x * 40).exp(), ROW, "exp-overflow", "120"),
        (lambda x: (x * 40).cosh(), ROW, "exp-overflow", "120"),
        # domains
        (lambda x: torch.acos(x * 0.5), ROW, "outside-domain", "between -1 and 1"),
        (lambda x: (1 - x).sqrt(), ROW, "outside-domain", "0 or more"),
        (lambda x: torch.atanh(x[:, 0]), ROW, "outside-domain", "not defined at 1:"),
        # neither
        (lambda x: x / (x - x.detach()), ROW, "unknown", "No known mechanism"),
        (lambda x: (x * 0).exp().sub(1) / (x * 0), ROW, "unknown", "No known mechanism"),
        (lambda x: (x * 1e38) * 40, ROW, "unknown", "No known mechanism"),
    ],
)
def test_mechanism_of_a_calculation(
    then: Callable[..., Tensor], batch: Tensor, mechanism: str, said: str, tmp_path: Path
) -> None:
    autopsy = calculate(then, batch, tmp_path)
    assert (autopsy.mechanism, said in autopsy.explanation) == (mechanism, True), autopsy.explanation
    assert autopsy.source.startswith("test_naming.py:")


def test_count_that_is_an_integer_is_shown_as_the_divisor(tmp_path: Path) -> None:
    autopsy = calculate(
        lambda x, keep: (x * keep).sum() / keep.sum(), (ROW, torch.zeros(1, 3, dtype=torch.long)), tmp_path
    )
    assert (autopsy.op, autopsy.mechanism) == ("aten.div.Tensor", "mean-over-nothing")
    assert [(operand.name, operand.at, operand.dtype) for operand in autopsy.inputs] == [
        ("self", 0, "float32"),
        ("other", 0, "int64"),
    ]
    assert "operands: self 0, other 0" in explain(autopsy)
    tested = f"at {autopsy.source}: clamp the count to at least 1: tested, the step is finite"
    assert autopsy.suggestions[0].advice == tested


def test_number_that_is_divided_by_is_an_operand(tmp_path: Path) -> None:
    autopsy = calculate(lambda x: x / len(x[x > 9]), ROW, tmp_path)
    assert "other 0" in explain(autopsy) and autopsy.kind == "divide_by_zero"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mask_of_the_most_negative_float32_in_a_narrow_model(dtype: torch.dtype, tmp_path: Path) -> None:
    def attend(x: Tensor, keep: Tensor) -> Tensor:
        mask = (1 - keep) * torch.finfo(torch.float32).min
        return (x + mask.to(x.dtype)).softmax(-1)

    model = Calculation(attend).to(dtype)
    autopsy = diagnose(model, [(ROW.to(dtype), torch.zeros(1, 3))], tmp_path, lambda out: out[:, 0].sum())
    assert autopsy.mechanism == "mask-cast-to-infinity"
    assert str(dtype).removeprefix("torch.") in autopsy.suggestions[0].advice


def test_exponential_that_float32_could_hold_is_a_matter_of_float16(tmp_path: Path) -> None:
    autopsy = diagnose(Calculation(lambda x: (x * 4).exp()).half(), [ROW.half()], tmp_path)
    assert (autopsy.op, autopsy.mechanism) == ("aten.exp.default", "fp16-activation-overflow")


def test_log_counts_are_data_and_no_mask(tmp_path: Path) -> None:
    """One count is 0, so its logarithm, made before training, is -inf: the only infinity of the batch."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    counts = torch.tensor([[1.0, 2, 3, 4], [5, 0, 7, 8]])
    autopsy = diagnose(model, [counts.clamp(min=1).log(), counts.log()], tmp_path)
    assert (autopsy.phase, autopsy.op, autopsy.module) == ("input", "aten.addmm.default", "0")
    assert autopsy.mechanism == "nonfinite-data"
    assert "1 of 2 samples (1); 1 of 4 columns (1)" in autopsy.explanation


def test_mask_of_minus_infinity_that_is_passed_in_is_no_data(tmp_path: Path) -> None:
    nowhere = torch.full((1, 3), -math.inf)
    autopsy = calculate(lambda x, mask: (x + mask * 2).softmax(-1), (ROW, nowhere), tmp_path)
    assert (autopsy.phase, autopsy.op, autopsy.mechanism) == ("forward", "aten._softmax.default", "masked-row-softmax")


class Completions(nn.Module):
    """A loss over the tokens of the completions alone, as TRL's trainers compute it."""

    def __init__(self, per_sample: bool) -> None:
        super().__init__()
        self.embed, self.out, self.per_sample = nn.Embedding(64, 8), nn.Linear(8, 64), per_sample

    def forward(self, input_ids: Tensor, completion_mask: Tensor) -> Tensor:
        losses = F.cross_entropy(self.out(self.embed(input_ids)).transpose(1, 2), input_ids, reduction="none")
        kept = losses * completion_mask
        if self.per_sample:
            return (kept.sum(-1) / completion_mask.sum(-1)).mean()
        return kept.sum() / completion_mask.sum()


@pytest.mark.parametrize("per_sample", [False, True])
def test_completion_mask_that_selects_nothing(per_sample: bool, tmp_path: Path) -> None:
    ids = words()["input_ids"]
    some = torch.ones_like(ids)
    none = some.clone()
    none[1 if per_sample else slice(None)] = 0
    batches = [{"input_ids": ids, "completion_mask": mask} for mask in (some, none)]
    autopsy = diagnose(Completions(per_sample), batches, tmp_path, lambda out: out)
    assert (autopsy.step, autopsy.mechanism) == (1, "empty-labels")
    assert "completion_mask" in autopsy.explanation
    assert autopsy.cures == [], "another divisor would only hide that there is nothing to learn"


def test_three_losses_that_rise_by_batch_noise_are_no_divergence(tmp_path: Path) -> None:
    """The loss has risen a hundredfold in three steps, but the weights have hardly moved."""
    model = Calculation(lambda x: x * 3e38)
    with torch.no_grad():
        model.layer.weight[0, 0] = 1.1
    batches = [torch.full((1, 3), size) for size in (0.01, 0.1, 0.5, 0.9, 1.02)]
    ascent = torch.optim.SGD(model.parameters(), 1e-40, maximize=True)
    autopsy = diagnose(model, batches, tmp_path, lambda out: out[:, 0].sum(), ascent)
    assert (autopsy.step, autopsy.kind, autopsy.untrained) == (4, "overflow", False)
    assert autopsy.mechanism == "unknown"


def test_overflow_of_the_backward_pass_is_no_divergence(tmp_path: Path) -> None:
    """The weight has grown and the loss has risen step by step, but it is one batch whose gradient is too large."""
    model = Calculation(lambda x: x)
    with torch.no_grad():
        model.layer.weight.zero_()[0, 0] = 0.1
    batches = [torch.tensor([[size, 0.0, 0.0]]) for size in (1.0, 1.0, 1.0, 1.0, 3e19)]
    ascent = torch.optim.SGD(model.parameters(), 0.5, maximize=True)
    autopsy = diagnose(model, batches, tmp_path, lambda out: out[:, 0].square().sum() / 2, ascent)
    assert (autopsy.step, autopsy.phase, autopsy.kind, autopsy.untrained) == (4, "backward", "overflow", False)
    assert autopsy.mechanism == "unknown"


class Rare(torch.optim.Optimizer):
    """RMSprop by hand, whose eps is too small for half precision."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 1e-3, "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * p.grad / (p.grad.square().sqrt() + group["eps"])


def test_eps_that_vanishes_in_another_optimizer(tmp_path: Path) -> None:
    model = nn.Embedding(5, 3).half()
    autopsy = diagnose(model, [torch.tensor([1])], tmp_path, optimizer=Rare(model.parameters()))
    assert (autopsy.phase, autopsy.mechanism) == ("optimizer", "optimizer-eps-underflow")
    assert "Rare" in autopsy.explanation


class Leftover(nn.Module):
    """The optimizer holds the layer alone, so that the gradient of the scale accumulates from step to step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 1), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale * 1e38


def test_gradient_of_a_parameter_that_the_optimizer_does_not_hold(tmp_path: Path) -> None:
    model = Leftover()
    nn.init.constant_(model.layer.weight, 0.3)
    nn.init.zeros_(model.layer.bias)
    sgd = torch.optim.SGD(model.layer.parameters(), lr=0.0)
    autopsy = diagnose(model, [torch.ones(1, 3)] * 8, tmp_path, lambda out: out.sum(), sgd)
    assert autopsy.step == 3, "0.9e38 per step: the fourth gradient overflows"
    assert (autopsy.clock, autopsy.phase, autopsy.parameters) == ("gradient", "backward", ["scale"])


def test_earlier_of_two_producers_on_one_line(tmp_path: Path) -> None:
    """Both logarithms of zero reach the loss; the second hits the element that is looked at first."""

    def divergence(p: Tensor, q: Tensor) -> Tensor:
        return p.log() - (p * q).square().log()

    autopsy = calculate(divergence, (torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 1.0]])), tmp_path)
    assert (autopsy.op, autopsy.inputs[0].shape) == ("aten.log.default", [1, 3])
    assert autopsy.output is not None and autopsy.output.first_index == [0, 1]


class Scorer(nn.Module):
    """A language model of which one output row is damaged: every token's logits are hit in one column."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(64, 8), nn.Linear(8, 64, bias=False)
        nn.init.constant_(self.embed.weight, 1.0)
        nn.init.constant_(self.out.weight[29], 3e38)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.out(self.embed(input_ids))


def test_column_of_the_vocabulary_names_no_tokens_of_the_batch(tmp_path: Path) -> None:
    with torch.no_grad():
        model = Scorer()
    autopsy = diagnose(model, [{"input_ids": words()["input_ids"]}], tmp_path, lambda out: out.logsumexp(-1).mean())
    assert (autopsy.op, autopsy.tokens) == ("aten.mm.default", [])


def test_gradient_overflow_in_a_llama_gets_no_advice_about_new_tokens(tmp_path: Path) -> None:
    """Nobody without new tokens is told to initialise rows, and a script is told no overrides."""
    sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32}
    config = transformers.GPT2Config(**sizes, initializer_range=20.0, bos_token_id=0, eos_token_id=0)
    model = transformers.GPT2LMHeadModel(config).half()
    autopsy = diagnose(model, [words()], tmp_path, lambda out: out.loss)
    assert autopsy.mechanism == "fp16-gradient-overflow" and autopsy.suggestions
    assert not any(suggestion.override or "=" in suggestion.advice for suggestion in autopsy.suggestions)
