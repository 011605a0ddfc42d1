"""Natural faults on many architectures, each with its true origin; only the batches are chosen."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from bare_loop import diagnose, located, model_loss, squares, train, words
from torch import Tensor, nn

from nangrid.records.autopsy import Autopsy


def here(autopsy: Autopsy) -> bool:
    return autopsy.source.startswith("test_faults.py:")


def llama(layers: int = 3, **changes: Any) -> nn.Module:
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | heads | changes))


# forward


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.out = nn.GRU(4, 8, batch_first=True), nn.Linear(8, 1)

    def forward(self, counts: Tensor) -> Tensor:
        out: Tensor = self.out(self.gru(torch.log(counts))[0][:, -1])
        return out


def test_gru_on_the_log_of_counts(tmp_path: Path) -> None:
    autopsy = diagnose(Recurrent(), [torch.rand(2, 5, 4) + 0.1, torch.tensor([[[0.0, 1, 2, 3]] * 5] * 2)], tmp_path)
    assert located(autopsy) == ("forward", "divide_by_zero", "aten.log.default")
    assert (autopsy.step, autopsy.mechanism) == (1, "log-of-zero") and here(autopsy)


class Pooled(nn.Module):
    """Bag of words: a mean over the tokens that are not padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(9, 4), nn.Linear(4, 1)

    def forward(self, input_ids: Tensor) -> Tensor:
        keep = (input_ids != 0).float()[..., None]
        out: Tensor = self.out((self.embed(input_ids) * keep).sum(1) / keep.sum(1))
        return out


def test_mean_over_a_sample_of_padding_only(tmp_path: Path) -> None:
    batches = [{"input_ids": torch.tensor([[1, 2, 0]])}, {"input_ids": torch.tensor([[1, 2, 0], [0, 0, 0]])}]
    autopsy = diagnose(Pooled(), batches, tmp_path)
    assert located(autopsy) == ("forward", "invalid", "aten.div.Tensor")
    assert (autopsy.step, autopsy.untrained) == (1, True) and here(autopsy)


class Graph(nn.Module):
    """A graph convolution with symmetric normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Linear(3, 3)

    def forward(self, adjacency: Tensor, x: Tensor) -> Tensor:
        scale = adjacency.sum(1).pow(-0.5)
        out: Tensor = self.weight((scale[:, None] * adjacency * scale[None]) @ x)
        return out


def test_graph_with_an_isolated_node(tmp_path: Path) -> None:
    lonely = torch.ones(3, 3)
    lonely[1], lonely[:, 1] = 0, 0
    batches = [(torch.ones(3, 3), torch.randn(3, 3)), (lonely, torch.randn(3, 3))]
    autopsy = diagnose(Graph(), batches, tmp_path)
    assert located(autopsy) == ("forward", "divide_by_zero", "aten.pow.Tensor_Scalar")


class Variational(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 4), nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        mean, log_variance = self.encoder(x).chunk(2, -1)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        fit: Tensor = ((self.decoder(z) - x) ** 2).mean()
        return fit + (log_variance.exp() + mean**2 - 1 - log_variance).sum()


def test_variational_autoencoder_on_unscaled_data(tmp_path: Path) -> None:
    autopsy = diagnose(Variational(), [torch.randn(2, 4), torch.randn(2, 4) * 3000], tmp_path, lambda out: out)
    assert located(autopsy) == ("forward", "overflow", "aten.exp.default")
    assert autopsy.inputs[0].absmax > 88


class Experts(nn.Module):
    """Mixture of experts, averaged over the tokens routed to each."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(4, 3), nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.gate(x).argmax(-1)
        return torch.stack([expert(x[chosen == i]).mean(0) for i, expert in enumerate(self.experts)])


def test_expert_without_tokens(tmp_path: Path) -> None:
    autopsy = diagnose(Experts(), [torch.randn(2, 4)], tmp_path)
    assert located(autopsy) == ("forward", "invalid", "aten.mean.dim") and here(autopsy)


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(1, 8, 3, 2, 1), nn.ConvTranspose2d(8, 1, 2, 2)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.up(self.down(image).relu() * 50)
        return out


def test_convolutions_in_half_precision_on_a_16_bit_image(tmp_path: Path) -> None:
    model = Convolutional().half()
    batches = [torch.rand(1, 1, 8, 8).half(), (torch.rand(1, 1, 8, 8) * 20000).half()]
    autopsy = diagnose(model, batches, tmp_path, optimizer=torch.optim.SGD(model.parameters(), 1e-6))
    assert located(autopsy) == ("forward", "overflow", "aten.mul.Tensor")
    assert (autopsy.step, autopsy.mechanism, autopsy.untrained) == (1, "fp16-activation-overflow", True)


