"""What is wrong with a run before its first step?

Everything here is read off the live model, the data it will really see and the arguments it will be trained with.
A finding names its evidence and the override or code line that removes it. "error": the run cannot go well;
"warning": it is known to go non-finite, or to learn nothing, under some circumstances; "note": it hides a NaN, or is
worth knowing when one comes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nangrid.records.mechanisms import ADAM_EPS_UNDERFLOW, SILENT_FP16_STORAGE
from nangrid.watch.state.tensors import dtype_name, trainables

IGNORED = -100
SAMPLES = 1_000
"""Samples that are looked at."""
ABSURD_ROW = 100.0
"""A row whose norm is this many times the median's, or its inverse, was hardly initialised on purpose."""
ABSURD = 1e6
"""No trained weight is that large."""
_HALVES = (torch.float16, torch.bfloat16)
_IN_PARAMETER_DTYPE = ("adamw_torch", "adamw", "adam", "rmsprop", "adagrad")
"""Optimizers that add eps in the parameter's own dtype (torch's, not fused); bitsandbytes' compute in float32."""
_NAMED = 3


@dataclass(frozen=True)
class Finding:
    """One thing that preflight found."""

    check: str
    """Its name, such as `zero-rows`."""
    severity: str
    """error, warning or note."""
    evidence: str
    fix: str
    """An override, or a line of code."""

    def __str__(self) -> str:
        """In one line."""
        return f"{self.severity}: {self.check}: {self.evidence} (try {self.fix})"


@dataclass(frozen=True)
class Settings:
    """How the model is going to be trained."""

    optimizer: str = ""
    """By TrainingArguments' name, such as `adamw_torch`."""
    eps: float | None = None
    known: bool = True
    """Whether the rest is what will happen, or nothing is known of it."""
    autocast: torch.dtype | None = None
    scaler: bool = False
    hides_nan: bool = False
    """logging_nan_inf_filter."""
    report_to: Sequence[str] = ()
    first_new_id: int | None = None
    """Ids from here on are new tokens."""
    texts: Mapping[int, str] = field(default_factory=dict)


def settings_of(arguments: Any) -> Settings:
    """Of transformers' TrainingArguments; those of None are unknown and say nothing."""
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
    """All findings, the gravest first. Changes nothing: gradients, random state and training mode are put back.

    `samples` have `input_ids` and maybe `labels` and `attention_mask`, as lists or 1-d tensors; the first SAMPLES are
    looked at. `checkpoint`: the folder whose safetensors the model was quantised from. `trial` runs one forward and
    backward pass on the shortest sample, to see which trainables a gradient reaches.
    """
    seen = _Data([_Sample.of(sample) for sample in islice(samples, SAMPLES)])
    findings = [
        *_tensors(model),
        *(_checkpoint(checkpoint) if checkpoint else ()),
        *_ids(model, seen),
        *_rows(model, seen, settings),
        *_labels(seen),
        *_new_only(seen, settings),
        *_dtypes(model, settings),
        *_eps(model, settings),
        *(_without_gradient(model, seen) if trial else ()),
        *_hiding(model, settings),
    ]
    return sorted(findings, key=lambda finding: ("error", "warning", "note").index(finding.severity))


