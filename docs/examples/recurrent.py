"""A recurrent network that carries its hidden state over the batches, under the watch: one changed line."""

import torch
from torch import Tensor, nn

from nangrid import Watch


def train(cell: nn.GRUCell, head: nn.Linear, prices: list[Tensor], lr: float = 1e-2) -> None:
    optimizer = torch.optim.AdamW([*cell.parameters(), *head.parameters()], lr=lr)
    hidden = torch.zeros(len(prices[0]), cell.hidden_size)
    watch = Watch([cell, head], optimizer, out_dir="autopsy")
    for price in watch.batches(prices):
        # The logarithm of a price that is 0 is infinite.
        hidden = cell(price.log(), hidden)
        loss = head(hidden).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(cell.parameters(), 1.0)
        optimizer.step()
        hidden = hidden.detach()
