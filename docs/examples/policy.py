"""A policy gradient whose actions are sampled in the loop, under the watch: one changed line."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nangrid import Watch


def train(policy: nn.Module, observations: list[Tensor], reward_of: Callable[[Tensor], Tensor]) -> None:
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    watch = Watch(policy, optimizer, out_dir="autopsy")
    for observation in watch.batches(observations):
        actions = torch.distributions.Categorical(logits=policy(observation))
        action = actions.sample()
        reward = reward_of(action)
        # Where all rewards are equal, this divides 0 by 0.
        advantage = (reward - reward.mean()) / reward.std()
        loss = -(actions.log_prob(action) * advantage).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
