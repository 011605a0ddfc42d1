"""watch.batches on loops with a state of their own: GAN, RL, hidden states, guards, scalers, Accelerate."""

import math
import types
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from tqdm import tqdm

from nangrid import NonFiniteError, Watch
from nangrid.records.autopsy import Autopsy, read_autopsy
from nangrid.records.errors import InputError

STEPS = 6


def autopsy_of(loop: Callable[[], None]) -> Autopsy:
    with pytest.raises(NonFiniteError) as raised:
        loop()
    assert raised.value.autopsy is not None
    return raised.value.autopsy


def test_gan_whose_discriminators_optimizer_fails(tmp_path: Path) -> None:
    generator, discriminator = nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    opt_g = torch.optim.SGD(generator.parameters(), lr=0.01)
    opt_d = torch.optim.SGD(discriminator.parameters(), lr=0.01, momentum=0.5)
    watch = Watch([generator, discriminator], [opt_g, opt_d], tmp_path)
    real = [torch.randn(5, 3) for _ in range(STEPS)]

    def loop() -> None:
        for number, batch in enumerate(watch.batches(real)):
            fake = generator(torch.randn(5, 2))
            opt_d.zero_grad()
            (discriminator(fake.detach()) - discriminator(batch)).mean().backward()
            if number == 3:
                opt_d.param_groups[0].update(lr=100.0, weight_decay=3e38)
            opt_d.step()
            opt_g.zero_grad()
            (-discriminator(fake).mean()).backward()
            opt_g.step()

    autopsy = autopsy_of(loop)
    assert (autopsy.step, autopsy.clock, autopsy.phase, autopsy.reproduced) == (3, "parameter", "optimizer", True)
    assert autopsy.parameters and all(name.startswith("1.") for name in autopsy.parameters)


def test_gan_whose_generator_fails_after_the_discriminator_has_stepped(tmp_path: Path) -> None:
    generator, discriminator = nn.Linear(2, 3), nn.Linear(3, 1)
    opt_g = torch.optim.Adam(generator.parameters(), lr=0.01)
    opt_d = torch.optim.Adam(discriminator.parameters(), lr=0.01)
    watch = Watch([generator, discriminator], [opt_g, opt_d], tmp_path)

    def loop() -> None:
        for number, batch in enumerate(watch.batches([torch.randn(5, 3) for _ in range(STEPS)])):
            fake = generator(torch.randn(5, 2))
            opt_d.zero_grad()
            (discriminator(fake.detach()) - discriminator(batch)).mean().backward()
            opt_d.step()
            opt_g.zero_grad()
            torch.log(discriminator(fake).pow(2).mean() * float(number != 3)).backward()
            opt_g.step()

    autopsy = autopsy_of(loop)
    assert (autopsy.step, autopsy.clock, autopsy.op) == (3, "loss", "aten.log.default")
    assert autopsy.reproduced, autopsy.evidence
    assert autopsy.parameters and all(name.startswith("0.") for name in autopsy.parameters)


def test_hidden_state_and_generators_of_the_loop(tmp_path: Path) -> None:
    model, own, noise = nn.GRUCell(3, 4), torch.Generator().manual_seed(1), nn.Linear(4, 1)
    optimizer = torch.optim.SGD([*model.parameters(), *noise.parameters()], lr=0.1)
    inputs = [torch.rand(2, 3) + 0.1 for _ in range(STEPS)]
    inputs[4][1, 1] = -1
    watch = Watch([model, noise], optimizer, tmp_path)
    hidden = torch.zeros(2, 4)
    count = 0

    def loop() -> None:
        nonlocal hidden, count
        for x in watch.batches(inputs):
            hidden = model(torch.log(x) + torch.randn(2, 3, generator=own), hidden)
            count += 1
            loss = noise(hidden).pow(2).mean() * count
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            hidden = hidden.detach()

    autopsy = autopsy_of(loop)
    assert (autopsy.step, autopsy.phase, autopsy.op) == (4, "forward", "aten.log.default")
    assert autopsy.reproduced, autopsy.evidence


def test_reinforcement_learning_that_samples_in_its_body(tmp_path: Path) -> None:
    policy = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.05)
    rewards: list[float] = []
    watch = Watch(policy, optimizer, tmp_path)

    def loop() -> None:
        for observation in watch.batches([torch.randn(8, 3) for _ in range(STEPS)]):
            actions = torch.distributions.Categorical(logits=policy(observation))
            action = actions.sample()
            reward = action.float() - 0.5
            if len(rewards) == 3:
                reward = torch.ones(8)
            rewards.append(float(reward.sum()))
            advantage = (reward - reward.mean()) / reward.std()
            optimizer.zero_grad()
            (-(actions.log_prob(action) * advantage).mean()).backward()
            optimizer.step()

    autopsy = autopsy_of(loop)
    assert (autopsy.step, autopsy.kind, autopsy.op) == (3, "invalid", "aten.div.Tensor")
    assert autopsy.reproduced and len(rewards) == 4, "a list of the loop is as it was"


