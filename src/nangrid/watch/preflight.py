"""Checks a run before its first step: the live model, the data it will see and its training arguments.

A finding names its evidence and the override or code line that removes it. "error": the run cannot go well. "warning":
such runs are known to go non-finite, or to learn nothing, under some circumstances. "note": it hides a NaN, or is worth
knowing when one appears.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nangrid.records.errors import InputError
from nangrid.records.mechanisms import ADAM_EPS_UNDERFLOW, SILENT_FP16_STORAGE
from nangrid.watch.state.module_state import preserving, preserving_gradients
from nangrid.watch.state.tensors import (
    base_weight,
    dtype_name,
    embedding,
    extent,
    is_finite,
    rounds_to_zero,
    trainables,
)

IGNORED = -100
SAMPLES = 1_000
"""Number of samples that are checked."""
ABSURD_ROW = 100.0
"""A row whose norm differs from the median by this factor, up or down, was hardly initialised on purpose."""
ABSURD = 1e6
"""No trained weight is that large."""
_HALVES = (torch.float16, torch.bfloat16)
_IN_PARAMETER_DTYPE = ("adamw_torch", "adamw", "adam", "rmsprop", "adagrad")
"""Optimizers that add eps in the dtype of the parameter (torch's, not fused); those of bitsandbytes use float32."""
_NAMED = 3


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing, before training."""

    check: str
    """The name of the check, such as `zero-rows`."""
    severity: str
    """error, warning or note."""
    evidence: str
    fix: str
    """An override, or a line of code."""

    def __str__(self) -> str:
        """The finding in one line."""
        return f"{self.severity}: {self.check}: {self.evidence} (try: {self.fix})"


@dataclass(frozen=True)
class Settings:
    """How the model is going to be trained."""

    optimizer: str = ""
    """As TrainingArguments name it, such as `adamw_torch`."""
    eps: float | None = None
    known: bool = True
    """Whether the training arguments are known; if not, checks that depend on them are skipped."""
    autocast: torch.dtype | None = None
    scaler: bool = False
    hides_nan: bool = False
    """Whether logging_nan_inf_filter is on."""
    report_to: Sequence[str] = ()
    first_new_id: int | None = None
    """Ids from here on are new tokens."""
    texts: Mapping[int, str] = field(default_factory=dict)


def settings_of(arguments: Any) -> Settings:
    """The settings in transformers' TrainingArguments; for None they are unknown."""
    if arguments is None:
        return Settings(known=False)
    autocast = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None
    optimizer = getattr(arguments.optim, "value", str(arguments.optim))
    return Settings(
        optimizer=optimizer,
        eps=float(arguments.adam_epsilon),
        autocast=autocast,
        scaler=bool(arguments.fp16),
        hides_nan=bool(arguments.logging_nan_inf_filter),
        report_to=tuple(arguments.report_to or ()),
    )


def preflight(
    model: nn.Module,
    samples: Iterable[Mapping[str, Any]],
    settings: Settings,
    *,
    checkpoint: Path | None = None,
    trial: bool = True,
) -> list[Finding]:
    """All findings, errors first. Changes nothing: gradients, random state and training mode are restored.

    `samples` have `input_ids` and optionally `labels` and `attention_mask`, as lists or 1-d tensors; the first SAMPLES
    are checked. `checkpoint`: the folder whose safetensors the model was quantised from. `trial` runs one forward and
    backward pass on the shortest sample, to see which trainables a gradient reaches.
    """
    data = _Data([_Sample.of(sample) for sample in islice(samples, SAMPLES)])
    findings = [
        *_tensors(model),
        *(_checkpoint(checkpoint) if checkpoint else ()),
        *_ids(model, data),
        *_rows(model, data, settings),
        *_labels(data),
        *_new_only(data, settings),
        *_dtypes(model, settings),
        *_eps(model, settings),
        *_hiding(model, settings),
    ]
    broken = any(finding.severity == "error" for finding in findings)  # why the forward pass raises, if it does
    trial_findings = _without_gradient(model, data) if trial else ()
    findings += [finding for finding in trial_findings if not (broken and finding.check == "forward-pass")]
    return sorted(findings, key=lambda finding: ("error", "warning", "note").index(finding.severity))


@dataclass(frozen=True)
class _Sample:
    ids: Tensor
    labels: Tensor | None
    mask: Tensor | None

    @classmethod
    def of(cls, sample: Mapping[str, Any]) -> _Sample:
        if not isinstance(sample, Mapping) or sample.get("input_ids") is None:
            raise InputError("A sample of the dataset has no input_ids: give tokenised samples, each a dict.")
        ids, labels, mask = (
            None if sample.get(key) is None else torch.as_tensor(sample[key])
            for key in ("input_ids", "labels", "attention_mask")
        )
        assert ids is not None
        return cls(ids.flatten(), labels, mask.flatten() if mask is not None else None)

    @property
    def attended(self) -> Tensor:
        """The ids that are not masked as padding."""
        return self.ids if self.mask is None else self.ids[self.mask.bool()]


class _Data:
    def __init__(self, samples: list[_Sample]) -> None:
        self.samples = samples
        attended = [sample.attended for sample in samples]
        self.used = Counter(torch.cat(attended).tolist()) if attended else Counter()


def _tensors(model: nn.Module) -> Iterator[Finding]:
    for kind, named in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in named:
            if tensor.is_meta:
                evidence = f"{kind} {name} is on the meta device and has no values"
                yield Finding("uninitialised", "error", evidence, "load its weights before training")
                continue
            values = _values(tensor)
            if values is None or not values.numel():
                continue
            largest = extent([values.detach()]).item()
            if not math.isfinite(largest):
                # A mask of -inf in a buffer is legitimate, a NaN is not.
                if kind == "parameter" or bool(torch.isnan(values).any()):
                    evidence = f"{kind} {name} contains NaN or infinity"
                    yield Finding("non-finite", "error", evidence, "initialise it, or load an undamaged checkpoint")
            elif largest > ABSURD and kind == "parameter":
                evidence = f"parameter {name} contains {largest:.3g}, probably memory that was never initialised"
                yield Finding("uninitialised", "error", evidence, "init=mean")


def _values(tensor: Tensor) -> Tensor | None:
    """The numbers to check in a tensor: of quantised weights the scale of each block; None if there are none."""
    state = getattr(tensor, "quant_state", None)
    if state is not None:
        scales: Tensor = state.absmax
        return scales if scales.is_floating_point() else getattr(state, "offset", None)
    return tensor if tensor.is_floating_point() else None


def _checkpoint(folder: Path) -> Iterator[Finding]:
    """Check the weights before quantisation: bitsandbytes turns a NaN into a finite code, or wipes its block."""
    # Weights are read one at a time: a checkpoint may be larger than memory.
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call]
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                if tensor.is_floating_point() and tensor.numel() and not is_finite(tensor):
                    yield Finding(
                        "nf4-laundering",
                        "error",
                        f"{name} in {path.name} contains NaN or infinity, which quantisation hides",
                        "use another checkpoint, or quant=none to see where it shows",
                    )