@dataclass(frozen=True)
class _Sample:
    ids: Tensor
    labels: Tensor | None
    mask: Tensor | None

    @classmethod
    def of(cls, sample: Mapping[str, Any]) -> _Sample:
        ids, labels, mask = (
            None if sample.get(key) is None else torch.as_tensor(sample[key])
            for key in ("input_ids", "labels", "attention_mask")
        )
        assert ids is not None, "a sample has input_ids"
        return cls(ids.flatten(), labels, mask.flatten() if mask is not None else None)

    @property
    def attended(self) -> Tensor:
        """The ids that the model reads."""
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
                yield Finding(
                    "uninitialised", "error", f"{kind} {name} is on the meta device: it has no values", "load it"
                )
                continue
            values = _values(tensor)
            if values is None or not values.numel():
                continue
            low, high = (float(end) for end in torch.aminmax(values.detach()))
            if not (abs(low) < float("inf") and abs(high) < float("inf")):
                # a mask of -inf in a buffer is legitimate, a NaN is not
                if kind == "buffer" and not bool(torch.isnan(values).any()):
                    continue
                yield Finding("non-finite", "error", f"{kind} {name} holds NaN or infinity", "initialise or reload it")
            elif max(abs(low), abs(high)) > ABSURD and kind == "parameter":
                largest = max(abs(low), abs(high))
                yield Finding(
                    "uninitialised",
                    "error",
                    f"parameter {name} reaches {largest:.3g}: memory never written?",
                    "init=mean",
                )


def _values(tensor: Tensor) -> Tensor | None:
    """What can be compared with a limit: of quantised weights the scale of each block."""
    state = getattr(tensor, "quant_state", None)
    if state is not None:
        scales: Tensor = state.absmax
        return scales if scales.is_floating_point() else getattr(state, "offset", None)
    return tensor if tensor.is_floating_point() else None


