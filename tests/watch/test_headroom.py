"""Headroom reports the largest activations and gradients with their tokens, and sampling changes nothing."""

from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from nangrid.watch import Headroom


def model() -> nn.Module:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32}
    return hf.LlamaForCausalLM(hf.LlamaConfig(**size, num_hidden_layers=3, vocab_size=64, pad_token_id=0)).train()


def batch() -> dict[str, torch.Tensor]:
    ids = torch.arange(2, 18).reshape(2, 8)
    return {"input_ids": ids, "labels": ids}


def step(net: Any, headroom: Headroom | None, number: int = 0) -> list[torch.Tensor]:
    if headroom:
        headroom.begin(number)
    net.zero_grad()
    net(**batch()).loss.backward()
    if headroom:
        headroom.end(number)
    return [p.grad.clone() for p in net.parameters()]


@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": False}, {"use_reentrant": True}])
def test_a_large_activation_is_found_with_its_token(checkpointing: dict[str, bool] | None) -> None:
    net: Any = model()
    if checkpointing:
        net.gradient_checkpointing_enable(checkpointing)
    net.model.embed_tokens.weight.data[13] *= 1e4  # row 1, position 3
    headroom = Headroom(net, every=1)
    step(net, headroom)
    largest = max((e for e in headroom.extremes if e.kind == "activation"), key=lambda e: e.absmax)
    assert largest.module in ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.layers.2")
    assert (largest.row, largest.position, largest.token) == (1, 3, 13)
    embedded = next(e for e in headroom.extremes if e.module == "model.embed_tokens" and e.kind == "activation")
    assert embedded.absmax == net.model.embed_tokens.weight[13].abs().max().item()
    assert {e.module for e in headroom.extremes if e.kind == "gradient"} >= {
        "model.layers.0",
        "model.layers.2",
        "lm_head",
    }


def test_modules_come_in_the_order_of_the_forward_pass() -> None:
    headroom = Headroom(model(), every=1)
    step(headroom.model, headroom)
    order = {e.module: e.order for e in headroom.extremes}
    names = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.layers.2", "model.norm", "lm_head"]
    assert sorted(names, key=order.__getitem__) == names


def test_sampling_changes_no_bit() -> None:
    plain, watched = model(), model()
    for without, with_it in zip(step(plain, None), step(watched, Headroom(watched, every=1)), strict=True):
        assert torch.equal(without, with_it)


def test_steps_that_are_not_due_have_no_hooks() -> None:
    net = model()
    headroom = Headroom(net, every=10)
    for number in (0, 1, 9, 10):
        step(net, headroom, number)
    assert {e.step for e in headroom.extremes} == {0, 10}
    assert not any(module._forward_hooks for module in net.modules()), "no hook is left behind"
    never = Headroom(net, every=0)
    step(net, never)
    assert never.extremes == []


def test_the_largest_of_several_micro_batches_counts() -> None:
    net: Any = model()
    net.model.embed_tokens.weight.data[40] *= 1e4
    headroom = Headroom(net, every=1)
    headroom.begin(0)
    far = {"input_ids": torch.tensor([[3, 40]]), "labels": torch.tensor([[3, 40]])}
    for inputs in (batch(), far, batch()):
        net(**inputs).loss.backward()
    headroom.end(0)
    embedded = next(e for e in headroom.extremes if e.module == "model.embed_tokens" and e.kind == "activation")
    assert (embedded.row, embedded.position, embedded.token) == (0, 1, 40)


def test_a_nan_is_the_largest_of_all() -> None:
    net: Any = model()
    net.model.embed_tokens.weight.data[5] = float("nan")
    headroom = Headroom(net, every=1)
    step(net, headroom)
    embedded = next(e for e in headroom.extremes if e.module == "model.embed_tokens" and e.kind == "activation")
    assert embedded.absmax != embedded.absmax and embedded.token == 5