def _ids(model: nn.Module, data: _Data) -> Iterator[Finding]:
    weight = base_weight(embedding(model, "input"))
    if weight is None or not data.used:
        return
    rows = weight.shape[0]
    beyond = sorted(i for i in data.used if not 0 <= i < rows)
    if beyond:
        evidence = f"id {beyond[-1]} has no row: the embedding has {rows} (such ids in the data: {len(beyond)})"
        yield Finding("id-beyond-vocabulary", "error", evidence, "model.resize_token_embeddings(len(tokenizer))")


def _rows(model: nn.Module, data: _Data, settings: Settings) -> Iterator[Finding]:
    matrices = {"embedding": base_weight(embedding(model, "input")), "head": base_weight(embedding(model, "output"))}
    if matrices["head"] is not None and matrices["head"] is matrices["embedding"]:
        matrices.pop("head")
    for place, weight in matrices.items():
        if weight is None or weight.dim() != 2 or not weight.is_floating_point():
            continue
        used = torch.tensor(sorted(i for i in data.used if 0 <= i < weight.shape[0]), dtype=torch.long)
        if len(used):
            yield from _rows_of(place, weight.detach()[used].float().cpu(), used, data, settings, weight.dtype)


def _rows_of(
    place: str, rows: Tensor, used: Tensor, data: _Data, settings: Settings, dtype: torch.dtype
) -> Iterator[Finding]:
    norms = rows.norm(dim=1)
    zero = used[norms == 0]
    if len(zero):
        # A norm layer multiplies the gradient of such a row by 1 / sqrt(eps), often too much for float16.
        severity = "error" if dtype == torch.float16 and place == "embedding" else "warning"
        evidence = f"all-zero rows in the {place} for {_named(zero, data, settings)}"
        yield Finding("zero-rows", severity, evidence, "init=mean")
    sound = norms[(norms > 0) & torch.isfinite(norms)]
    if len(sound) > 1:
        ratio = norms / sound.median()
        absurd = used[(norms > 0) & ((ratio > ABSURD_ROW) | (ratio < 1 / ABSURD_ROW) | ~torch.isfinite(norms))]
        if len(absurd):
            evidence = f"rows of implausible size in the {place} for {_named(absurd, data, settings)}"
            yield Finding("absurd-rows", "error", evidence, "init=mean")
    _, inverse, counts = torch.unique(rows, dim=0, return_inverse=True, return_counts=True)
    duplicates = used[(counts[inverse] > 1) & (norms > 0)]
    if len(duplicates):
        evidence = f"identical rows in the {place} for {_named(duplicates, data, settings)}"
        yield Finding("duplicate-rows", "note", evidence, "init=normal or init=mvn")


