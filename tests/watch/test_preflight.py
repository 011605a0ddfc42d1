"""Preflight finds each planted fault before training, and nothing on sound models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn

import nangrid
from nangrid.records.errors import InputError
from nangrid.watch import Finding, preflight
from nangrid.watch.preflight import Settings

VOCABULARY = 96
SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": VOCABULARY}
DECODER = SMALL | {"num_hidden_layers": 2, "num_key_value_heads": 2, "pad_token_id": 0}


def gemma() -> nn.Module:
    return hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**DECODER, head_dim=16, use_cache=False))


def llama() -> nn.Module:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**DECODER))


def qwen() -> nn.Module:
    return hf.Qwen2ForCausalLM(hf.Qwen2Config(**DECODER))


def gpt2() -> nn.Module:
    return hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=32, n_head=2, n_layer=2, vocab_size=VOCABULARY, n_positions=64))


def bert() -> nn.Module:
    return hf.BertForSequenceClassification(hf.BertConfig(**SMALL, num_hidden_layers=2, max_position_embeddings=64))


def lora() -> nn.Module:
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "embed_tokens"])
    return get_peft_model(llama(), config)  # type: ignore[arg-type]


def texts(count: int = 20, length: int = 12, first: int = 2) -> list[dict[str, Any]]:
    samples = [torch.randint(first, VOCABULARY, (length,)).tolist() for _ in range(count)]
    return [{"input_ids": ids, "labels": list(ids), "attention_mask": [1] * length} for ids in samples]


def arguments(tmp_path: Path, **more: Any) -> hf.TrainingArguments:
    options = {"logging_nan_inf_filter": False, "report_to": "none", "use_cpu": True}
    return hf.TrainingArguments(output_dir=str(tmp_path), **options | more)


def named(findings: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.severity for finding in findings}


@pytest.mark.parametrize("model", [gemma, llama, qwen, gpt2, bert, lora])
def test_nothing_is_found_where_nothing_is_wrong(model: Callable[[], nn.Module], tmp_path: Path) -> None:
    samples = texts()
    if model is bert:
        samples = [sample | {"labels": 1} for sample in samples]
    assert nangrid.check(model(), samples, arguments(tmp_path)) == []


def test_preflight_changes_nothing(tmp_path: Path) -> None:
    model, samples, options = llama().eval(), texts(), arguments(tmp_path)
    before, state = {n: p.clone() for n, p in model.named_parameters()}, torch.random.get_rng_state()
    nangrid.check(model, samples, options)
    assert all(torch.equal(before[n], p) and p.grad is None for n, p in model.named_parameters())
    assert torch.equal(state, torch.random.get_rng_state()) and not model.training


def test_eval_mode_is_preserved() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = llama()
            self.norm = nn.BatchNorm1d(VOCABULARY)

        def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> Any:
            logits = self.norm(self.inner(input_ids=input_ids).logits.flatten(0, 1))
            loss = nn.functional.cross_entropy(logits, labels.flatten())
            return type("Output", (), {"loss": loss})()

    model = Normed().train()
    model.inner.eval()
    mean = model.norm.running_mean.clone()
    assert preflight(model, texts(), Settings()) == []
    assert not model.inner.training and model.norm.training and torch.equal(mean, model.norm.running_mean)


def test_a_forward_pass_that_raises_is_a_finding() -> None:
    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, **inputs: Any) -> Any:
            raise ValueError("You have to specify decoder_input_ids")

    (finding,) = nangrid.check(Translator(), texts())
    assert (finding.check, finding.severity) == ("forward-pass", "warning")
    assert "raised ValueError: You have to specify decoder_input_ids" in finding.evidence


def test_a_model_without_trainables() -> None:
    assert [finding.check for finding in nangrid.check(llama().requires_grad_(False), texts())] == ["no-trainables"]


@pytest.mark.parametrize("sample", ["text", {"text": "not tokenised"}, {"input_ids": None}])
def test_samples_that_are_not_tokenised(sample: Any) -> None:
    with pytest.raises(InputError, match="has no input_ids"):
        nangrid.check(llama(), [sample])


def test_zero_rows_count_only_if_the_data_uses_them() -> None:
    model = llama()
    model.get_input_embeddings().weight.data[90:] = 0
    settings = Settings(first_new_id=90, texts={95: "_list"})
    samples = [*texts(), {"input_ids": [5, 95, 95, 6], "labels": [5, 95, 95, 6]}]
    (found,) = preflight(model, samples, settings)
    assert (found.check, found.severity, found.fix) == ("zero-rows", "warning", "init=mean")
    assert "'_list' (95)" in found.evidence
    padded = {"input_ids": [5, 7, 95], "labels": [5, 7, -100], "attention_mask": [1, 1, 0]}
    assert preflight(model, [padded], settings) == []


def test_zero_rows_in_float16_are_an_error() -> None:
    model = llama().half()
    model.get_input_embeddings().weight.data[90:] = 0
    assert named(preflight(model, texts(), Settings(), trial=False))["zero-rows"] == "error"


def test_rows_that_were_never_initialised() -> None:
    model = llama()
    model.get_input_embeddings().weight.data[90:93] = 3e4
    assert named(preflight(model, texts(), Settings()))["absurd-rows"] == "error"


def test_rows_that_are_the_same() -> None:
    model = llama()
    model.get_input_embeddings().weight.data[90:] = model.get_input_embeddings().weight.data[:90].mean(0)
    assert named(preflight(model, texts(), Settings())) == {"duplicate-rows": "note"}


def test_an_untied_head_is_checked_too() -> None:
    model = llama()
    model.get_output_embeddings().weight.data[90:] = 0
    (found,) = preflight(model, texts(), Settings())
    assert found.check == "zero-rows" and "in the head" in found.evidence


@pytest.mark.parametrize(("value", "check"), [(float("nan"), "non-finite"), (1e30, "uninitialised")])
def test_parameters_with_invalid_values(value: float, check: str) -> None:
    model = llama()
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = value
    found = preflight(model, texts(), Settings(), trial=False)
    assert named(found) == {check: "error"} and "layers.1.mlp.up_proj.weight" in found[0].evidence


def test_a_parameter_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    assert {f.check for f in preflight(model, [], Settings())} == {"uninitialised"}


def test_a_buffer_may_contain_minus_infinity_but_no_nan() -> None:
    model = llama()
    model.register_buffer("mask", torch.full((4, 4), float("-inf")))
    assert preflight(model, texts(), Settings()) == []
    model.register_buffer("mean", torch.full((4,), float("nan")))
    assert named(preflight(model, texts(), Settings())) == {"non-finite": "error"}


def test_labels_that_are_all_masked() -> None:
    none = {"input_ids": [5, 6, 7], "labels": [-100] * 3}
    first = {"input_ids": [5, 6, 7], "labels": [5, -100, -100]}  # the first is never predicted
    found = preflight(llama(), [*texts(), none, first], Settings())
    assert named(found) == {"empty-labels": "warning"} and "2 of 22 samples" in found[0].evidence
    assert named(preflight(llama(), [none], Settings()))["empty-labels"] == "error"


def test_sequences_that_are_masked_everywhere() -> None:
    hidden = {"input_ids": [5, 6], "labels": [5, 6], "attention_mask": [0, 0]}
    assert named(preflight(llama(), [*texts(), hidden], Settings())) == {"masked-sequence": "warning"}


def test_documents_of_new_tokens_only() -> None:
    alone = {"input_ids": [91, 92, 93], "labels": [91, 92, 93]}
    found = preflight(llama(), [*texts(), alone], Settings(first_new_id=90))
    assert named(found) == {"new-tokens-alone": "warning"}


def test_ids_beyond_the_vocabulary() -> None:
    far = {"input_ids": [5, VOCABULARY], "labels": [5, VOCABULARY]}
    found = preflight(llama(), [*texts(), far], Settings())
    assert named(found) == {"id-beyond-vocabulary": "error"} and "96" in found[0].evidence


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_bnb_8bit"])
def test_an_eps_that_rounds_to_zero(optimizer: str, tmp_path: Path) -> None:
    found = nangrid.check(llama().half(), texts(), arguments(tmp_path, optim=optimizer))
    assert ("adam-eps-underflow" in named(found)) == (optimizer == "adamw_torch"), "bitsandbytes computes in float32"
    roomy = nangrid.check(llama().half(), texts(), arguments(tmp_path, optim=optimizer, adam_epsilon=1e-4))
    assert "adam-eps-underflow" not in named(roomy)


def test_bf16_training_over_float16_weights(tmp_path: Path) -> None:
    model = llama().half()
    model.requires_grad_(False)
    model.lm_head.float().requires_grad_(True)
    found = preflight(model, texts(), Settings(autocast=torch.bfloat16), trial=False)
    assert named(found) == {"silent-fp16-storage": "warning"}


def test_a_checkpoint_with_a_nan_that_quantisation_would_hide(tmp_path: Path) -> None:
    weights = {"layers.0.weight": torch.ones(64, 64, dtype=torch.bfloat16)}
    weights["layers.0.weight"][3, 3] = float("nan")
    save_file(weights, tmp_path / "model.safetensors")
    found = preflight(llama(), texts(), Settings(), checkpoint=tmp_path)
    assert named(found) == {"nf4-laundering": "error"} and "layers.0.weight" in found[0].evidence


def test_quantised_weights_with_an_infinite_scale() -> None:
    import bitsandbytes as bnb

    class Quantised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            linear = nn.Linear(64, 64, bias=False)
            linear.weight.data[0, 0] = float("inf")
            self.layer = bnb.nn.Linear4bit(64, 64, bias=False, quant_type="nf4")
            self.layer.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")

    model = Quantised()
    model.layer.to("cpu")
    model.layer(torch.ones(1, 64))
    assert named(preflight(model, [], Settings())) == {"non-finite": "error"}


def test_trainables_that_no_gradient_reaches() -> None:
    model = llama()
    model.spare = nn.Linear(4, 4)
    found = preflight(model, texts(), Settings())
    assert named(found) == {"no-gradient": "warning"} and "spare.weight" in found[0].evidence


def test_reentrant_checkpointing_without_input_gradients() -> None:
    model = llama()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.disable_input_require_grads()  # which transformers 5 sees to by itself
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.0" in name)
    (found,) = preflight(model, texts(), Settings())
    assert (found.check, found.severity) == ("no-gradient", "error")
    assert found.fix == "model.enable_input_require_grads()"


def test_settings_that_would_hide_a_nan(tmp_path: Path) -> None:
    found = nangrid.check(llama(), texts(), arguments(tmp_path, logging_nan_inf_filter=True))
    assert named(found) == {"hidden-nan": "note"} and "logging_nan_inf_filter" in found[0].evidence
    scaled = preflight(llama().half(), texts(), Settings(scaler=True, autocast=torch.float16), trial=False)
    assert named(scaled)["fp16-trainables"] == "error"
    assert any("GradScaler silently skips" in f.evidence for f in scaled)
    assert any("W&B" in f.evidence for f in preflight(llama(), texts(), Settings(report_to=["wandb"])))


def test_errors_come_first() -> None:
    model = llama()
    model.get_input_embeddings().weight.data[90:] = 0
    model.model.norm.weight.data[0] = float("nan")
    severities = [f.severity for f in preflight(model, texts(), Settings(hides_nan=True), trial=False)]
    assert severities == ["error", "warning", "note"]
