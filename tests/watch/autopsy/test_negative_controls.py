"""Alarming but legitimate values in real models: no clock may trip."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from bare_loop import model_loss, train, words
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

VOCABULARY = 64


def gemma(**changes: Any) -> Any:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0}
    return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**sizes, **heads, **changes))


def masked_words() -> dict[str, Tensor]:
    batch = words((2, 8))
    return batch | {"attention_mask": torch.ones_like(batch["input_ids"])}


def finite(losses: list[float], out_dir: Path) -> bool:
    return all(map(math.isfinite, losses)) and list(out_dir.iterdir()) == []


def test_reentrant_checkpointing_that_trains_nothing(tmp_path: Path) -> None:
    """huggingface/transformers#26221: the inputs do not require gradients, so no layer inside gets one."""
    model = gemma()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.model.embed_tokens.requires_grad_(False)
    model.train()
    assert finite(train(model, [masked_words()] * 3, tmp_path, model_loss), tmp_path)


def test_token_beyond_the_vocabulary_raises_torchs_index_error(tmp_path: Path) -> None:
    beyond = masked_words()
    beyond["input_ids"][0, 0] = VOCABULARY
    with pytest.raises(IndexError):
        train(gemma(), [beyond], tmp_path, model_loss)
    assert list(tmp_path.iterdir()) == []


def test_updates_that_round_away(tmp_path: Path) -> None:
    """NVIDIA-NeMo/Automodel#3444: updates of bfloat16 weights round to nothing."""
    model = gemma().bfloat16()
    before = model.model.layers[0].self_attn.q_proj.weight.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    assert finite(train(model, [masked_words()] * 3, tmp_path, model_loss, optimizer), tmp_path)
    assert (before == model.model.layers[0].self_attn.q_proj.weight).float().mean() > 0.99


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_additive_masks_of_minus_infinity_over_padding(attention: str, side: str, tmp_path: Path) -> None:
    batch = masked_words()
    padded = slice(0, 3) if side == "left" else slice(5, 8)
    batch["attention_mask"][0, padded], batch["labels"][0, padded] = 0, -100
    assert finite(train(gemma(attn_implementation=attention), [batch] * 3, tmp_path, model_loss), tmp_path)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_discarded_sample_of_padding_only(attention: str, tmp_path: Path) -> None:
    batch = masked_words()
    batch["attention_mask"][1], batch["labels"][1] = 0, -100
    assert finite(train(gemma(attn_implementation=attention), [batch] * 3, tmp_path, model_loss), tmp_path)


class Attention(nn.Module):
    """One query, of three, may look at nothing."""

    def __init__(self, backend: SDPBackend, additive: bool) -> None:
        super().__init__()
        self.layer, self.backend = nn.Linear(8, 8), backend
        keep = torch.tensor([[True], [False], [True]]).expand(3, 3)
        self.mask = torch.zeros(3, 3).masked_fill(~keep, -math.inf) if additive else keep

    def forward(self, x: Tensor) -> Tensor:
        heads = self.layer(x)[:, None]
        with sdpa_kernel([self.backend]):
            return F.scaled_dot_product_attention(heads, heads, heads, self.mask)


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_row_that_is_masked_everywhere_under_each_backend_of_the_cpu(
    backend: SDPBackend, additive: bool, tmp_path: Path
) -> None:
    """torch gives such a row zeros, where a softmax that is written out gives NaN."""
    model, x = Attention(backend, additive), torch.randn(2, 3, 8)
    assert (model(x)[:, 0, 1] == 0).all()
    assert finite(train(model, [x] * 3, tmp_path), tmp_path)


class Banned(nn.Module):
    """The logits of banned tokens are -inf."""

    def __init__(self) -> None:
        super().__init__()
        self.lm = gemma()

    def forward(self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor) -> Tensor:
        logits = self.lm(input_ids=input_ids, attention_mask=attention_mask).logits
        logits = logits.index_fill(-1, torch.tensor([0, 1, 2]), -math.inf)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def test_banned_tokens(tmp_path: Path) -> None:
    assert finite(train(Banned(), [masked_words()] * 3, tmp_path, lambda out: out), tmp_path)


def test_loss_spike_that_recovers(tmp_path: Path) -> None:
    factors = iter([1.0, 1.0, 1e4, 1.0, 1.0])
    losses = train(
        gemma(), [masked_words()] * 5, tmp_path, lambda out: model_loss(out) * next(factors), max_grad_norm=1.0
    )
    assert finite(losses, tmp_path) and losses[2] > 1e4 > losses[4]


def test_dropout_of_nine_tenths_and_frozen_parameters(tmp_path: Path) -> None:
    model = gemma(attention_dropout=0.9)
    for parameter in model.model.layers[0].parameters():
        parameter.requires_grad_(False)
    assert finite(train(model, [masked_words()] * 3, tmp_path, model_loss), tmp_path)


def test_head_row_of_zeros_where_the_other_logits_are_very_negative(tmp_path: Path) -> None:
    """huggingface/transformers#29219: the loss starts in the hundreds."""
    model = gemma(tie_word_embeddings=False)
    model.lm_head.weight.data[:] = 0
    model.lm_head.bias = nn.Parameter(torch.full((VOCABULARY,), -400.0))
    model.lm_head.bias.data[-1] = 0
    losses = train(model, [masked_words()] * 3, tmp_path, model_loss)
    assert finite(losses, tmp_path) and losses[0] > 100


def test_buffer_of_infinities_that_is_never_read(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model.register_buffer("limits", torch.full((4,), math.inf))
    assert finite(train(model, [torch.randn(2, 4)] * 3, tmp_path), tmp_path)


def test_scaler_that_is_searching_for_its_scale(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    sgd = torch.optim.SGD(model.parameters(), lr=1e-12)
    losses = train(model, [torch.full((1, 3), 1e6)] * 60, tmp_path, lambda out: out.mean(), sgd, scaler=scaler)
    assert finite(losses, tmp_path) and scaler.get_scale() < 2.0**110
