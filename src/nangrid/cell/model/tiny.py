"""Makes the tiny Gemma for tests and quick trials.

It has random weights and its own SentencePiece tokenizer, trained on CPython's documentation. It is saved as an
ordinary checkpoint, so that it is loaded in the same way as the real model.
"""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

from nangrid.cell.cache import entry
from nangrid.cell.pydoc import pydoc_sha256, pydoc_texts

PIECES = 1024
RECIPE = 1
"""Increase this whenever the tiny checkpoint changes."""


def tiny_gemma(layers: int) -> Path:
    """Folder of the checkpoint; made at the first call."""
    made_from = {"layers": layers, "pieces": PIECES, "text": pydoc_sha256(), "recipe": RECIPE}
    return entry(f"tiny-{layers}", made_from, partial(_make, layers))


def _make(layers: int, folder: Path) -> None:
    _save_tokenizer(folder)
    _save_model(layers, folder)


def _save_tokenizer(folder: Path) -> None:
    import sentencepiece
    from transformers import GemmaTokenizer

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(pydoc_texts()).splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        control_symbols=["<mask>"],
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    GemmaTokenizer.from_pretrained(folder, add_bos_token=True).save_pretrained(folder)


def _save_model(layers: int, folder: Path) -> None:
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=PIECES,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=32,
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        initializer_range=0.02,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Gemma3ForCausalLM(config).float().save_pretrained(folder)
