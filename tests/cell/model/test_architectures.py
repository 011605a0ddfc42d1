"""Checkpoints of other families than Gemma train too, with their names, tokenizers, heads and positions."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel
from transformers import (
    BertConfig,
    BertLMHeadModel,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from nangrid.cell.build import Cell, build_cell
from nangrid.cell.levels import as_config
from nangrid.cell.pydoc import pydoc_texts
from nangrid.cell.run import run_cell
from nangrid.commands.compose import composed
from nangrid.records.cell import CellRecord
from nangrid.records.errors import InputError

PIECES, PADDED = 500, 512
POSITIONS = 32
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
GROUPED = {**SIZES, "num_key_value_heads": 1}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(vocab_size=PIECES, **SIZES)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(vocab_size=PADDED, tie_word_embeddings=False, **GROUPED)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(vocab_size=PADDED, tie_word_embeddings=True, head_dim=16, **GROUPED)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=PIECES, n_embd=32, n_layer=2, n_head=2, n_positions=POSITIONS)
    ),
    "bert": lambda: BertLMHeadModel(BertConfig(vocab_size=PIECES, max_position_embeddings=POSITIONS, **SIZES)),
    "roberta": lambda: RobertaForCausalLM(
        RobertaConfig(vocab_size=PIECES, max_position_embeddings=POSITIONS + 2, **SIZES)
    ),
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=PIECES, hidden_size=32, n_layer=2, n_head=2)),
    "openai-gpt": lambda: OpenAIGPTLMHeadModel(
        OpenAIGPTConfig(vocab_size=PIECES, n_embd=32, n_layer=2, n_head=2, n_positions=POSITIONS)
    ),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=PIECES, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    ),
}


def _byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    special = ["<|endoftext|>", "<|begin|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=PIECES, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(pydoc_texts()[:100], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|endoftext|>")


def _word_pieces() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    trainer = trainers.WordPieceTrainer(vocab_size=PIECES, special_tokens=list(special.values()))
    tokenizer.train_from_iterator(pydoc_texts()[:100], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Folders as save_pretrained writes them, by family."""
    root = tmp_path_factory.mktemp("checkpoints")
    tokenizers = {"bert": _word_pieces(), "other": _byte_level()}

    def checkpoint(family: str) -> Path:
        folder = root / family
        if not folder.exists():
            torch.manual_seed(0)
            MODELS[family]().save_pretrained(folder)
            tokenizers.get(family, tokenizers["other"]).save_pretrained(folder)
        return folder

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANGRID_CACHE", str(root / "cache"))
        yield checkpoint


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[None]:
    """A cell changes them for its process, which here is pytest's."""
    threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


Build = Callable[..., Cell]
Train = Callable[..., CellRecord]


def _overrides(folder: Path, overrides: tuple[str, ...]) -> list[str]:
    ours = ["model=hub", f"model.id={folder}", "data.length=32", "vocab.size=8", "init=mean", "tracker=none"]
    return [*ours, *(["data.bos=false"] if folder.name == "bert" else []), *overrides]


@pytest.fixture
def build(checkpoints: Callable[[str], Path], tmp_path: Path) -> Build:
    def of(family: str, *overrides: str) -> Cell:
        return build_cell(as_config(composed(_overrides(checkpoints(family), overrides))), tmp_path)

    return of


@pytest.fixture
def train(checkpoints: Callable[[str], Path], tmp_path: Path) -> Train:
    def of(family: str, *overrides: str) -> CellRecord:
        typed = _overrides(checkpoints(family), ("horizon=2", *overrides))
        return run_cell(as_config(composed(typed)), tmp_path, cell_id="0" * 12, grid_id="grid", overrides=typed)

    return of


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", ()),
        ("llama", ("quant=none", "checkpointing=reentrant", "init=zero")),
        ("qwen2", ("data.packing=false",)),
        ("qwen3", ("quant=int8", "data.packing=false", "data.padding_side=left")),
        ("gpt2", ()),
        ("gpt2", ("quant=int8", "checkpointing=reentrant", "targets=all_linear")),
        ("gpt2", ("quant=none", "targets=qv", "dtype=amp_bf16", "data.packing=false", "vocab=add_tokens")),
        ("bert", ("vocab=add_tokens",)),
        ("bert", ("vocab=none", "vocab.size=0", "quant=none", "targets=all_linear", "checkpointing=reentrant")),
        ("roberta", ("checkpointing=off", "init=mvn", "data.packing=false")),
        ("bloom", ("model.attn=eager",)),
    ],
)
def test_every_family_trains(family: str, overrides: tuple[str, ...], train: Train) -> None:
    record = train(family, *overrides)
    assert record.status == "finite"
    assert record.trains.without_gradient == []
    assert record.trains.max_update is not None and record.trains.max_update > 0
    assert not [line for line in record.ledger["preflight"] if line.startswith("error")]


