"""A hand-written loop on a GPU, where the watch reads its flags late: the last steps are checked when it is closed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from bare_loop import call, squares
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from nangrid import NonFiniteError, Watch
from nangrid.records.autopsy import Autopsy

Losses = Callable[[Any], Tensor]
Optimizers = Callable[[Any], torch.optim.Optimizer]


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


def on(device: str, value: Any) -> Any:
    """A batch with its tensors on the device."""
    return tree_map(lambda part: part.to(device) if isinstance(part, Tensor) else part, value)


def train(
    device: str,
    model: nn.Module,
    batches: Sequence[Any],
    out_dir: Path | None,
    loss_of: Losses = squares,
    make: Optimizers = adam,
    autocast: torch.dtype | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> nn.Module:
    """Train a model on the device, watched if there is a directory, and return it."""
    model = model.to(device)
    optimizer = make([p for p in model.parameters() if p.requires_grad])
    watch = Watch(model, optimizer, out_dir, scaler=scaler, max_grad_norm=1.0) if out_dir else None

    def closure(batch: Any) -> Tensor:
        with torch.autocast(device, autocast, enabled=autocast is not None):
            loss = loss_of(call(model, batch))
        (scaler.scale(loss) if scaler else loss).backward()  # type: ignore[no-untyped-call]
        return loss

    for batch in batches:
        if watch:
            watch.step(closure, on(device, batch))
            continue
        optimizer.zero_grad()
        closure(on(device, batch))
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    if watch:
        watch.close()
    return model


def diagnose(device: str, *arguments: Any, **options: Any) -> Autopsy:
    """Train until the watch raises; its autopsy."""
    with pytest.raises(NonFiniteError) as raised:
        train(device, *arguments, **options)
    autopsy = raised.value.autopsy
    assert autopsy is not None and autopsy.reproduced
    return autopsy
