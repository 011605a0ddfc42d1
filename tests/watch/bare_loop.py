"""A hand-written training loop under the watch, with the batches and losses that several tests share."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nangrid import NonFiniteError, Watch
from nangrid.records.autopsy import Autopsy, read_autopsy


class Calculation(nn.Module):
    """A layer that hands on its input, and a calculation on its output."""

    def __init__(self, then: Callable[[Tensor], Tensor], size: int = 3) -> None:
        super().__init__()
        self.layer, self.then = nn.Linear(size, size, bias=False), then
        nn.init.eye_(self.layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.layer(x))


def squares(out: Tensor) -> Tensor:
    return out.float().pow(2).mean()


def model_loss(out: Any) -> Tensor:
    value: Tensor = out.loss
    return value


def words(shape: tuple[int, int] = (2, 9)) -> dict[str, Tensor]:
    """Random tokens below 60, as inputs and as labels."""
    ids = torch.randint(3, 60, shape)
    return {"input_ids": ids, "labels": ids.clone()}


def call(model: nn.Module, batch: Any) -> Any:
    """The model's output; a tuple is passed as positional arguments, a dict as keywords."""
    return model(*batch) if isinstance(batch, tuple) else model(**batch) if isinstance(batch, dict) else model(batch)


def train(
    model: nn.Module,
    batches: list[Any],
    out_dir: Path,
    loss_of: Callable[[Any], Tensor] = squares,
    optimizer: torch.optim.Optimizer | None = None,
    in_thread: bool = False,
    **options: Any,
) -> list[float]:
    """Train and return the losses; NonFiniteError at the first non-finite number."""
    optimizer = optimizer or torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    watch = Watch(model, optimizer, out_dir, **options)
    scaler = options.get("scaler")

    def closure(batch: Any) -> Tensor:
        loss = loss_of(call(model, batch))
        scaled = scaler.scale(loss) if scaler else loss
        if in_thread:
            thread = threading.Thread(target=scaled.backward)
            thread.start()
            thread.join()
        else:
            scaled.backward()
        return loss

    return [watch.step(closure, batch).item() for batch in batches]


def diagnose(*arguments: Any, **options: Any) -> Autopsy:
    """Train until a step goes non-finite; the autopsy, which must equal the one on disk."""
    with pytest.raises(NonFiniteError) as raised:
        train(*arguments, **options)
    autopsy = raised.value.autopsy
    assert autopsy is not None and autopsy.reproduced
    assert read_autopsy(arguments[2]) == autopsy
    return autopsy


def located(autopsy: Autopsy) -> tuple[str, str, str]:
    return autopsy.phase, autopsy.kind, autopsy.op