@pytest.mark.parametrize(
    ("family", "overrides", "adapted", "warnings"),
    [
        ("qwen2", (), {"q_proj", "v_proj", "embed_tokens", "lm_head"}, []),
        (
            "gpt2",
            (),
            {"c_attn", "wte", "lm_head"},
            ["q_proj, v_proj became c_attn in this gpt2 model", "embed_tokens became wte in this gpt2 model"],
        ),
        (
            "bert",
            ("vocab=add_tokens",),
            {"query", "value", "word_embeddings", "decoder"},
            [
                "q_proj, v_proj became query, value in this bert model",
                "embed_tokens became word_embeddings in this bert model",
                "lm_head became decoder in this bert model",
            ],
        ),
        (
            "gpt2",
            ("targets=all_linear",),
            {"c_attn", "c_proj", "c_fc"},
            [
                "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj "
                "became c_attn, c_fc, c_proj in this gpt2 model"
            ],
        ),
        ("gpt2", ("targets.modules=[mlp.c_proj,lm_head]",), {"c_proj", "lm_head"}, []),
    ],
)
def test_targets_are_translated_to_each_architecture(
    family: str, overrides: tuple[str, ...], adapted: set[str], warnings: list[str], build: Build
) -> None:
    cell = build(family, *overrides)
    assert cell.ledger.adapter.keys() == adapted
    assert cell.ledger.warnings == [f"targets: {line}" for line in warnings]


def test_transposed_layers_are_quantised_and_adapted(build: Build) -> None:
    layers = {name: type(module).__name__ for name, module in build("gpt2").model.named_modules()}
    assert layers["base_model.model.transformer.h.0.attn.c_attn.base_layer"] == "Linear4bit"
    assert layers["base_model.model.lm_head.base_layer"] == "Linear"
    plain = {name: type(module).__name__ for name, module in build("gpt2", "quant=none").model.named_modules()}
    assert plain["base_model.model.transformer.h.0.attn.c_attn.base_layer"] == "Conv1D"


def test_padded_rows_become_the_rows_of_new_tokens_in_embedding_and_head(build: Build) -> None:
    cell = build("qwen2", "init=mean")
    first, count = cell.data.base_vocab_size, len(cell.data.new_tokens)
    assert (first, count) == (PIECES, 8)
    matrices = [cell.model.get_input_embeddings().weight, cell.model.get_output_embeddings().weight]
    assert cell.ledger.changed["init"] == len(matrices) == 2
    assert not torch.equal(*matrices)
    for weight in matrices:
        assert weight.shape[0] == PADDED
        mean = weight[:first].float().mean(0).to(weight.dtype)
        assert torch.equal(weight[first : first + count], mean.expand(count, -1))
        assert not (weight[first + count :] == mean).all()


def test_an_encoder_does_not_see_the_token_it_predicts(build: Build) -> None:
    model = build("bert", "vocab=none", "vocab.size=0", "quant=none", "dtype=fp32").model.eval()
    ids = torch.arange(5, 15)[None]
    other = ids.clone()
    other[0, -1] = 20
    torch.testing.assert_close(model(input_ids=ids).logits[0, :-1], model(input_ids=other).logits[0, :-1])


@pytest.mark.parametrize(
    ("family", "overrides", "message"),
    [
        (
            "gpt2",
            ("targets.modules=[q_porj]",),
            r"gpt2 model has no q_porj: .*targets.modules=\[c_attn,c_fc,c_proj,",
        ),
        ("bert", ("vocab=none", "vocab.size=0", "targets.modules=[o_proj]"), "this bert model has no o_proj"),
        ("gpt2", ("targets.modules=[mlp]",), "has no mlp"),
        ("gpt2", ("data.length=33",), "data.length=33 is too long.*Type data.length=32"),
        ("bert", ("vocab=none", "vocab.size=0", "data.length=33"), "Type data.length=32"),
        ("roberta", ("data.length=33",), "Type data.length=32"),
        ("bloom", (), "model.attn=sdpa is not supported .*: type model.attn=eager"),
        (
            "openai-gpt",
            ("model.attn=eager", "targets.modules=[c_attn]"),
            "checkpointing=on is not supported .*: type checkpointing=off",
        ),
        ("t5", (), "cannot be loaded as a causal language model"),
        ("bert", ("vocab=spm",), "type vocab=add_tokens"),
        ("bert", ("vocab=add_tokens", "data.bos=true"), "type data.bos=false"),
    ],
)
def test_unsupported_requests_fail_before_training(
    family: str, overrides: tuple[str, ...], message: str, build: Build
) -> None:
    with pytest.raises(InputError, match=message):
        build(family, *overrides)


def test_computed_positions_may_exceed_the_trained_length(build: Build) -> None:
    assert build("llama", "data.length=2100", "vocab=none", "vocab.size=0").data.train[0]["input_ids"][2099] > 0


def test_checkpoint_without_weights_is_rejected(build: Build, checkpoints: Callable[[str], Path]) -> None:
    hollow = shutil.copytree(checkpoints("llama"), checkpoints("llama").parent / "hollow")
    (hollow / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no file named model.safetensors.*model.id="):
        build("hollow")
