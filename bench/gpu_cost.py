"""Measures what the watch costs in time and memory on a GPU, on a model of Gemma 7B's shape in four bits.

    python bench/gpu_cost.py                        # on a GPU with 24 GB; writes bench/results/gpu_cost.md
    python bench/gpu_cost.py --device cpu --tiny    # the same code on a small model, to try it; writes nothing

The weights are random, so nothing is downloaded. Blocks of plain and of watched steps take turns on one model and one
optimizer; a block ends when the device has finished. Needs torch, transformers and bitsandbytes.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import bitsandbytes
import torch
import transformers
from torch import Tensor, nn

from nangrid import NonFiniteError, Watch

RESULT = Path(__file__).parent / "results" / "gpu_cost.md"
BLOCK, BLOCKS, WARM = 5, 12, 3
"""Steps per block, blocks of each kind, and steps before the first."""
SHAPE = {"vocab_size": 256_000, "hidden_size": 3072, "intermediate_size": 24_576, "num_hidden_layers": 28,
         "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256}  # fmt: skip
TINY = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}  # fmt: skip
BATCH = (2, 128)
RANK = 16


class Adapted(nn.Module):
    """A frozen layer with a LoRA adapter beside it."""

    def __init__(self, base: nn.Module, first: nn.Module, width: int, device: str) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.first, self.second = first, nn.Linear(RANK, width, bias=False, device=device, dtype=torch.bfloat16)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.second(self.first(x))
        return out


def build(shape: dict[str, int], device: str) -> nn.Module:
    """Gemma with random weights: linear layers in NF4, adapters on q, v, embedding and head, checkpointing on."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = transformers.GemmaForCausalLM(transformers.GemmaConfig(**shape, use_cache=False))
    torch.set_default_dtype(torch.float32)
    model.requires_grad_(False)
    for layer in model.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, linear in list(part.named_children()):
                if isinstance(linear, nn.Linear):
                    setattr(
                        part, name, adapted(quantised(linear, device), linear, device, name in ("q_proj", "v_proj"))
                    )
    width, vocabulary = shape["hidden_size"], shape["vocab_size"]
    table = nn.Embedding(vocabulary, RANK, device=device, dtype=torch.bfloat16)
    model.set_input_embeddings(Adapted(model.get_input_embeddings(), table, width, device))
    model.lm_head = adapted(model.lm_head, model.lm_head, device, True)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def quantised(linear: nn.Linear, device: str) -> nn.Module:
    """The layer in four bits; its weights are quantised when they are moved to the device."""
    four = bitsandbytes.nn.Linear4bit(
        linear.in_features, linear.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
    )
    four.weight = bitsandbytes.nn.Params4bit(linear.weight.detach().cpu(), requires_grad=False, quant_type="nf4")
    return four.to(device)


def adapted(base: nn.Module, like: nn.Linear, device: str, adapts: bool) -> nn.Module:
    """The layer, with an adapter if it is to have one."""
    if not adapts:
        return base
    first = nn.Linear(like.in_features, RANK, bias=False, device=device, dtype=torch.bfloat16)
    return Adapted(base, first, like.out_features, device)


class Run:
    """Plain and watched steps of one model and one optimizer."""

    def __init__(self, shape: dict[str, int], device: str) -> None:
        self.device, self.vocabulary = device, shape["vocab_size"]
        self.model = build(shape, device)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = bitsandbytes.optim.AdamW8bit(self.trained, lr=2e-4)
        self.scale = 1.0

    def forward_backward(self, ids: Tensor) -> Tensor:
        loss: Tensor = self.model(input_ids=ids, labels=ids).loss * self.scale
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def plain(self, ids: Tensor) -> None:
        self.optimizer.zero_grad()
        self.forward_backward(ids)
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()

    def seconds(self, step: Callable[[Tensor], Any], steps: int = BLOCK) -> float:
        """Of one step of a block, when the device has finished."""
        batches = [torch.randint(3, self.vocabulary, BATCH, device=self.device) for _ in range(steps)]
        self.wait()
        began = time.perf_counter()
        for ids in batches:
            step(ids)
        self.wait()
        return (time.perf_counter() - began) / steps

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def peak(self) -> float:
        """GiB that were in use at most since the last call; NaN on a CPU."""
        if self.device != "cuda":
            return math.nan
        most = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
        return most


def measure(run: Run, out_dir: Path, blocks: int) -> Iterator[str]:
    """The rows of the table."""
    run.seconds(run.plain, WARM)
    run.peak()
    run.seconds(run.plain)
    plain_peak = run.peak()
    watch = Watch(run.model, run.optimizer, out_dir, max_grad_norm=1.0, snapshot="full")
    watched: Callable[[Tensor], Any] = lambda ids: watch.step(run.forward_backward, ids)  # noqa: E731
    run.seconds(watched, WARM)
    run.peak()
    run.seconds(watched)
    watched_peak = run.peak()
    pairs = [(run.seconds(run.plain), run.seconds(watched)) for _ in range(blocks)]
    ratios = sorted(after / before for before, after in pairs)
    yield f"| trainables | {sum(p.numel() for p in run.trained):,} |"
    yield f"| plain step, s | {median(before for before, _ in pairs):.4f} |"
    yield f"| watched / plain step, median (smallest to largest of {blocks}) | {spread(ratios)} |"
    yield f"| peak memory plain, GiB | {plain_peak:.2f} |"
    yield f"| peak memory watched, GiB | {watched_peak:.2f} |"
    yield from autopsied(run, watch, watched)


def autopsied(run: Run, watch: Watch, watched: Callable[[Tensor], Any]) -> Iterator[str]:
    """A step whose loss is infinite: what its autopsy costs, and that it is right."""
    run.scale = math.inf
    began = time.perf_counter()
    try:
        run.seconds(watched, 1)
        watch.close()
    except NonFiniteError as error:
        seconds, autopsy = time.perf_counter() - began, error.autopsy
        if autopsy is None or not autopsy.reproduced:
            raise SystemExit(f"The replay does not reproduce the failing step: {error}") from error
        yield f"| failing step with autopsy, s | {seconds:.2f} |"
        yield f"| peak memory of the replay, GiB | {run.peak():.2f} |"
        yield f"| origin | {autopsy.phase} {autopsy.kind}, {autopsy.op} |"
        return
    raise SystemExit("The watch did not see an infinite loss.")


def spread(ratios: list[float]) -> str:
    return f"{median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"


def machine(device: str) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return f"{name}; torch {torch.__version__}, transformers {transformers.__version__}, " + (
        f"bitsandbytes {bitsandbytes.__version__}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="a small model and few steps; no result is written")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device: type --device cpu --tiny to try the benchmark on the CPU.")
    run = Run(TINY if options.tiny else SHAPE, options.device)
    with tempfile.TemporaryDirectory() as scratch:
        rows = list(measure(run, Path(scratch), 2 if options.tiny else BLOCKS))
    head = [
        "`python bench/gpu_cost.py`",
        "",
        f"| Gemma 7B's shape, NF4, {BATCH[0]} x {BATCH[1]} tokens | |",
        "| --- | ---: |",
    ]
    text = "\n".join([*head, *rows, "", machine(options.device), ""])
    print(text)
    if not options.tiny:
        RESULT.write_text(text)


if __name__ == "__main__":
    main()