def _named(ids: Tensor, data: _Data, settings: Settings) -> str:
    """How many tokens these are, how often they occur in the data, and the most frequent of them."""
    frequent = sorted(ids.tolist(), key=lambda i: -data.used[i])[:_NAMED]
    shown = ", ".join(f"{settings.texts[i]!r} ({i})" if i in settings.texts else str(i) for i in frequent)
    times = sum(data.used[i] for i in ids.tolist())
    count = "1 token" if len(ids) == 1 else f"{len(ids)} tokens"
    return f"{count}, used {times} times in the data: {shown}{', ...' if len(ids) > _NAMED else ''}"


def _labels(data: _Data) -> Iterator[Finding]:
    masked = [n for n, s in enumerate(data.samples) if s.labels is not None and _all_masked(s.labels)]
    if masked:
        evidence = f"{_share(masked, data)} have no label to learn from"
        fix = "drop them, because the mean loss over no labels is NaN"
        yield Finding("empty-labels", "error" if len(masked) == len(data.samples) else "warning", evidence, fix)
    hidden = [n for n, s in enumerate(data.samples) if s.mask is not None and not bool(s.mask.any())]
    if hidden:
        evidence = f"{_share(hidden, data)} are masked everywhere"
        yield Finding("masked-sequence", "warning", evidence, "drop them, because attention over no tokens is 0 / 0")


def _share(numbers: list[int], data: _Data) -> str:
    """`2 of 22 samples (the first is number 20)`, counted from 0."""
    return f"{len(numbers)} of {len(data.samples)} samples (the first is number {numbers[0]})"


def _all_masked(labels: Tensor) -> bool:
    # The first label is never predicted, because the loss shifts labels by one.
    counted = labels.flatten()[1:] if labels.numel() > 1 else labels.flatten()
    return bool((counted == IGNORED).all())


def _new_only(data: _Data, settings: Settings) -> Iterator[Finding]:
    if settings.first_new_id is None:
        return
    affected = [
        n for n, s in enumerate(data.samples) if len(s.attended) and bool((s.attended >= settings.first_new_id).all())
    ]
    if affected:
        evidence = f"{_share(affected, data)} consist of new tokens only"
        yield Finding("new-tokens-alone", "warning", evidence, "data.bos=true, init=mean")


def _dtypes(model: nn.Module, settings: Settings) -> Iterator[Finding]:
    # Quantised weights are stored as integers: what is left are norms and embeddings, whose dtype is easily missed.
    frozen = Counter(p.dtype for p in model.parameters() if not p.requires_grad and p.is_floating_point())
    trained = Counter(p.dtype for p in model.parameters() if p.requires_grad)
    stored = (frozen or trained).most_common(1)
    storage = stored[0][0] if stored else None
    if storage == torch.float16 and settings.autocast == torch.bfloat16:
        evidence = f"{frozen[storage]} frozen tensors are float16 under bf16 autocast, and float16 overflows at 65504"
        fix = "dtype=bf16 (from_pretrained(..., dtype=torch.bfloat16))"
        yield Finding(SILENT_FP16_STORAGE, "warning", evidence, fix)
    elif storage == torch.float16 and settings.known and settings.autocast is None:
        evidence = "storage and compute are float16 without loss scaling: everything overflows at 65504"
        yield Finding("fp16-training", "warning", evidence, "dtype=bf16")
    if settings.scaler and trained[torch.float16]:
        evidence = f"{trained[torch.float16]} trainables are float16, whose gradients a GradScaler refuses to unscale"
        yield Finding("fp16-trainables", "error", evidence, "upcast=trainable")
    if len(trained) > 1:
        mixed = ", ".join(f"{count} {dtype_name(dtype)}" for dtype, count in trained.most_common())
        yield Finding("mixed-trainables", "note", f"the trainables have different dtypes: {mixed}", "upcast=trainable")