def leaving(watch: Watch, model: nn.Module, how: str) -> None:
    for number, x in enumerate(watch.batches([torch.rand(2, 3) for _ in range(STEPS)])):
        loss = torch.log(model(x).pow(2).mean() * float(number != 2))
        if how == "raise" and not torch.isfinite(loss):
            raise FloatingPointError("loss is not finite")
        if how == "break" and not torch.isfinite(loss):
            break
        loss.backward()


@pytest.mark.parametrize("how", ["raise", "break"])
def test_a_guard_that_leaves_the_loop_is_explained(how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Linear(3, 1)
    watch = Watch(model, torch.optim.SGD(model.parameters(), lr=0.1), tmp_path)
    try:
        leaving(watch, model, how)
    except FloatingPointError:
        assert how == "raise"
    autopsy = read_autopsy(tmp_path)
    assert autopsy is not None and (autopsy.clock, autopsy.op) == ("raised", "aten.log.default")
    assert "the loop was left after a non-finite number\norigin: aten.log.default" in caplog.text


SOURCE = """
def train(watch, model, optimizer):
    for x in watch.batches([torch.ones(2, 3)] * 3):
        loss = (model(x) * 0).log().sum()
        loss.backward()
        optimizer.step()
"""


def test_a_body_without_source_says_so_and_tells_what_the_live_step_showed(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    model[1].running_mean[0] = math.nan
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    names: dict[str, Any] = {"torch": torch}
    exec(SOURCE, names)
    autopsy = autopsy_of(lambda: names["train"](Watch(model, optimizer, tmp_path), model, optimizer))
    assert (autopsy.step, autopsy.clock, autopsy.phase, autopsy.reproduced) == (0, "loss", "unknown", False)
    assert "the source of the loop's body was not found" in autopsy.explanation
    assert any(line.startswith("non-finite buffers in the live step: 1.running_mean") for line in autopsy.evidence)
    assert "0.weight" in autopsy.parameters


def drawn_through(wrap: Callable[[Iterator[Tensor]], Any], draws: str, out_dir: Path) -> Autopsy:
    """The autopsy of a loop whose third batch has a 0, which draws its batches through something else."""
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs = [torch.ones(2, 3), torch.ones(2, 3), torch.zeros(2, 3), torch.ones(2, 3)]
    watched = wrap(Watch(model, optimizer, out_dir).batches(inputs))

    def by_for() -> None:
        for drawn in watched:
            x = drawn if isinstance(drawn, Tensor) else drawn[0]
            loss = model(x.log()).sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    def by_next() -> None:
        while True:
            drawn = next(watched)
            x = drawn if isinstance(drawn, Tensor) else drawn[0]
            loss = model(x.log()).sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return autopsy_of({"for": by_for, "next": by_next}[draws])


def doubled(batches: Iterator[Tensor]) -> Iterator[Tensor]:
    for batch in batches:
        yield batch * 2


def drawn_ahead(batches: Iterator[Tensor]) -> Iterator[Tensor]:
    before = next(batches)
    for batch in batches:
        yield before
        before = batch


@pytest.mark.parametrize("draws", ["for", "next"])
@pytest.mark.parametrize("wrap", [iter, lambda batches: iter(tqdm(batches, disable=True))], ids=["iter", "tqdm"])
def test_batches_that_are_passed_on_are_replayed(wrap: Any, draws: str, tmp_path: Path) -> None:
    autopsy = drawn_through(wrap, draws, tmp_path)
    assert (autopsy.step, autopsy.op, autopsy.reproduced) == (2, "aten.log.default", True)


def test_watch_that_can_be_switched_off(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, watch = [torch.ones(2, 3), torch.zeros(2, 3)], Watch(model, optimizer, tmp_path)

    def train() -> None:
        for number, x in enumerate(watch.batches(inputs)) if watch else enumerate(inputs):
            loss = model(x.log()).sum() + number
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    autopsy = autopsy_of(train)
    assert (autopsy.step, autopsy.op, autopsy.reproduced) == (1, "aten.log.default", True)


@pytest.mark.parametrize("draws", ["for", "next"])
@pytest.mark.parametrize(
    "wrap", [doubled, drawn_ahead, lambda batches: zip(batches, "abcd", strict=False), pairwise],
    ids=["doubled", "drawn_ahead", "zip", "pairwise"],
)  # fmt: skip
def test_batches_that_may_be_changed_or_drawn_ahead_are_not_replayed(wrap: Any, draws: str, tmp_path: Path) -> None:
    autopsy = drawn_through(wrap, draws, tmp_path)
    assert (autopsy.op, autopsy.reproduced) == ("", False)
    assert "takes its batches through something other than enumerate" in autopsy.explanation


@pytest.mark.parametrize("passed", [False, True])
def test_a_scaler_that_finds_no_scale_is_told_at_the_first_skipped_step(passed: bool, tmp_path: Path) -> None:
    """The scaler is a variable of the loop; or it lies in a foreign object, and is passed to the watch."""
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    watch = Watch(model, optimizer, tmp_path, scaler=scaler if passed else None)
    seen = types.SimpleNamespace(scaler=scaler) if passed else scaler

    def loop() -> None:
        for number, x in enumerate(watch.batches([torch.rand(2, 3) for _ in range(STEPS)])):
            used = seen.scaler if passed else seen
            out = model(x)
            loss = out.pow(2).mean() if number < 2 else (out - out.detach()).sqrt().sum()
            optimizer.zero_grad()
            used.scale(loss).backward()
            used.step(optimizer)
            used.update()

    autopsy = autopsy_of(loop)
    assert (autopsy.step, autopsy.clock, autopsy.node) == (2, "gradient", "SqrtBackward0")
    assert autopsy.reproduced and scaler.get_scale() == 512


# snapshots


def test_light_replays_a_gradient_and_says_what_it_lacks_for_an_update(tmp_path: Path) -> None:
    def loop(fault: str) -> None:
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        watch = Watch(model, optimizer, tmp_path / fault, snapshot="light")
        for number, x in enumerate(watch.batches([torch.rand(2, 3) for _ in range(STEPS)])):
            out = model(x)
            loss = (out - out.detach()).sqrt().sum() if fault == "backward" and number == 2 else out.pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            if fault == "optimizer" and number == 2:
                optimizer.param_groups[0].update(lr=100.0, weight_decay=3e38)
            optimizer.step()

    gradient = autopsy_of(lambda: loop("backward"))
    assert (gradient.step, gradient.node, gradient.reproduced) == (2, "SqrtBackward0", True)
    update = autopsy_of(lambda: loop("optimizer"))
    assert (update.step, update.phase, update.parameters) == (2, "optimizer", ["weight", "bias"])
    assert 'Pass snapshot="full"' in update.explanation


def test_auto_is_light_for_many_trainables_and_wrong_arguments_are_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("nangrid.watch.watch.LIGHT_FROM", 3)
    model = nn.Linear(3, 1)
    watch = Watch(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert watch.inspector.policy.light and "snapshot=light" in caplog.text
    with pytest.raises(InputError, match="pass one of auto, full, light"):
        Watch(model, torch.optim.SGD(model.parameters(), lr=0.1), snapshot="lite")
    with pytest.raises(InputError, match="list of optimizers is empty"):
        Watch(model, [])


# other libraries


def accelerated(watch: Callable[..., Any], tmp_path: Path, fault: bool) -> list[float]:
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.GradientState._reset_state()
    accelerator = accelerate.Accelerator(gradient_accumulation_steps=2, cpu=True)
    torch.manual_seed(0)
    model, losses = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 1)), []
    data = torch.rand(14, 3) + 0.1
    if fault:
        data[9] = 0
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data), batch_size=2)
    model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.01), loader)
    batches = watch(model, optimizer)
    for (x,) in batches(loader):
        with accelerator.accumulate(model):
            loss = model(torch.log(x)).pow(2).mean()
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_accelerate_with_accumulate(tmp_path: Path) -> None:
    def watch(model: nn.Module, optimizer: Any) -> Any:
        return Watch(model, optimizer, tmp_path).batches

    plain = accelerated(lambda *_: iter, tmp_path, fault=False)
    assert accelerated(watch, tmp_path, fault=False) == plain
    autopsy = autopsy_of(lambda: void(accelerated(watch, tmp_path, fault=True)))
    assert (autopsy.step, autopsy.micro_batch, autopsy.op) == (2, 0, "aten.log.default")
    assert autopsy.reproduced, autopsy.evidence


def void(_: Any) -> None:
    """Drop a value."""


def test_closures_with_accelerates_accumulation_are_refused(tmp_path: Path) -> None:
    optimizer = types.SimpleNamespace(gradient_state=types.SimpleNamespace(num_steps=2))
    model = nn.Linear(3, 1)
    optimizer.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match=r"use `for batch in watch.batches\(loader\)`"):
        Watch(model, optimizer, tmp_path).step(lambda: model(torch.ones(1, 3)).sum())  # type: ignore[arg-type]


def test_a_last_partial_window_of_closures_takes_its_step_at_close(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    watch = Watch(model, optimizer, tmp_path, accumulate=2)

    def closure(x: Tensor) -> Tensor:
        loss: Tensor = model(x).pow(2).mean()
        loss.backward()
        return loss

    for _ in range(3):
        watch.step(closure, torch.rand(2, 3))
    watch.close()
    assert optimizer.state[model.weight]["step"] == 2 and len(watch.inspector.clocks.readings) == 2
