"""watch.batches on healthy loops with infinities, skips and state of their own: no alarm, and not a bit changed."""

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR, MultiStepLR, ReduceLROnPlateau, SequentialLR
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset

from nangrid import Watch

Batches = Callable[[Any], Iterator[Any]]
Watching = Callable[[Any, Any], Batches]
"""What makes the batches of a loop from its model and optimizer."""
STEPS = 6


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))


def data(steps: int = STEPS) -> list[Tensor]:
    return [torch.rand(4, 3) for _ in range(steps)]


def parts() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = net()
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def mended_gradients(watching: Watching) -> nn.Module:
    model, optimizer = parts()
    for number, x in enumerate(watching(model, optimizer)(data())):
        optimizer.zero_grad()
        torch.log(model(x).pow(2).mean() * float(number != 3)).backward()
        for parameter in model.parameters():
            parameter.grad = torch.nan_to_num(parameter.grad, posinf=0.0, neginf=0.0)
        optimizer.step()
    return model


def skipped_batches(watching: Watching) -> nn.Module:
    model, optimizer = parts()
    for number, x in enumerate(watching(model, optimizer)(data())):
        loss = torch.log(model(x).pow(2).mean() * float(number % 2))
        optimizer.zero_grad()
        loss.backward()
        if not torch.isfinite(loss):
            continue
        optimizer.step()
    return model


def scaler_that_searches(watching: Watching) -> nn.Module:
    model, optimizer = parts()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    for x in watching(model, optimizer)(data(12)):
        optimizer.zero_grad()
        scaler.scale(model(x * 1e3).pow(2).mean() * 1e3).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    return model


def masked_rows(watching: Watching) -> nn.Module:
    model, optimizer = parts()
    for x in watching(model, optimizer)(data()):
        # Infinities that no loss reads: rows without a label, scores that attention must not see.
        rows = torch.tensor([True, True, False, False])
        out = model(x)
        attention = (out @ out.T).masked_fill(~rows, -math.inf).softmax(dim=-1)
        unknown = out.masked_fill(~rows[:, None], math.inf)
        step(optimizer, torch.where(rows[:, None], unknown, 0.0).pow(2).mean() + (attention @ out).pow(2).mean())
    return model


def averaged_weights(watching: Watching) -> nn.Module:
    model, optimizer = parts()
    average = AveragedModel(model)
    for x in watching(model, optimizer)(data()):
        step(optimizer, model(x).pow(2).mean())
        average.update_parameters(model)
    return average


def teacher_inside_the_model(watching: Watching) -> nn.Module:
    model = nn.ModuleDict({"student": net(), "teacher": net().requires_grad_(False)})
    optimizer = torch.optim.SGD(model["student"].parameters(), lr=0.1, momentum=0.9)
    for x in watching(model, optimizer)(data()):
        step(optimizer, (model["student"](x) - model["teacher"](x)).pow(2).mean())
        with torch.no_grad():
            for slow, fast in zip(model["teacher"].parameters(), model["student"].parameters(), strict=True):
                slow.lerp_(fast, 0.1)
    return model


def early_stopping(watching: Watching) -> nn.Module:
    model, optimizer = parts()
    best, patience = math.inf, 0
    for x in watching(model, optimizer)(data(20)):
        loss = model(x).pow(2).mean()
        step(optimizer, loss)
        patience = 0 if loss.item() < best else patience + 1
        best = min(best, loss.item())
        if patience > 1:
            break
    return model


def uneven_last_window(watching: Watching) -> nn.Module:
    model, optimizer = parts()
    batches = data(7)
    for number, x in enumerate(watching(model, optimizer)(batches), 1):
        (model(x).pow(2).mean() / 3).backward()
        if number % 3 == 0 or number == len(batches):
            optimizer.step()
            optimizer.zero_grad()
    return model


def one_step_after_the_loop(watching: Watching) -> nn.Module:
    model, optimizer = parts()
    for x in watching(model, optimizer)(data()):
        (model(x).pow(2).mean() / STEPS).backward()
    optimizer.step()
    return model


def evaluation_in_the_body(watching: Watching) -> nn.Module:
    model, optimizer = parts()
    batches = watching(model, optimizer)
    for _ in range(2):
        for x in batches(data(3)):
            step(optimizer, model(x).pow(2).mean())
            model.eval()
            with torch.no_grad():
                model(x * math.nan)
            model.train()
        with torch.no_grad():
            for x in batches([torch.full((4, 3), math.nan)]):
                model.eval()(x)
        model.train()
    return model


