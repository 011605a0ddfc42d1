"""A loop of Accelerate with accumulation under the watch: one changed line."""

import torch
from accelerate import Accelerator
from torch import nn

from nangrid import Watch


def train(model: nn.Module, loader, accumulate: int = 2, lr: float = 1e-3) -> None:
    accelerator = Accelerator(gradient_accumulation_steps=accumulate, cpu=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    watch = Watch(model, optimizer, out_dir="autopsy")
    for noisy, noise, snr in watch.batches(loader):
        with accelerator.accumulate(model):
            # The weighted loss of a diffusion model: where the weight is 1 / 0, the loss is not a number.
            loss = ((model(noisy) - noise).pow(2).mean(dim=1) / snr).mean()
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