def _checkpoint(folder: Path) -> Iterator[Finding]:
    """Before they are quantised: bitsandbytes turns a NaN into a finite code, or wipes its block."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call]
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                if tensor.is_floating_point() and tensor.numel() and not _finite(tensor):
                    yield Finding(
                        "nf4-laundering",
                        "error",
                        f"{name} of {path.name} holds NaN or infinity, which quantising hides",
                        "another checkpoint, or quant=none to see it",
                    )


def _finite(tensor: Tensor) -> bool:
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _ids(model: nn.Module, seen: _Data) -> Iterator[Finding]:
    embedding = _embedding(model, "input")
    if embedding is None or not seen.used:
        return
    rows = embedding.shape[0]
    beyond = sorted(i for i in seen.used if not 0 <= i < rows)
    if beyond:
        evidence = f"{len(beyond)} ids of the data, such as {beyond[-1]}, have no row: the embedding has {rows}"
        yield Finding("id-beyond-vocabulary", "error", evidence, "model.resize_token_embeddings(len(tokenizer))")


def _rows(model: nn.Module, seen: _Data, settings: Settings) -> Iterator[Finding]:
    matrices = {"embedding": _embedding(model, "input"), "head": _embedding(model, "output")}
    if matrices["head"] is not None and matrices["head"] is matrices["embedding"]:
        matrices.pop("head")
    for place, weight in matrices.items():
        if weight is None or weight.dim() != 2 or not weight.is_floating_point():
            continue
        used = torch.tensor(sorted(i for i in seen.used if 0 <= i < weight.shape[0]), dtype=torch.long)
        if len(used):
            yield from _rows_of(place, weight.detach()[used].float().cpu(), used, seen, settings, weight.dtype)


def _rows_of(
    place: str, rows: Tensor, used: Tensor, seen: _Data, settings: Settings, dtype: torch.dtype
) -> Iterator[Finding]:
    norms = rows.norm(dim=1)
    zero = used[norms == 0]
    if len(zero):
        grave = "error" if dtype == torch.float16 and place == "embedding" else "warning"
        evidence = f"{_named(zero, seen, settings)} of the data are rows of zeros in the {place}"
        yield Finding("zero-rows", grave, evidence, "init=mean")
    sound = norms[(norms > 0) & torch.isfinite(norms)]
    if len(sound) > 1:
        ratio = norms / sound.median()
        absurd = used[(norms > 0) & ((ratio > ABSURD_ROW) | (ratio < 1 / ABSURD_ROW) | ~torch.isfinite(norms))]
        if len(absurd):
            evidence = f"{_named(absurd, seen, settings)} have rows in the {place} of absurd size: never initialised?"
            yield Finding("absurd-rows", "error", evidence, "init=mean")
    _, inverse, counts = torch.unique(rows, dim=0, return_inverse=True, return_counts=True)
    twins = used[(counts[inverse] > 1) & (norms > 0)]
    if len(twins):
        evidence = f"{_named(twins, seen, settings)} share a row of the {place}: nothing tells them apart yet"
        yield Finding("duplicate-rows", "note", evidence, "init=normal or init=mvn")


def _named(ids: Tensor, seen: _Data, settings: Settings) -> str:
    """How many tokens, and the commonest of them."""
    commonest = sorted(ids.tolist(), key=lambda i: -seen.used[i])[:_NAMED]
    shown = ", ".join(f"{settings.texts[i]!r} ({i})" if i in settings.texts else str(i) for i in commonest)
    times = sum(seen.used[i] for i in ids.tolist())
    return f"{len(ids)} tokens, {times} times ({shown}{', ...' if len(ids) > _NAMED else ''}),"


def _labels(seen: _Data) -> Iterator[Finding]:
    masked = [n for n, s in enumerate(seen.samples) if s.labels is not None and _all_masked(s.labels)]
    if masked:
        evidence = f"{len(masked)} of {len(seen.samples)} samples have no label that counts, the first is {masked[0]}"
        fix = "drop them: a batch of such samples is a mean over nothing (NaN)"
        yield Finding("empty-labels", "error" if len(masked) == len(seen.samples) else "warning", evidence, fix)
    hidden = [n for n, s in enumerate(seen.samples) if s.mask is not None and not bool(s.mask.any())]
    if hidden:
        evidence = f"{len(hidden)} of {len(seen.samples)} samples are masked everywhere, the first is {hidden[0]}"
        yield Finding("masked-sequence", "warning", evidence, "drop them: attention over nothing is 0/0")


def _all_masked(labels: Tensor) -> bool:
    # the first label is never predicted: the loss shifts them by one
    counted = labels.flatten()[1:] if labels.numel() > 1 else labels.flatten()
    return bool((counted == IGNORED).all())


def _new_only(seen: _Data, settings: Settings) -> Iterator[Finding]:
    if settings.first_new_id is None:
        return
    only = [
        n for n, s in enumerate(seen.samples) if len(s.attended) and bool((s.attended >= settings.first_new_id).all())
    ]
    if only:
        evidence = f"{len(only)} of {len(seen.samples)} samples hold new tokens alone, the first is {only[0]}"
        yield Finding("new-tokens-alone", "warning", evidence, "data.bos=true, init=mean")


def _dtypes(model: nn.Module, settings: Settings) -> Iterator[Finding]:
    frozen = Counter(p.dtype for p in model.parameters() if not p.requires_grad and p.is_floating_point())
    trained = Counter(p.dtype for p in model.parameters() if p.requires_grad)
    stored = (frozen or trained).most_common(1)
    storage = stored[0][0] if stored else None
    if storage == torch.float16 and settings.autocast == torch.bfloat16:
        evidence = (
            f"{frozen[storage]} frozen tensors are float16 under bf16 autocast: they and their gradients end at 65504"
        )
        yield Finding(
            SILENT_FP16_STORAGE, "warning", evidence, "dtype=bf16 (from_pretrained(..., dtype=torch.bfloat16))"
        )
    elif storage == torch.float16 and settings.known and settings.autocast is None:
        evidence = "the model is stored and computed in float16, without loss scaling: everything ends at 65504"
        yield Finding("fp16-training", "warning", evidence, "dtype=bf16")
    if settings.scaler and trained[torch.float16]:
        evidence = f"{trained[torch.float16]} trainables are float16: a GradScaler refuses to unscale their gradients"
        yield Finding("fp16-trainables", "error", evidence, "upcast=trainable")
    if len(trained) > 1:
        mixed = ", ".join(f"{count} {dtype_name(dtype)}" for dtype, count in trained.most_common())
        yield Finding("mixed-trainables", "note", f"trainables are of several dtypes: {mixed}", "upcast=trainable")


def _eps(model: nn.Module, settings: Settings) -> Iterator[Finding]:
    if settings.eps is None or settings.optimizer not in _IN_PARAMETER_DTYPE:
        return
    lost = [
        name
        for name, p in trainables(model).items()
        if p.dtype in _HALVES and float(torch.tensor(settings.eps, dtype=p.dtype)) == 0.0
    ]
    if lost:
        evidence = (
            f"eps={settings.eps:g} is 0 in the dtype of {len(lost)} trainables, such as {lost[0]}: 0/0 without gradient"
        )
        yield Finding(ADAM_EPS_UNDERFLOW, "error", evidence, "upcast=trainable")


def _without_gradient(model: nn.Module, seen: _Data) -> Iterator[Finding]:
    names = _unreached(model, seen)
    if names:
        shown = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
        everything = len(names) == len(trainables(model))
        fix = "model.enable_input_require_grads()" if everything else "train what the forward pass uses"
        yield Finding(
            "no-gradient", "error" if everything else "warning", f"{len(names)} trainables get none: {shown}", fix
        )


def _unreached(model: nn.Module, seen: _Data) -> list[str]:
    """Trainables that a backward pass on the shortest sample with a label does not reach; [] if it cannot be run."""
    usable = [s for s in seen.samples if s.labels is not None and s.labels.dim() and not _all_masked(s.labels)]
    own = trainables(model)
    if not usable or not own:
        return []
    sample = min(usable, key=lambda s: len(s.ids))
    device = next(iter(own.values())).device
    batch = {"input_ids": sample.ids[None].to(device), "labels": sample.labels[None].to(device)}  # type: ignore[index]
    gradients = {name: p.grad for name, p in own.items()}
    modes = {module: module.training for module in model.modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}  # running means move in a forward pass
    with torch.random.fork_rng():
        try:
            for p in own.values():
                p.grad = None
            loss = model.train()(**batch).loss
            if not loss.requires_grad:
                return list(own)
            loss.backward()
            return [name for name, p in own.items() if p.grad is None]
        except Exception:
            return []  # not a model that takes ids and labels alone: its own training will tell
        finally:
            for module, training in modes.items():
                module.training = training
            for name, buffer in model.named_buffers():
                if name in buffers and buffer.shape == buffers[name].shape:
                    buffer.copy_(buffers[name])
            for name, p in own.items():
                p.grad = gradients[name]


def _hiding(model: nn.Module, settings: Settings) -> Iterator[Finding]:
    if settings.hides_nan:
        evidence = "logging_nan_inf_filter is on: the Trainer logs the last finite loss in the place of NaN"
        yield Finding("hidden-nan", "note", evidence, "TrainingArguments(logging_nan_inf_filter=False)")
    if settings.scaler:
        evidence = "a GradScaler skips steps with non-finite gradients without a word"
        yield Finding("hidden-nan", "note", evidence, "watch_trainer(trainer)")
    on_cuda = any(p.is_cuda for p in trainables(model).values())
    if on_cuda and any(mark in settings.optimizer for mark in ("8bit", "bnb", "paged")):
        evidence = "bitsandbytes' CUDA kernels leave out non-finite gradients: parameters stay finite, and stand still"
        yield Finding("hidden-nan", "note", evidence, "watch_trainer(trainer)")
    if "wandb" in settings.report_to:
        evidence = "W&B's charts leave out NaN points: a curve that just ends may be one"
        yield Finding("hidden-nan", "note", evidence, "watch_trainer(trainer)")


def _embedding(model: nn.Module, side: str) -> Tensor | None:
    getter = getattr(model, f"get_{side}_embeddings", None)
    try:
        module = getter() if getter else None
    except (NotImplementedError, AttributeError):
        return None
    weight = getattr(getattr(module, "base_layer", module), "weight", None)
    return weight if isinstance(weight, Tensor) else None