def test_sum_of_many_float16(tmp_path: Path) -> None:
    model = nn.Linear(4, 4).half()
    autopsy = diagnose(model, [torch.ones(4096, 4).half()], tmp_path, lambda out: out.abs().add(20).sum())
    assert located(autopsy) == ("forward", "overflow", "aten.sum.default")
    assert autopsy.mechanism == "fp16-activation-overflow"


def test_t5_whose_attention_exceeds_float16(tmp_path: Path) -> None:
    sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    config = transformers.T5Config(**sizes, initializer_factor=60.0, decoder_start_token_id=0)
    autopsy = diagnose(transformers.T5ForConditionalGeneration(config).half(), [words()], tmp_path, model_loss)
    assert (autopsy.phase, autopsy.kind, autopsy.mechanism) == ("forward", "overflow", "fp16-activation-overflow")
    assert autopsy.module.startswith("encoder.block.0")


def test_llama_with_all_labels_ignored(tmp_path: Path) -> None:
    ignored = words()
    ignored["labels"] = torch.full_like(ignored["labels"], -100)
    autopsy = diagnose(llama(), [words(), ignored], tmp_path, model_loss)
    assert (autopsy.step, autopsy.mechanism) == (1, "empty-labels")


def test_labels_that_are_all_ignored_after_the_shift(tmp_path: Path) -> None:
    """All labels but the first are ignored, and the first is never predicted."""
    ignored = words()
    ignored["labels"][:, 1:] = -100
    autopsy = diagnose(llama(), [words(), ignored], tmp_path, model_loss)
    assert (autopsy.step, autopsy.mechanism) == (1, "empty-labels")


class Tagger(nn.Module):
    """Ignores padding by its own ignore_index; classes have different weights."""

    def __init__(self, weight: Tensor | None = None) -> None:
        super().__init__()
        self.embed, self.out, self.weight = nn.Embedding(20, 8), nn.Linear(8, 20), weight

    def forward(self, ids: Tensor, tags: Tensor) -> Tensor:
        logits = self.out(self.embed(ids)).flatten(0, 1)
        return F.cross_entropy(logits, tags.flatten(), self.weight, ignore_index=0)


@pytest.mark.parametrize("tag", [0, 7])
def test_tags_of_padding_only_or_of_a_class_with_weight_zero(tag: int, tmp_path: Path) -> None:
    weight = torch.ones(20)
    weight[7] = 0
    ids = torch.randint(1, 20, (2, 5))
    autopsy = diagnose(Tagger(weight), [(ids, ids), (ids, torch.full((2, 5), tag))], tmp_path, lambda out: out)
    assert (autopsy.step, autopsy.op, autopsy.mechanism) == (1, "aten.nll_loss_forward.default", "empty-labels")


class Spread(nn.Module):
    """A language model that guards its mean over labels, plus a term that needs more than one sample."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(20, 8), nn.Linear(8, 20)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        hidden = self.embed(input_ids)
        summed = F.cross_entropy(self.out(hidden).flatten(0, 1), labels.flatten(), reduction="sum")
        return summed / (labels != -100).sum().clamp(min=1) + hidden.mean(1).std(0).mean()


def test_ignored_labels_are_not_blamed_for_the_std_of_one_sample(tmp_path: Path) -> None:
    batch = {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.full((1, 3), -100)}
    autopsy = diagnose(Spread(), [batch], tmp_path, lambda out: out)
    assert located(autopsy) == ("forward", "invalid", "aten.std.correction") and here(autopsy)
    assert autopsy.mechanism == "mean-over-nothing"


def test_ignored_labels_are_not_blamed_for_an_overflow(tmp_path: Path) -> None:
    sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    config = transformers.T5Config(**sizes, initializer_factor=60.0, decoder_start_token_id=0, pad_token_id=0)
    batch = words() | {"labels": torch.full((2, 9), -100)}
    autopsy = diagnose(transformers.T5ForConditionalGeneration(config).half(), [batch], tmp_path, model_loss)
    assert (autopsy.kind, autopsy.mechanism) == ("overflow", "fp16-activation-overflow")


def test_llama_that_diverges(tmp_path: Path) -> None:
    model, batch = llama(), words()
    sgd = torch.optim.SGD(model.parameters(), lr=300.0)
    autopsy = diagnose(model, [batch] * 50, tmp_path, model_loss, sgd)
    assert (autopsy.phase, autopsy.kind, autopsy.untrained) == ("forward", "overflow", False)
    assert autopsy.mechanism == "divergence"


class TwiceMasked(nn.Module):
    """Padding is masked twice, as key and as query, by adding the most negative number each time."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(4, 4)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        mask = padding.float() * torch.finfo(torch.float32).min
        query = self.query(x)
        scores = query @ query.transpose(-1, -2) + (mask[:, None, :] + mask[:, :, None])
        return scores.softmax(-1) @ query


