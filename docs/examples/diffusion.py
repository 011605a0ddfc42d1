"""A loop of diffusers under the watch: noise and timesteps are drawn in its body, and the weights are averaged."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nangrid import Watch


def train(unet: nn.Module, loader, timesteps: int = 1000, lr: float = 1e-3) -> nn.Module:
    accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
    average = AveragedModel(unet, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    optimizer = torch.optim.AdamW(unet.parameters(), lr=lr)
    unet, optimizer, loader = accelerator.prepare(unet, optimizer, loader)
    # The last timestep is pure noise: its signal-to-noise ratio is 0.
    signal = torch.linspace(1.0, 0.0, timesteps)
    watch = Watch(unet, optimizer, out_dir="autopsy")
    for images in watch.batches(loader):
        with accelerator.accumulate(unet):
            noise = torch.randn_like(images)
            t = torch.randint(0, timesteps, (len(images),))
            s = signal[t].view(-1, 1, 1, 1)
            noisy = s.sqrt() * images + (1 - s).sqrt() * noise
            snr = s / (1 - s).clamp(min=1e-6)
            weight = snr.clamp(max=5.0) / snr  # min-SNR weighting: 0 / 0 at the last timestep
            loss = (weight * (unet(noisy, t) - noise).pow(2)).mean()
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if accelerator.sync_gradients:
                average.update_parameters(accelerator.unwrap_model(unet))
    return average