def closures_of_the_optimizer(watching: Watching) -> nn.Module:
    model, optimizer = parts()

    def closure(x: Tensor) -> Tensor:
        loss: Tensor = model(x).pow(2).mean()
        loss.backward()
        return loss

    for x in watching(model, optimizer)(data()):
        optimizer.zero_grad()
        optimizer.step(lambda x=x: closure(x))
    return model


def several_schedulers(watching: Watching) -> nn.Module:
    model, optimizer = parts()
    warmup = SequentialLR(optimizer, [LinearLR(optimizer, 0.1), MultiStepLR(optimizer, [4])], [2])
    plateau = ReduceLROnPlateau(optimizer, patience=0)
    for x in watching(model, optimizer)(data()):
        loss = model(x).pow(2).mean()
        step(optimizer, loss)
        warmup.step()
        plateau.step(loss.detach())
    return model


def batches_changed_in_place(watching: Watching) -> nn.Module:
    model, optimizer = parts()
    for x in watching(model, optimizer)(data()):
        step(optimizer, model(x.mul_(2)).pow(2).mean())
        x.div_(0)  # no longer needed
    return model


def generator_of_the_loop(watching: Watching) -> nn.Module:
    model, optimizer = parts()
    own = torch.Generator().manual_seed(1)
    for x in watching(model, optimizer)(data()):
        noisy = x + 0.1 * torch.randn(x.shape, generator=own) + 0.1 * torch.randn_like(x)
        step(optimizer, model(noisy).pow(2).mean())
    return model


def two_optimizers(watching: Watching) -> nn.Module:
    generator, discriminator = nn.Linear(2, 3), net()
    opt_g = torch.optim.Adam(generator.parameters(), lr=0.01)
    opt_d = torch.optim.SGD(discriminator.parameters(), lr=0.01, momentum=0.9)
    for real in watching([generator, discriminator], [opt_g, opt_d])(data()):
        fake = generator(torch.randn(4, 2))
        step(opt_d, (discriminator(fake.detach()) - discriminator(real)).mean())
        step(opt_g, -discriminator(fake).mean())
    return nn.ModuleList([generator, discriminator])


def compiled_model(watching: Watching) -> nn.Module:
    model, optimizer = parts()
    compiled = torch.compile(model, backend="aot_eager")
    for x in watching(model, optimizer)(data()):
        step(optimizer, compiled(x).pow(2).mean())
    return model


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        yield from torch.rand(24, 3, generator=torch.Generator().manual_seed(0))


def stream_with_workers(watching: Watching) -> nn.Module:
    model, optimizer = parts()
    for x in watching(model, optimizer)(DataLoader(Stream(), batch_size=4, num_workers=1)):
        step(optimizer, model(x).pow(2).mean())
    return model


def checkpointed_model(watching: Watching) -> nn.Module:
    model, optimizer = parts()
    for x in watching(model, optimizer)(data()):
        step(optimizer, checkpoint(model, x, use_reentrant=False).pow(2).mean())
    return model


def layers_thawed_later(watching: Watching) -> nn.Module:
    model = net()
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for number, x in enumerate(watching(model, optimizer)(data())):
        if number == 2:
            model[0].requires_grad_(True)
            optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.001})
        step(optimizer, model(x).pow(2).mean())
    return model


LOOPS = [
    mended_gradients,
    skipped_batches,
    scaler_that_searches,
    masked_rows,
    averaged_weights,
    teacher_inside_the_model,
    early_stopping,
    uneven_last_window,
    one_step_after_the_loop,
    evaluation_in_the_body,
    closures_of_the_optimizer,
    several_schedulers,
    batches_changed_in_place,
    generator_of_the_loop,
    two_optimizers,
    compiled_model,
    stream_with_workers,
    checkpointed_model,
    layers_thawed_later,
]


@pytest.mark.parametrize("snapshot", ["full", "light"])
@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_a_healthy_loop_trips_no_clock(loop: Callable[[Watching], nn.Module], snapshot: str, tmp_path: Path) -> None:
    watches: list[Watch] = []

    def watching(model: Any, optimizer: Any) -> Batches:
        watches.append(Watch(model, optimizer, tmp_path, snapshot=snapshot))
        return watches[0].batches

    torch.manual_seed(0)
    plain = copy.deepcopy(loop(lambda *_: iter).state_dict())
    state = torch.get_rng_state()
    torch.manual_seed(0)
    watched = loop(watching).state_dict()
    watches[0].close()
    assert all(torch.equal(watched[name], values) for name, values in plain.items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.isfinite(values).all() for values in plain.values()) and list(tmp_path.iterdir()) == []