def test_two_masks_of_the_smallest_number(tmp_path: Path) -> None:
    """NVIDIA-NeMo/Automodel#2658: the sum of the masks is -inf, a whole row for a sample of padding only."""
    x, some = torch.randn(2, 3, 4), torch.tensor([[False, False, True], [False, True, True]])
    autopsy = diagnose(TwiceMasked(), [(x, some), (x, some | torch.tensor([[False], [True]]))], tmp_path)
    assert located(autopsy) == ("forward", "overflow", "aten.add.Tensor")
    assert (autopsy.step, autopsy.mechanism) == (1, "double-mask-overflow")


class Calculation(nn.Module):
    """A layer and a calculation on its output."""

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.then = nn.Linear(3, 3, bias=False), then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.layer(x))


def odds(logits: Tensor) -> Tensor:
    """huggingface/trl#2564: the log-odds of an answer with probability 1."""
    log_p = logits.log_softmax(-1)
    return log_p - torch.log1p(-log_p.exp())


POLES: list[tuple[Callable[[Tensor], Tensor], str, str]] = [
    (odds, "aten.log1p.default", "log-of-zero"),
    (lambda out: out.abs().sigmoid().logit(), "aten.logit.default", "log-of-zero"),
    (lambda out: out.norm(dim=-1).clamp(max=1.0).atanh(), "aten.atanh.default", "outside-domain"),
    (lambda out: 1 / (out.sigmoid() - 1), "aten.reciprocal.default", "unknown"),
]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("then", "op", "mechanism"), POLES)
def test_pole_is_a_division_by_zero_in_every_dtype(
    then: Callable[[Tensor], Tensor], op: str, mechanism: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = Calculation(then).to(dtype)
    nn.init.eye_(model.layer.weight)
    batches = [torch.tensor([[0.1, 0.2, 0.3]], dtype=dtype), torch.tensor([[300.0, -300, 0]], dtype=dtype)]
    autopsy = diagnose(model, batches, tmp_path, optimizer=torch.optim.SGD(model.parameters(), 1e-6))
    assert (*located(autopsy), autopsy.mechanism) == ("forward", "divide_by_zero", op, mechanism)
    advice = "".join(suggestion.advice for suggestion in autopsy.suggestions)
    assert here(autopsy) and "log1p" not in advice.replace("log1p(-exp(x))", "")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("then", "op", "large"),
    [
        (lambda out: 10 ** (out / 10), "aten.pow.Scalar", [0.0, 10.0, 4000.0]),
        (lambda out: (out * 1e15).repeat(1, 20).cumprod(-1), "aten.cumprod.default", [1.0, 9.0, 9.0]),
    ],
)
def test_overflow_in_every_dtype(
    then: Callable[[Tensor], Tensor], op: str, large: list[float], dtype: torch.dtype, tmp_path: Path
) -> None:
    """Decibels to amplitudes, and a product of moderate numbers."""
    model = Calculation(then).to(dtype)
    nn.init.eye_(model.layer.weight)
    autopsy = diagnose(model, [torch.tensor([large], dtype=dtype)], tmp_path)
    assert located(autopsy) == ("forward", "overflow", op)


