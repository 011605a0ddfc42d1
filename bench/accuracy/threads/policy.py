"""Rebuilds failures of reinforcement-learning losses, reported for TRL, OpenRLHF, SkyRL and others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import Loop, case, origin
from loops import TinyLM, logps, mlp, replaced, train
from torch import Tensor, nn


def completions(number: int, model: TinyLM, length: int = 6) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Completions, their log-probabilities under the reference, and advantages."""
    ids = [torch.randint(0, 24, (4, length)) for _ in range(number)]
    with torch.no_grad():
        return [(row, logps(model(row), row), torch.randn(4, 1)) for row in ids]


def far_off(batch: tuple[Tensor, Tensor, Tensor], by: float) -> tuple[Tensor, Tensor, Tensor]:
    """The batch with one token whose other log-probability lies far away."""
    ids, other, advantage = batch
    other = other.clone()
    other[1, 3] += by
    return ids, other, advantage


@case(
    "huggingface/trl#3015",
    "exp of a log-ratio",
    (3, "loss"),
    origin("forward", "overflow", "exp"),
    mechanism="exp-overflow",
)
def grpo_kl_overflows(fixed: bool = False) -> Loop:
    """The K3 estimator exp(ref - policy) - (ref - policy) - 1, where the policy has drifted far from the reference."""
    torch.manual_seed(120)
    model = TinyLM()

    def loss(ids: Tensor, reference: Tensor, advantage: Tensor) -> Tensor:
        policy = logps(model(ids), ids)
        ratio = (reference - policy).clamp(max=20) if fixed else reference - policy
        kl = torch.exp(ratio) - ratio - 1  # DEFECT
        return (-torch.exp(policy - policy.detach()) * advantage + 0.04 * kl).mean()

    batches = completions(6, model)
    batches = replaced(batches, 3, far_off(batches[3], 95.0))
    return train(model, torch.optim.AdamW(model.parameters(), lr=1e-3), loss, batches, clip=1.0)


@case(
    "OpenRLHF/OpenRLHF#1335",
    "exp of a log-ratio",
    (2, "gradient"),
    origin("forward", "overflow", "exp", "kl"),
    origin("backward", "invalid", "mul", "kl", node="ExpBackward*", first_nan=True),
    mechanism="exp-overflow",
)
def kl_clipped_after_the_exponential(fixed: bool = False) -> Loop:
    """The KL estimate is clamped only after exp has overflowed: the loss is finite, its gradient 0 * inf."""

    class KL(nn.Module):
        def forward(self, policy: Tensor, reference: Tensor) -> Tensor:
            ratio = reference - policy
            if fixed:
                ratio = ratio.clamp(-10, 10)
            estimate = ratio.exp() - 1 - ratio  # DEFECT
            return estimate.clamp(-10, 10)

    class Actor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lm, self.kl = TinyLM(), KL()

        def forward(self, ids: Tensor, reference: Tensor, advantage: Tensor) -> Tensor:
            policy = logps(self.lm(ids), ids)
            return (self.kl(policy, reference) - policy * advantage).mean()

    torch.manual_seed(121)
    model = Actor()
    batches = completions(5, model.lm)
    batches = replaced(batches, 2, far_off(batches[2], 120.0))
    return train(model, torch.optim.AdamW(model.parameters(), lr=1e-3), model, batches)


@case(
    "NovaSky-AI/SkyRL#1261",
    "exp of a log-ratio",
    (4, "loss"),
    origin("forward", "overflow", "exp"),
    mechanism="exp-overflow",
)
def importance_sampling_ratio(fixed: bool = False) -> Loop:
    """exp(new - old) without a clamp: the sampler gave a token a far smaller probability than the trainer does."""
    torch.manual_seed(122)
    model = TinyLM()

    def loss(ids: Tensor, old: Tensor, advantage: Tensor) -> Tensor:
        delta = logps(model(ids), ids) - old
        ratio = torch.exp(delta.clamp(-20, 20) if fixed else delta)  # DEFECT
        return -(ratio * advantage).mean()

    batches = completions(7, model)
    batches = replaced(batches, 4, far_off(batches[4], -110.0))
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-3), loss, batches)


@case("huggingface/trl#7120", "division by a ratio", (2, "loss"), origin("forward", "divide_by_zero", "div"))
def gate_divides_by_a_product_of_ratios(fixed: bool = False) -> Loop:
    """clamp(rho) / rho, where rho is the product over a whole completion and underflows to 0."""
    torch.manual_seed(123)
    model = TinyLM()

    def loss(ids: Tensor, sampler: Tensor, advantage: Tensor) -> Tensor:
        policy = logps(model(ids), ids)
        rho = torch.exp((policy - sampler).sum(1, keepdim=True)).detach()
        gate = rho.clamp(0.8, 3.0) if fixed else rho.clamp(0.8, 3.0) / rho  # DEFECT
        return -(gate * policy * advantage).mean()

    batches = completions(5, model)
    batches = replaced(batches, 2, far_off(batches[2], 150.0))
    return train(model, torch.optim.AdamW(model.parameters(), lr=1e-3), loss, batches)