def _eps(model: nn.Module, settings: Settings) -> Iterator[Finding]:
    if settings.eps is None or settings.optimizer not in _IN_PARAMETER_DTYPE:
        return
    trained = trainables(model)
    affected = [name for name, p in trained.items() if p.dtype in _HALVES and rounds_to_zero(settings.eps, p.dtype)]
    if affected:
        evidence = (
            f"eps={settings.eps:g} rounds to 0 in the dtype of {len(affected)} of {len(trained)} trainables, such as "
            f"{affected[0]}: "
            "elements without a gradient are updated by 0 / 0"
        )
        yield Finding(ADAM_EPS_UNDERFLOW, "error", evidence, "upcast=trainable")


def _without_gradient(model: nn.Module, data: _Data) -> Iterator[Finding]:
    if data.samples and not trainables(model):
        yield Finding("no-trainables", "error", "no parameter of the model requires a gradient", "add an adapter")
    try:
        names = _unreached(model, data)
    except Exception as error:  # the model's own code
        message = next(iter(str(error).splitlines()), "")
        evidence = f"the forward and backward pass on one sample raised {type(error).__name__}: {message}"
        yield Finding(
            "forward-pass", "warning", evidence, "give the samples every input that the model's forward takes"
        )
        return
    if names:
        shown = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
        total = len(trainables(model))
        everything = len(names) == total
        fix = "model.enable_input_require_grads()" if everything else "train only parameters that the forward pass uses"
        evidence = f"no gradient reaches {len(names)} of {total} trainables: {shown}"
        yield Finding("no-gradient", "error" if everything else "warning", evidence, fix)


def _unreached(model: nn.Module, data: _Data) -> list[str]:
    """Trainables without a gradient after a backward pass on the shortest labelled sample; [] without one or a loss."""
    usable = [s for s in data.samples if s.labels is not None and s.labels.dim() and not _all_masked(s.labels)]
    trained = trainables(model)
    if not usable or not trained:
        return []
    sample = min(usable, key=lambda s: len(s.ids))
    device = next(iter(trained.values())).device
    batch = {"input_ids": sample.ids[None].to(device), "labels": sample.labels[None].to(device)}  # type: ignore[index]
    # The model as a whole, because the running means of a batch norm move in a forward pass.
    with torch.random.fork_rng(), preserving(model), preserving_gradients(trained):
        loss = getattr(model.train()(**batch), "loss", None)
        if loss is None:
            return []
        if not loss.requires_grad:
            return list(trained)
        loss.backward()
        return [name for name, p in trained.items() if p.grad is None]


def _hiding(model: nn.Module, settings: Settings) -> Iterator[Finding]:
    if settings.hides_nan:
        evidence = "logging_nan_inf_filter is on: the Trainer logs the last finite loss in place of a NaN"
        yield Finding("hidden-nan", "note", evidence, "TrainingArguments(logging_nan_inf_filter=False)")
    if settings.scaler:
        evidence = "a GradScaler silently skips steps with non-finite gradients"
        yield Finding("hidden-nan", "note", evidence, "watch_trainer(trainer)")
    on_cuda = any(p.is_cuda for p in trainables(model).values())
    if on_cuda and any(mark in settings.optimizer for mark in ("8bit", "bnb", "paged")):
        evidence = "bitsandbytes skips non-finite gradients on CUDA: parameters stay finite but do not change"
        yield Finding("hidden-nan", "note", evidence, "watch_trainer(trainer)")
    if "wandb" in settings.report_to:
        evidence = "W&B charts drop NaN points: a curve that just ends may have gone NaN"
        yield Finding("hidden-nan", "note", evidence, "watch_trainer(trainer)")
