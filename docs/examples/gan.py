"""A GAN under the watch: two models, two optimizers, one changed line in the loop."""

import torch
from torch import nn

from nangrid import Watch


def train(generator: nn.Module, discriminator: nn.Module, loader, latent: int = 2, lr: float = 1e-3) -> None:
    opt_g = torch.optim.Adam(generator.parameters(), lr=lr)
    opt_d = torch.optim.Adam(discriminator.parameters(), lr=lr)
    watch = Watch([generator, discriminator], [opt_g, opt_d], out_dir="autopsy")
    for real in watch.batches(loader):
        fake = generator(torch.randn(len(real), latent))
        opt_d.zero_grad()
        loss_d = -(torch.log(discriminator(real)) + torch.log(1 - discriminator(fake.detach()))).mean()
        loss_d.backward()
        opt_d.step()
        opt_g.zero_grad()
        loss_g = -torch.log(discriminator(fake)).mean()
        loss_g.backward()
        opt_g.step()