@case(
    "axolotl-ai-cloud/axolotl#3353",
    "std of one value",
    (3, "loss"),
    origin("forward", "invalid", "std"),
    mechanism="mean-over-nothing",
)
def one_generation_per_prompt(fixed: bool = False) -> Loop:
    """Rewards are normalised within a group; with one generation per prompt the unbiased std is 0 / 0."""
    torch.manual_seed(124)
    model = TinyLM()

    def loss(ids: Tensor, rewards: Tensor, generations: int) -> Tensor:
        groups = rewards.view(-1, generations)
        std = groups.std(dim=1, unbiased=not fixed)  # DEFECT
        std = std.repeat_interleave(generations)
        advantage = (rewards - groups.mean(1).repeat_interleave(generations)) / (std + 1e-4)
        return -(logps(model(ids), ids).mean(1) * advantage).mean()

    batches = [(torch.randint(0, 24, (4, 5)), torch.rand(4), 2) for _ in range(6)]
    batches = replaced(batches, 3, (*batches[3][:2], 1))
    return train(model, torch.optim.AdamW(model.parameters(), lr=1e-3), loss, batches)


@case(
    "DLR-RM/stable-baselines3#325",
    "std of one value",
    (2, "loss"),
    origin("forward", "invalid", "std", "ppo"),
    mechanism="mean-over-nothing",
)
def last_minibatch_holds_one_sample(fixed: bool = False) -> Loop:
    """Advantages are normalised per minibatch, and the last one of the rollout buffer has one sample."""

    class PPO(nn.Module):
        def forward(self, logp: Tensor, old: Tensor, advantage: Tensor) -> Tensor:
            if not fixed or len(advantage) > 1:
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)  # DEFECT
            ratio = torch.exp(logp - old)
            return -torch.min(advantage * ratio, advantage * ratio.clamp(0.8, 1.2)).mean()

    class Agent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.ppo = mlp(4, 8, 3), PPO()

        def forward(self, x: Tensor, action: Tensor, old: Tensor, advantage: Tensor) -> Tensor:
            return self.ppo(self.net(x).log_softmax(-1).gather(1, action).squeeze(1), old, advantage)

    torch.manual_seed(125)
    model = Agent()
    sizes = [8, 8, 1, 8, 8, 8]
    batches = [(torch.randn(n, 4), torch.randint(0, 3, (n, 1)), torch.full((n,), -1.1), torch.randn(n)) for n in sizes]
    return train(model, torch.optim.Adam(model.parameters(), lr=3e-4), model, batches, clip=0.5)


@case(
    "huggingface/trl#5773",
    "non-finite data",
    (3, "loss"),
    origin("input", "nonfinite_input", "mean", node="*"),
    mechanism="nonfinite-data",
)
def reward_that_no_function_gave(fixed: bool = False) -> Loop:
    """Every reward function returned None for a completion: its reward is NaN, and with it the mean of its group."""
    torch.manual_seed(126)
    model = TinyLM()

    def loss(ids: Tensor, rewards: Tensor) -> Tensor:
        if fixed:
            rewards = rewards.nan_to_num()
        advantage = rewards - rewards.view(2, 2).mean(1).repeat_interleave(2)  # DEFECT
        return -(logps(model(ids), ids).mean(1) * advantage).mean()

    batches = [(torch.randint(0, 24, (4, 5)), torch.rand(4)) for _ in range(6)]
    batches = replaced(batches, 3, (batches[3][0], torch.tensor([0.5, float("nan"), 1.0, 0.0])))
    return train(model, torch.optim.AdamW(model.parameters(), lr=1e-3), loss, batches)