@pytest.mark.parametrize("cast", [torch.float32, torch.float16])
def test_alignment_that_does_not_exist(cast: torch.dtype, tmp_path: Path) -> None:
    """A transcript longer than its audio: the loss is infinite in any dtype, with operands of size 5."""

    class Recogniser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(5, 12)

        def forward(self, audio: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
            frames = torch.full((2,), len(audio))
            return F.ctc_loss(self.out(audio).log_softmax(-1), targets, frames, lengths).to(cast)

    audio, targets = torch.randn(6, 2, 5), torch.randint(1, 12, (2, 9))
    batches = [(audio, targets, torch.tensor([2, 3])), (audio, targets, torch.tensor([2, 9]))]
    autopsy = diagnose(Recogniser(), batches, tmp_path, lambda out: out)
    assert (autopsy.op, autopsy.kind) == ("aten._ctc_loss.Tensor", "divide_by_zero")
    assert autopsy.mechanism == "ctc-target-too-long"


def test_states_of_a_markov_chain_that_cannot_be_reached(tmp_path: Path) -> None:
    """The log of the sum of two zero probabilities: its gradient is exp(-inf - -inf)."""
    unreachable = torch.tensor([0.0, -math.inf, -math.inf])
    model = Calculation(lambda out: torch.logaddexp(out + unreachable, unreachable.roll(1).expand(1, -1))[:, :1])
    batches = [torch.tensor([[1.0, 2.0, 3.0]])]
    autopsy = diagnose(model, batches, tmp_path, lambda out: out.sum())
    assert (autopsy.phase, autopsy.kind, autopsy.mechanism) == ("backward", "invalid", "unknown")
    assert autopsy.node == "LogaddexpBackward0"


class Policy(nn.Module):
    """Probabilities of the allowed actions."""

    def __init__(self, fill: float) -> None:
        super().__init__()
        self.out, self.fill = nn.Linear(4, 5), fill

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.out(x).masked_fill(mask, self.fill).log_softmax(-1)[:, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_state_without_an_action(dtype: torch.dtype, tmp_path: Path) -> None:
    some, none = torch.zeros(3, 5, dtype=torch.bool), torch.zeros(3, 5, dtype=torch.bool)
    some[0, 2:], none[0, 2:], none[1] = True, True, True
    x = torch.randn(3, 4, dtype=dtype)
    autopsy = diagnose(Policy(-math.inf).to(dtype), [(x, some), (x, none)], tmp_path)
    assert located(autopsy) == ("forward", "invalid", "aten._log_softmax.default") and autopsy.step == 1
    assert autopsy.mechanism == "masked-row-softmax" and "attention" not in autopsy.explanation
    assert autopsy.output is not None and autopsy.output.first_index == [1, 0], "the -inf of sample 0 are intentional"


def test_token_that_is_forced_is_no_mask(tmp_path: Path) -> None:
    forced = torch.zeros(3, 5, dtype=torch.bool)
    forced[:, 1] = True
    autopsy = diagnose(Policy(math.inf), [(torch.randn(3, 4), forced)], tmp_path)
    assert located(autopsy) == ("forward", "invalid", "aten._log_softmax.default")
    assert autopsy.mechanism == "unknown"


class Scaled(nn.Module):
    """A layer's scale that starts small, in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((4,), 1e-4))

    def forward(self, x: Tensor) -> Tensor:
        return ((x.half() * self.scale.half()).float() - 1.2 * x) / x.abs().max()


def test_parameter_that_grows_while_the_loss_falls_is_no_divergence(tmp_path: Path) -> None:
    model, x = Scaled(), torch.rand(3, 4) * 10 + 1
    adam = torch.optim.Adam(model.parameters(), 0.05)
    autopsy = diagnose(model, [x] * 60 + [torch.full((3, 4), 6e4)], tmp_path, optimizer=adam)
    assert (autopsy.kind, autopsy.mechanism) == ("overflow", "fp16-activation-overflow")
    assert autopsy.untrained is False


# backward


def test_gradient_of_a_logarithm_next_to_zero(tmp_path: Path) -> None:
    """The added eps is smaller than 1 / (the largest number)."""
    model = Calculation(lambda out: -torch.log(out.softmax(-1)[:, 0] + 1e-45))
    nn.init.eye_(model.layer.weight)
    autopsy = diagnose(model, [torch.tensor([[-900.0, 900, 0]])], tmp_path, lambda out: out.mean())
    assert (autopsy.phase, autopsy.kind, autopsy.node) == ("backward", "overflow", "LogBackward0")
    assert autopsy.mechanism == "log-of-zero" and here(autopsy)


class Weighted(nn.Module):
    """Padding, a zero row, has a far too large weight in the loss; there is no norm layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(12, 8), nn.Linear(8, 8, bias=False)
        nn.init.zeros_(self.embed.weight[:1])
        nn.init.constant_(self.out.weight, 2.0)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed

    def forward(self, input_ids: Tensor) -> Tensor:
        out = self.out(self.embed(input_ids))
        return ((out - out.detach()) * torch.where(input_ids == 0, 3e38, 1.0)[..., None]).sum()


def test_row_of_zeros_without_a_norm(tmp_path: Path) -> None:
    autopsy = diagnose(Weighted(), [{"input_ids": torch.tensor([[1, 2, 0, 0]])}], tmp_path, lambda out: out)
    assert (autopsy.phase, autopsy.kind, autopsy.mechanism) == ("backward", "overflow", "unknown")
    assert {token.id for token in autopsy.tokens} == {0}


def test_zero_rows_through_many_norms(tmp_path: Path) -> None:
    model = llama(layers=10, hidden_size=8, intermediate_size=16, initializer_range=1.0)
    with torch.no_grad():
        model.model.embed_tokens.weight[60:] = 0
    new = torch.randint(60, 64, (2, 9))
    autopsy = diagnose(model, [{"input_ids": new, "labels": new}], tmp_path, model_loss)
    assert (autopsy.step, autopsy.phase, autopsy.kind) == (0, "backward", "overflow")
    assert autopsy.mechanism == "zero-row-norm-gradient"
    assert {token.id for token in autopsy.tokens} <= set(new.flatten().tolist())


def test_gradient_of_acos_at_one(tmp_path: Path) -> None:
    """acos of a cosine that is 1."""
    model = nn.Linear(2, 1, bias=False)
    autopsy = diagnose(model, [torch.ones(1, 2)], tmp_path, lambda out: torch.acos((out / out.abs()).abs()).sum())
    assert (autopsy.phase, autopsy.node) == ("backward", "AcosBackward0") and here(autopsy)


class Guarded(nn.Module):
    """A root that `where` was meant to protect."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(self.weight > 0, self.weight.sqrt(), self.weight * x)


def test_square_root_behind_a_where(tmp_path: Path) -> None:
    autopsy = diagnose(Guarded(), [torch.ones(3)], tmp_path)
    assert (autopsy.clock, autopsy.phase, autopsy.node) == ("gradient", "backward", "SqrtBackward0")
    assert autopsy.parameters == ["weight"]
    assert any("3 of 3 elements" in line for line in autopsy.evidence)


class Reciprocal(torch.autograd.Function):
    """A custom function whose backward pass divides."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        return x.clamp(min=1e-3)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return grad / x


def test_custom_function(tmp_path: Path) -> None:
    autopsy = diagnose(Guarded(), [torch.ones(3)], tmp_path, lambda out: Reciprocal.apply(out * 0).sum())
    assert located(autopsy) == ("backward", "divide_by_zero", "aten.div.Tensor")
    assert autopsy.node == "ReciprocalBackward" and here(autopsy)


def test_gpt2_in_half_precision_whose_gradient_overflows(tmp_path: Path) -> None:
    sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32}
    config = transformers.GPT2Config(**sizes, initializer_range=20.0, bos_token_id=0, eos_token_id=0)
    autopsy = diagnose(transformers.GPT2LMHeadModel(config).half(), [words()], tmp_path, model_loss)
    assert located(autopsy) == ("backward", "overflow", "aten.pow.Tensor_Scalar")
    assert (autopsy.dtype, autopsy.mechanism) == ("float16", "fp16-gradient-overflow")


def test_scaler_that_finds_no_scale(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    autopsy = diagnose(model, [torch.ones(1, 3)] * 9, tmp_path, lambda o: (o - o.detach()).sqrt().sum(), scaler=scaler)
    assert (autopsy.step, autopsy.clock) == (0, "gradient"), "the first skipped step fails with a scale of 1 as well"
    assert "the GradScaler skipped the step, which fails with a scale of 1 as well" in autopsy.evidence
    assert autopsy.mechanism == "derivative-at-pole"
    assert (autopsy.phase, autopsy.kind, autopsy.node) == ("backward", "divide_by_zero", "SqrtBackward0")


# optimizer


def unread_rows() -> tuple[nn.Embedding, list[Tensor]]:
    return nn.Embedding(5, 3), [torch.tensor([1])]


@pytest.mark.parametrize(
    ("optimizer", "options", "op", "source"),
    [
        (torch.optim.Adagrad, {"eps": 0}, "aten.addcdiv_.default", "adagrad.py"),
        (torch.optim.RMSprop, {"eps": 0, "foreach": True}, "aten._foreach_addcdiv_.Scalar", "rmsprop.py"),
        (torch.optim.Adam, {"eps": 0, "fused": True}, "aten._fused_adam_.default", "adam.py"),
        (torch.optim.NAdam, {"eps": 0, "foreach": False}, "aten.addcdiv_.default", "nadam.py"),
    ],
)
def test_optimizer_without_eps(optimizer: Any, options: dict[str, Any], op: str, source: str, tmp_path: Path) -> None:
    model, batches = unread_rows()
    autopsy = diagnose(model, batches, tmp_path, optimizer=optimizer(model.parameters(), **options))
    assert (autopsy.clock, *located(autopsy)) == ("parameter", "optimizer", "invalid", op)
    assert autopsy.source.startswith(source)
    assert "weight: non-finite in 12 of 15 elements; 4 of 5 rows (0, 2, 3, 4)" in autopsy.evidence
    assert "eps is 0 in the optimizer's param_groups" in autopsy.evidence


def test_eps_that_underflows_elsewhere_is_not_blamed(tmp_path: Path) -> None:
    """All float16 parameters have gradients; the float32 rows without one have eps 0."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.narrow, self.wide = nn.Linear(3, 3).half(), nn.Embedding(5, 3)

        def forward(self, ids: Tensor) -> Tensor:
            out: Tensor = self.narrow(self.wide(ids).half())
            return out.float()

    model = Two()
    groups = [{"params": model.narrow.parameters()}, {"params": model.wide.parameters(), "eps": 0.0}]
    autopsy = diagnose(model, [torch.tensor([1, 2])], tmp_path, optimizer=torch.optim.Adam(groups, lr=1e-3))
    named = autopsy.phase, autopsy.parameters, autopsy.mechanism
    assert named == ("optimizer", ["wide.weight"], "optimizer-eps-underflow")
    assert "eps of Adam is 0 or rounds to 0 in float32" in autopsy.explanation


def test_eps_that_underflows_is_not_blamed_for_a_schedule(tmp_path: Path) -> None:
    model = nn.Linear(3, 1).half()
    adam = torch.optim.Adam(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: math.nan if step == 1 else 1.0)
    autopsy = diagnose(model, [torch.ones(2, 3).half()] * 3, tmp_path, optimizer=adam, scheduler=schedule)
    assert (autopsy.phase, autopsy.kind, autopsy.mechanism) == ("input", "nonfinite_input", "nonfinite-learning-rate")


def test_eps_that_underflows_is_not_blamed_for_a_root_of_a_negative(tmp_path: Path) -> None:
    """The second moments were loaded from a damaged checkpoint."""
    model = nn.Linear(3, 1, bias=False).half()
    adam = torch.optim.Adam(model.parameters(), 1e-3, foreach=False)
    squares(model(torch.ones(2, 3).half())).backward()  # type: ignore[no-untyped-call]
    adam.step()
    adam.state[model.weight]["exp_avg_sq"][0, 1] = -30
    autopsy = diagnose(model, [torch.ones(2, 3).half()], tmp_path, optimizer=adam)
    assert (*located(autopsy), autopsy.mechanism) == ("optimizer", "invalid", "aten.sqrt.default", "unknown")


class SignDescent(torch.optim.Optimizer):
    """Divides the gradient by its own magnitude."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * p.grad / p.grad.abs()


def test_custom_optimizer(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    batches = [torch.tensor([[1.0, 0.0, 0.0]])]
    autopsy = diagnose(model, batches, tmp_path, optimizer=SignDescent(model.parameters()))
    assert located(autopsy) == ("optimizer", "invalid", "aten.div.Tensor") and here(autopsy)
    assert autopsy.parameters == ["weight"]


def test_update_larger_than_the_largest_number(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=1e38, momentum=0.9)
    autopsy = diagnose(model, [torch.ones(2, 3)], tmp_path, lambda out: out.sum() * 10, sgd)
    assert located(autopsy) == ("optimizer", "overflow", "aten.add_.Tensor")


# input


def test_schedule_that_is_nan_at_step_2(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: math.nan if step == 2 else 1.0)
    autopsy = diagnose(model, [torch.ones(1, 3)] * 5, tmp_path, optimizer=sgd, scheduler=schedule)
    assert (autopsy.step, autopsy.clock, autopsy.phase) == (2, "parameter", "input")


def test_label_that_is_missing(tmp_path: Path) -> None:
    class Regression(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(3, 1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.mse_loss(self.out(x), y)

    batches = [(torch.ones(1, 3), torch.ones(1, 1)), (torch.ones(1, 3), torch.tensor([[math.nan]]))]
    autopsy = diagnose(Regression(), batches, tmp_path, lambda out: out)
    assert (autopsy.step, autopsy.phase, autopsy.kind) == (1, "input", "nonfinite_input")
    assert autopsy.evidence[0] == "batch[1] of micro-batch 0 was non-finite before it was read"


def test_buffer_that_was_loaded_broken(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    model[1].running_var[2] = math.nan
    autopsy = diagnose(model, [torch.randn(3, 4)], tmp_path)
    assert (autopsy.phase, autopsy.mechanism) == ("input", "uninitialised-parameter")
    assert "buffer 1.running_var" in autopsy.evidence[0]


@pytest.mark.parametrize("nested", [False, True])
def test_four_bits_made_from_a_broken_weight(nested: bool, tmp_path: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    broken = nn.Linear(64, 64, bias=False)
    broken.weight.data[3, 5] = math.inf
    layer = bitsandbytes.nn.Linear4bit(64, 64, False, torch.float32, compress_statistics=nested, quant_type="nf4")
    layer.load_state_dict(broken.state_dict())
    autopsy = diagnose(nn.Sequential(nn.Linear(64, 64), layer.to("cpu")), [torch.randn(2, 64)], tmp_path)
    assert (autopsy.phase, autopsy.mechanism) == ("input", "uninitialised-parameter")
    assert autopsy.evidence[0].startswith("parameter 1.weight (its quantisation's ")


# tokens


class Gated(nn.Module):
    """Token 29 overflows the gate; `layout` says how ids or hidden states are laid out."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.layout = layout
        self.embed, self.gate, self.out = nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        nn.init.uniform_(self.embed.weight, -1, 1)
        with torch.no_grad():
            self.embed.weight[29] *= 1e4

    def forward(self, input_ids: Tensor) -> Tensor:
        if self.layout == "samples, features":
            return torch.exp(self.gate(self.embed(input_ids)).mean(1))
        ids = input_ids.T if self.layout.startswith("times") else input_ids
        ids = ids.reshape(-1) if self.layout.endswith("flat") else ids
        if self.layout == "numbers":
            return torch.exp(self.embed(ids).abs().amax(-1))
        out: Tensor = self.out(torch.exp(self.gate(self.embed(ids))))
        return out


@pytest.mark.parametrize("length", [3, 5])
@pytest.mark.parametrize("layout", ["samples", "samples flat", "times", "times flat", "numbers"])
def test_token_in_every_layout(layout: str, length: int, tmp_path: Path) -> None:
    """With 3 samples of 3 tokens the shape is ambiguous; the affected embedding rows resolve it."""
    ids = torch.arange(1, 3 * length + 1).view(3, length)
    large = ids.clone()
    large[1, 2] = 29
    model = Gated(layout)
    sgd = torch.optim.SGD(model.parameters(), 1e-9)
    autopsy = diagnose(model, [{"input_ids": ids}, {"input_ids": large}], tmp_path, optimizer=sgd)
    assert (autopsy.step, autopsy.kind, autopsy.op) == (1, "overflow", "aten.exp.default")
    assert [(t.row, t.position, t.id) for t in autopsy.tokens] == [(1, 2, 29)]


def test_ambiguous_square_shape_names_no_token(tmp_path: Path) -> None:
    model = Gated("times")
    model.embed.requires_grad_(False)
    autopsy = diagnose(model, [{"input_ids": torch.tensor([[1, 2], [29, 3]])}], tmp_path)
    assert (autopsy.op, autopsy.tokens) == ("aten.exp.default", [])


def test_features_equal_to_tokens_is_ambiguous(tmp_path: Path) -> None:
    batch = {"input_ids": torch.tensor([[1, 2, 3, 4, 5, 6, 7, 29]] * 3)}
    autopsy = diagnose(Gated("samples, features"), [batch], tmp_path)
    assert (autopsy.op, autopsy.tokens) == ("aten.exp.default", [])


class Heads(nn.Module):
    """Attention with as many heads as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.query, self.out = nn.Embedding(20, 16), nn.Linear(16, 16), nn.Linear(16, 1)

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        query = self.query(self.embed(input_ids)).unflatten(-1, (4, 4)).transpose(1, 2)
        scores = (query @ query.transpose(-1, -2)).masked_fill(~mask, -math.inf)
        out: Tensor = self.out((scores.softmax(-1) @ query).transpose(1, 2).flatten(2))
        return out


@pytest.mark.parametrize(("length", "named"), [(4, []), (5, [(0, 2)])])
def test_heads_equal_to_tokens_is_ambiguous(length: int, named: list[tuple[int, int]], tmp_path: Path) -> None:
    mask = torch.ones(2, 1, length, length, dtype=torch.bool).tril()
    mask[0, :, 2] = False
    batch = {"input_ids": torch.arange(2 * length).view(2, length), "mask": mask}
    autopsy = diagnose(Heads(), [batch], tmp_path)
    assert autopsy.mechanism == "masked-row-softmax"
    assert [(t.row, t.position) for t in autopsy.tokens] == named


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gate, self.out = nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        nn.init.constant_(self.embed.weight[29], 1e4)

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor) -> Tensor:
        read = self.embed(input_ids).mean(1, keepdim=True)
        out: Tensor = self.out(torch.exp(self.gate(self.embed(decoder_input_ids) + read)))
        return out


@pytest.mark.parametrize(("length", "named"), [(4, []), (5, [(1, 3, 29)])])
def test_source_tokens_are_not_named_for_an_origin_in_the_target(
    length: int, named: list[tuple[int, int, int]], tmp_path: Path
) -> None:
    target = torch.arange(10, 10 + 2 * length).view(2, length)
    target[1, 3] = 29
    batch = {"input_ids": torch.arange(1, 9).view(2, 4), "decoder_input_ids": target}
    autopsy = diagnose(Translator(), [batch], tmp_path)
    assert autopsy.op == "aten.exp.default"
    assert [(t.row, t.position, t.id) for t in autopsy.tokens] == named


@pytest.mark.parametrize(("stack", "named"), [("encoder", True), ("decoder", False)])
def test_t5_names_source_tokens_only_in_its_encoder(stack: str, named: bool, tmp_path: Path) -> None:
    """The decoder reads the labels, which are as long as the source."""
    sizes = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    config = transformers.T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0)
    model = transformers.T5ForConditionalGeneration(config).half()
    nn.init.constant_(getattr(model, stack).block[0].layer[-1].DenseReluDense.wi.weight, 6e4)
    autopsy = diagnose(model, [words()], tmp_path, model_loss)
    assert autopsy.module.startswith(f"{stack}.block.0") and bool(autopsy.tokens) == named


def test_rows_of_the_only_embedding_are_tokens(tmp_path: Path) -> None:
    """One token occurs many times: its gradient is a sum."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(24, 4)

        def forward(self, input_ids: Tensor) -> Tensor:
            out: Tensor = self.embed(input_ids)
            return out

    batch = {"input_ids": torch.full((1, 64), 7)}
    autopsy = diagnose(Table().half(), [batch], tmp_path, lambda out: out.float().sum() * 2000)
    assert (autopsy.phase, autopsy.op) == ("backward", "aten.embedding_dense_backward.default")
    assert {token.id for token in autopsy.tokens} == {7}


def test_rows_of_an_output_matrix_are_not_tokens(tmp_path: Path) -> None:
    """More outputs than vocabulary entries: the gradient of the output weight overflows."""

    class Characters(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.up = nn.Embedding(24, 16), nn.Linear(16, 128, bias=False)
            nn.init.constant_(self.embed.weight, 300.0)
            nn.init.constant_(self.up.weight, 1e-4)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.up(self.embed(input_ids))

    model = Characters().half()
    batch = {"input_ids": torch.randint(0, 24, (2, 6))}
    sgd = torch.optim.SGD(model.parameters(), 1e-7)
    autopsy = diagnose(model, [batch], tmp_path, lambda out: out.float().sum() * 400, sgd)
    assert (autopsy.phase, autopsy.kind, autopsy.module) == ("backward", "overflow", "up")
    assert autopsy.tokens == [] and autopsy.parameters == ["up.weight"]


def test_model_whose_get_input_embeddings_raises(tmp_path: Path) -> None:
    """As in transformers' audio and vision models; an overflow in backward is still reported."""

    class Sounds(Calculation):
        def get_input_embeddings(self) -> nn.Module:
            raise NotImplementedError

    model = Sounds(lambda out: (out - out.detach()) * 3e38 * 3)
    autopsy = diagnose(model, [torch.full((2, 3), 9.0)], tmp_path, lambda out: out.sum())
    assert (autopsy.phase, autopsy.kind, autopsy.tokens) == ("backward", "overflow", [])


# compiled, adapted


def test_compiled_model_is_replayed_eagerly_and_the_evidence_says_so(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1))
    batches = [torch.randn(3, 6), torch.full((3, 6), math.inf)]
    autopsy = diagnose(torch.compile(model, backend="aot_eager"), batches, tmp_path)
    assert autopsy.phase == "input"
    assert any("compiled" in line for line in autopsy.evidence)


def test_dora_on_a_row_of_zeros(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        base[0].weight[2] = 0
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["0"], use_dora=True))
    autopsy = diagnose(model, [torch.randn(3, 6)], tmp_path)
    assert autopsy.mechanism == "dora-zero-norm" and autopsy.module == "0.lora_magnitude_vector.default"


def test_file_called_dora_is_not_taken_for_dora(tmp_path: Path) -> None:
    """The name of a script does not say what it divides by."""
    script = tmp_path / "finetune_dora.py"
    script.write_text("def pool(x, keep):\n    return (x * keep).sum(1) / keep.sum(1)\n")
    names: dict[str, Any] = {}
    exec(compile(script.read_text(), str(script), "exec"), names)
    model = Calculation(lambda out: names["pool"](out, (out == out.detach()).float() * 0))
    autopsy = diagnose(model, [torch.randn(2, 3)], tmp_path / "out")
    assert autopsy.source == "finetune_dora.py:2"
    assert (autopsy.kind, autopsy.mechanism) == ("invalid", "mean-over-nothing")


def test_nothing_is_found_where_nothing_is_wrong(tmp_path: Path) -> None:
    losses = train(llama(), [words()] * 5, tmp_path, model_loss, max_grad_norm=1.0)
    assert all(map(math.isfinite, losses)) and list(tmp_path.iterdir()) == []
