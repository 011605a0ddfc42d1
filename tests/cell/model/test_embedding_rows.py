"""Rows of new tokens start at their level, old rows and tied matrices stay, padded models keep their size."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from nangrid.cell.config import InitConfig
from nangrid.cell.model.embedding_rows import add_rows

OLD, NEW = 40, 5


@pytest.fixture
def gemma() -> PreTrainedModel:
    config = Gemma3TextConfig(vocab_size=OLD, hidden_size=8, intermediate_size=8, num_hidden_layers=1, head_dim=4)
    return Gemma3ForCausalLM(config)


@pytest.fixture
def llama() -> PreTrainedModel:
    config = LlamaConfig(vocab_size=OLD, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    return LlamaForCausalLM(config)


@pytest.fixture
def bert() -> PreTrainedModel:
    """Tied, with a bias in the head, to which transformers' mean_resizing appends zeros."""
    config = BertConfig(
        vocab_size=OLD, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, is_decoder=True
    )
    model = BertLMHeadModel(config)
    model.get_output_embeddings().bias.data = torch.arange(float(OLD))
    return model


@pytest.mark.parametrize("level", ["zero", "mean", "normal", "mvn", "uninitialised"])
def test_tied_model_grows_by_the_new_rows_and_still_runs(gemma: PreTrainedModel, level: str) -> None:
    old = gemma.get_input_embeddings().weight.detach().clone()
    assert add_rows(gemma, OLD, NEW, InitConfig(level)) == 1
    weight = gemma.get_input_embeddings().weight
    assert torch.equal(weight[:OLD], old)
    assert gemma.get_output_embeddings().weight is weight
    ids = torch.tensor([[0, OLD, OLD + NEW - 1]])
    assert gemma(input_ids=ids, labels=ids).logits.shape[-1] == OLD + NEW


def test_zero_mean_and_normal_rows_have_their_statistics(gemma: PreTrainedModel) -> None:
    weight = gemma.get_input_embeddings().weight.detach().clone()
    add_rows(gemma, OLD, NEW, InitConfig("zero"))
    assert gemma.get_input_embeddings().weight[OLD:].abs().max() == 0
    add_rows(gemma, OLD, NEW, InitConfig("mean"))
    torch.testing.assert_close(gemma.get_input_embeddings().weight[OLD], weight.mean(0))
    add_rows(gemma, OLD, NEW, InitConfig("normal", std=3.0))
    rows = gemma.get_input_embeddings().weight[OLD:]
    assert 1.5 < rows.std() < 4.5
    assert len(rows.unique(dim=0)) == NEW


def test_mvn_rows_are_near_the_mean_but_not_equal_to_it(gemma: PreTrainedModel) -> None:
    mean = gemma.get_input_embeddings().weight.detach().mean(0)
    add_rows(gemma, OLD, NEW, InitConfig("mvn"))
    rows = gemma.get_input_embeddings().weight[OLD:]
    torch.testing.assert_close(rows, mean.expand_as(rows), atol=1e-3, rtol=0)


def test_untied_head_gets_separate_rows(llama: PreTrainedModel) -> None:
    assert add_rows(llama, OLD, NEW, InitConfig("mean")) == 2
    head = llama.get_output_embeddings().weight
    torch.testing.assert_close(head[OLD], head[:OLD].mean(0))
    assert head is not llama.get_input_embeddings().weight


def test_spare_rows_of_a_padded_embedding_are_overwritten(llama: PreTrainedModel) -> None:
    add_rows(llama, OLD - 8, NEW, InitConfig("zero"))
    weight = llama.get_input_embeddings().weight
    assert weight.shape[0] == OLD
    assert weight[OLD - 8 : OLD - 8 + NEW].abs().max() == 0
    assert weight[OLD - 8 + NEW :].abs().min() > 0


def test_no_new_token_changes_nothing(gemma: PreTrainedModel) -> None:
    before = gemma.get_input_embeddings().weight.detach().clone()
    assert add_rows(gemma, OLD, 0, InitConfig("zero")) == 0
    assert torch.equal(gemma.get_input_embeddings().weight, before)


@pytest.mark.parametrize("level", ["zero", "mean", "normal", "mvn", "uninitialised"])
@pytest.mark.parametrize("first", [OLD, OLD - 8])
def test_untied_and_padded_at_every_level(llama: PreTrainedModel, level: str, first: int) -> None:
    matrices = [llama.get_input_embeddings().weight, llama.get_output_embeddings().weight]
    before = [weight.detach().clone() for weight in matrices]
    assert add_rows(llama, first, NEW, InitConfig(level)) == 2
    after = [llama.get_input_embeddings().weight, llama.get_output_embeddings().weight]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new[:first], old[:first])
        rows = new[first : first + NEW]
        if level == "zero":
            assert rows.abs().max() == 0
        elif level in ("mean", "mvn"):
            torch.testing.assert_close(rows, old[:first].mean(0).expand_as(rows), atol=1e-3, rtol=0)
    ids = torch.tensor([[0, first, first + NEW - 1]])
    assert llama(input_ids=ids, labels=ids).logits.shape[-1] == after[0].shape[0] >= first + NEW


@pytest.mark.parametrize(("level", "expected"), [("zero", 0.0), ("mean", (OLD - 1) / 2), ("mvn", 0.0)])
def test_head_bias_follows_init(bert: PreTrainedModel, level: str, expected: float) -> None:
    assert add_rows(bert, OLD, NEW, InitConfig(level)) == 2
    bias = bert.get_output_embeddings().bias
    assert torch.equal(bias[:OLD], torch.arange(float(OLD)))
    torch.testing.assert_close(bias[OLD:], torch.full((NEW,), expected), atol=1e-3, rtol=0)
    assert bert.get_output_embeddings().weight is bert.get_input_embeddings().weight
    ids = torch.tensor([[0, OLD, OLD + NEW - 1]])
    logits = bert(input_ids=ids, labels=ids).logits
    assert logits.shape[-1] == OLD + NEW and logits.isfinite().all()


@pytest.mark.parametrize("level", ["zero", "mean", "normal", "mvn"])
def test_base_ids_without_rows_get_rows(llama: PreTrainedModel, level: str) -> None:
    add_rows(llama, OLD + 3, NEW, InitConfig(level))
    for weight in (llama.get_input_embeddings().weight, llama.get_output_embeddings().weight):
        assert weight.shape[0] == OLD + 3 + NEW
        assert weight[OLD:].abs().max() < 1
        if level == "zero":
            assert weight[OLD:].abs().max() == 0