@case("tensorflow/agents#562", "0 * -inf", (2, "loss"), origin("forward", "invalid", "mul", "policy", first_nan=True))
def entropy_of_masked_actions(fixed: bool = False) -> Loop:
    """The entropy bonus multiplies probability 0 by log-probability -inf of an action that the mask forbids."""

    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(4, 8, 5, act=nn.Tanh)

        def forward(self, x: Tensor, forbidden: Tensor) -> tuple[Tensor, Tensor]:
            log_p = self.net(x).masked_fill(forbidden, float("-inf")).log_softmax(-1)
            safe = log_p.masked_fill(forbidden, 0.0) if fixed else log_p
            entropy = -(log_p.exp() * safe).sum(-1)  # DEFECT
            return log_p[:, 0], entropy

    class Agent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = Policy()

        def forward(self, x: Tensor, forbidden: Tensor, advantage: Tensor) -> Tensor:
            log_p, entropy = self.policy(x, forbidden)
            return -(log_p * advantage + 0.01 * entropy).mean()

    torch.manual_seed(127)
    model = Agent()
    batches = [(torch.randn(6, 4), torch.zeros(6, 5, dtype=torch.bool), torch.randn(6)) for _ in range(5)]
    forbidden = torch.zeros(6, 5, dtype=torch.bool)
    forbidden[4, 2:] = True
    batches = replaced(batches, 2, (batches[2][0], forbidden, batches[2][2]))
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-3), model, batches)


@case(
    "cpnota/autonomous-learning-library#139",
    "log of a negative number",
    (4, "loss"),
    origin("forward", "invalid", "log"),
    mechanism="log-of-zero",
)
def squashed_action_with_a_scale(fixed: bool = False) -> Loop:
    """log(1 - action^2 + 1e-6) is taken after the action was scaled by 2: the argument is negative."""
    torch.manual_seed(128)
    model = nn.Linear(4, 2)

    def loss(state: Tensor, scale: float, q: Tensor) -> Tensor:
        raw = model(state) + 0.1 * torch.randn(len(state), 2)
        action = torch.tanh(raw) * scale
        inside = torch.tanh(raw) if fixed else action
        log_prob = -torch.log(1 - inside.pow(2) + 1e-6).sum(1)  # DEFECT
        return (0.2 * log_prob - (action * q).sum(1)).mean()

    batches = [(0.1 * torch.randn(8, 4), 1.0, torch.randn(8, 2)) for _ in range(7)]
    batches = replaced(batches, 4, (5 * torch.randn(8, 4), 2.0, torch.randn(8, 2)))
    return train(model, torch.optim.Adam(model.parameters(), lr=3e-4), loss, batches)


@case(
    "huggingface/trl#5594",
    "-inf padding",
    (2, "gradient"),
    origin("input", "nonfinite_input", "sub", node="*"),
    origin("backward", "invalid", "mul", node="*", first_nan=True),
    mechanism="nonfinite-data",
)
def reverse_kl_over_padding(fixed: bool = False) -> Loop:
    """The teacher's log-probabilities are padded with -inf; nan_to_num hides them in the loss, not in the gradient.

    The -inf came with the batch and is read by a subtraction: non-finite data, and filling it is the cure.
    """
    torch.manual_seed(129)
    model = TinyLM(vocabulary=8)

    def loss(ids: Tensor, teacher: Tensor) -> Tensor:
        student = model(ids).log_softmax(-1)
        if fixed:
            teacher = teacher.nan_to_num(neginf=-30.0)
        divergence = student.exp() * (student - teacher)  # DEFECT
        return divergence.nan_to_num(posinf=0.0).sum(-1).mean()

    batches = [(torch.randint(0, 8, (2, 5)), torch.randn(2, 5, 8).log_softmax(-1)) for _ in range(5)]
    padded = batches[2][1].clone()
    padded[1, 3:] = float("-inf")
    batches = replaced(batches, 2, (batches[2][0], padded))
    return train(model, torch.optim.AdamW(model.parameters(), lr=1e-3), loss, batches)


@case(
    "MakazhanAlpamys/Soup#719",
    "gradient of x log x at 0",
    (3, "gradient"),
    origin("backward", "invalid", "div", "distill", node="Xlogy*"),
    origin("backward", "divide_by_zero", "xlogy", "distill", node="Xlogy*"),
    mechanism="log-of-zero",
)
def reverse_kl_at_a_low_temperature(fixed: bool = False) -> Loop:
    """kl_div with the student's own probabilities as target: a probability underflows to 0 and its slope is log(0)."""

    class Distill(nn.Module):
        def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
            q, log_p = (student / 0.05).log_softmax(-1), (teacher / 0.05).log_softmax(-1)
            if fixed:
                return (q.exp() * (q - log_p)).sum(-1).mean()
            return F.kl_div(log_p, q.exp(), reduction="batchmean")  # DEFECT

    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.distill = nn.Linear(6, 5), Distill()

        def forward(self, x: Tensor, teacher: Tensor) -> Tensor:
            return self.distill(self.net(x), teacher)

    torch.manual_seed(130)
    model = Student()
    batches = [(0.3 * torch.randn(4, 6), torch.randn(4, 5)) for _ in range(6)]
    batches = replaced(batches, 3, (20 * torch.randn(4, 6), batches[3][1]))
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-3), model, batches)
