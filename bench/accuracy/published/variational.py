"""Rebuilds GRIST's bugs in variational autoencoders: exp of a log variance and its square root."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import Loop, case, origin
from loops import digits, mlp, train
from torch import Tensor, nn

LOG0 = origin("forward", "divide_by_zero", "log")


@case("ID_4", "exp(logvar)", (5, "loss"), origin("forward", "overflow", "exp"), mechanism="exp-overflow")
def vgae_kl() -> Loop:
    """A variational graph autoencoder's KL term: exp(logvar) of one hub node."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mu, self.logvar = nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, x: Tensor, adjacency: Tensor) -> tuple[Tensor, Tensor]:
            h = adjacency @ x
            return self.mu(h), self.logvar(h)

    torch.manual_seed(37)
    model = Encoder()

    def loss(x: Tensor, adjacency: Tensor) -> Tensor:
        mu, logvar = model(x, adjacency)
        z = mu + torch.randn_like(mu) * 0.1
        recon = F.binary_cross_entropy_with_logits(z @ z.t(), (adjacency > 0).float())
        kl = -0.5 * torch.mean(torch.sum(1 + logvar - mu.square() - logvar.exp(), dim=1))  # DEFECT
        return recon + kl / len(x)

    batches = []
    for _ in range(8):
        adjacency = (torch.rand(10, 10) < 0.3).float()
        x = torch.rand(10, 6)
        batches.append((x, adjacency))
    batches[5][1][4] = 600.0 * torch.ones(10)
    with torch.no_grad():
        model.logvar.weight.abs_()
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-3), loss, batches)


@case("ID_35a", "exp(logvar)", (4, "loss"), origin("forward", "overflow", "exp"), mechanism="exp-overflow")
def vae_latent_variance() -> Loop:
    """A VAE with softplus layers: exp of the encoder's log variance, shared by sampling and KL. A bright batch."""

    class VAE(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(64, 24), nn.Softplus())
            self.mean, self.log_sigma_sq = nn.Linear(24, 3), nn.Linear(24, 3)
            self.decoder = nn.Sequential(nn.Linear(3, 24), nn.Softplus(), nn.Linear(24, 64))

    torch.manual_seed(38)
    vae = VAE()
    with torch.no_grad():
        vae.encoder[0].weight.abs_()
        vae.log_sigma_sq.weight.abs_()

    def cost(x: Tensor) -> Tensor:
        h = vae.encoder(x)
        z_mean, z_log_sigma_sq = vae.mean(h), vae.log_sigma_sq(h) - 4
        variance = torch.exp(z_log_sigma_sq)  # DEFECT
        z = z_mean + torch.sqrt(variance + 1e-8) * torch.randn_like(z_mean)
        reconstruction = F.binary_cross_entropy_with_logits(vae.decoder(z), x.clamp(0, 1), reduction="none").sum(1)
        latent = -0.5 * torch.sum(1 + z_log_sigma_sq - z_mean.square() - variance, dim=1)
        return torch.mean(reconstruction + latent)

    batches = [(digits(12, seed)[0],) for seed in range(7)]
    batches[4] = (batches[4][0] * 255,)
    return train(vae, torch.optim.Adam(vae.parameters(), lr=1e-3), cost, batches)


@case(
    "ID_35b",
    "sqrt(exp(logvar))",
    (5, "gradient"),
    origin("backward", "divide_by_zero", "div", node="SqrtBackward*"),
    mechanism="derivative-at-pole",
)
def vae_sqrt_of_vanished_variance() -> Loop:
    """The standard deviation as sqrt(exp(.)): exp of -150 is 0, its root is 0, and the slope of the root is 1 / 0."""

    class VAE(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.mean, self.log_sigma_sq = nn.Linear(64, 16), nn.Linear(16, 3), nn.Linear(16, 3)
            self.decoder = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 64))

    torch.manual_seed(39)
    vae = VAE()
    with torch.no_grad():
        vae.encoder.weight.abs_()
        vae.log_sigma_sq.weight.copy_(-vae.log_sigma_sq.weight.abs())

    def cost(x: Tensor) -> Tensor:
        h = F.softplus(vae.encoder(x))
        z_mean, z_log_sigma_sq = vae.mean(h) * 0.01, vae.log_sigma_sq(h)
        z = z_mean + torch.sqrt(torch.exp(z_log_sigma_sq)) * torch.randn_like(z_mean)  # DEFECT
        return F.mse_loss(vae.decoder(z), x)

    batches = [(digits(12, seed)[0],) for seed in range(8)]
    batches[5] = (batches[5][0] * 255,)
    return train(vae, torch.optim.Adam(vae.parameters(), lr=1e-3), cost, batches)


@case(
    "ID_36a",
    "exp(logvar)",
    (3, "loss"),
    origin("forward", "overflow", "exp", "latent"),
    mechanism="divergence exp-overflow",
)
def vae_diverges_in_its_latent_module() -> Loop:
    """Gradient descent with a learning rate of 1.2 on a summed loss: after three steps log variances of hundreds.
    Sampling is clipped, the KL term, in a module of its own, is not: both the exponential and the rate are to blame.
    """

    class Latent(nn.Module):
        def forward(self, mean: Tensor, log_sigma_sq: Tensor) -> Tensor:
            return -0.5 * torch.sum(1 + log_sigma_sq - mean.square() - torch.exp(log_sigma_sq))  # DEFECT

    class VAE(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.mean, self.log_sigma_sq = nn.Linear(64, 16), nn.Linear(16, 2), nn.Linear(16, 2)
            self.decoder, self.latent = nn.Linear(2, 64), Latent()

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.encoder(x))
            mean, log_sigma_sq = torch.tanh(self.mean(h)), self.log_sigma_sq(h)
            z = mean + torch.exp(0.5 * log_sigma_sq.clamp(-20, 20)) * torch.randn_like(mean)
            return F.mse_loss(torch.sigmoid(self.decoder(z)), x, reduction="sum") + self.latent(mean, log_sigma_sq)

    torch.manual_seed(40)
    vae = VAE()
    return train(vae, torch.optim.SGD(vae.parameters(), lr=1.2), vae, [(digits(12, seed)[0],) for seed in range(4)])


@case(
    "ID_36b, ID_39b",
    "sqrt(exp(logvar))",
    (6, "gradient"),
    origin("backward", "divide_by_zero", "div", "sample", node="SqrtBackward*"),
    mechanism="derivative-at-pole",
)
def conv_vae_sqrt() -> Loop:
    """A convolutional VAE; sampling is a module. One image is a negative with a wrong scale."""

    class Sample(nn.Module):
        def forward(self, mean: Tensor, log_sigma_sq: Tensor) -> Tensor:
            noise = torch.randn_like(mean)
            return mean + noise * torch.sqrt(torch.exp(log_sigma_sq))  # DEFECT

    class ConvVAE(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.moments = nn.Conv2d(1, 4, 3, stride=2), nn.Linear(36, 6)
            self.sample, self.decoder = Sample(), nn.ConvTranspose2d(3, 1, 8)

        def forward(self, x: Tensor) -> Tensor:
            mean, log_sigma_sq = self.moments(F.elu(self.encoder(x)).flatten(1)).chunk(2, dim=1)
            z = self.sample(torch.tanh(mean), log_sigma_sq)
            return F.mse_loss(self.decoder(z.view(-1, 3, 1, 1)), x.clamp(0, 1))

    torch.manual_seed(41)
    vae = ConvVAE()
    batches = [(digits(6, seed)[0].view(-1, 1, 8, 8),) for seed in range(9)]
    batches[6][0][2] *= 60000.0
    with torch.no_grad():
        vae.encoder.weight.abs_()
        vae.moments.weight[3:].abs_().neg_()
    return train(vae, torch.optim.Adam(vae.parameters(), lr=1e-3), vae, batches)


@case("ID_39a", "exp(logvar)", (5, "loss"), origin("forward", "overflow", "exp"), mechanism="exp-overflow")
def beta_vae_free_bits() -> Loop:
    """A VAE whose KL is bounded from below (free bits): the bound hides nothing of exp's infinity above it."""
    torch.manual_seed(42)
    vae = nn.ModuleDict({"body": nn.Linear(36, 20), "moments": nn.Linear(20, 8), "decoder": mlp(4, 20, 36)})
    with torch.no_grad():
        vae["moments"].weight[4:].abs_()
        vae["body"].weight.abs_()

    def cost(x: Tensor) -> Tensor:
        mean, log_sigma_sq = vae["moments"](F.relu(vae["body"](x))).chunk(2, dim=-1)
        z = mean + torch.exp(0.5 * log_sigma_sq.clamp(max=10)) * torch.randn_like(mean)
        kl = 0.5 * (mean.square() + log_sigma_sq.exp() - 1 - log_sigma_sq)  # DEFECT
        return F.mse_loss(vae["decoder"](z), x) + kl.mean(0).clamp(min=0.1).sum() * 1e-3

    batches = [(digits(10, seed, pixels=36)[0],) for seed in range(8)]
    batches[5][0][7] = 900.0
    return train(vae, torch.optim.AdamW(vae.parameters(), lr=1e-3), cost, batches)


@case(
    "ID_43a, ID_49a",
    "exp(logvar)",
    (4, "loss"),
    origin("forward", "overflow", "exp", "prior"),
    mechanism="exp-overflow",
)
def conditional_vae_prior() -> Loop:
    """A conditional VAE: the prior's log variance depends on the label; the KL divides by exp of it, written as exp of
    its negative. A label that comes as a number, not as one-hot, drives it far below 0.
    """

    class Prior(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_variance = nn.Linear(5, 2)

        def forward(self, y: Tensor, mean: Tensor, log_sigma_sq: Tensor) -> Tensor:
            prior = self.log_variance(y)
            precision = torch.exp(-prior)  # DEFECT
            ratio = log_sigma_sq.clamp(-9, 9).exp() * precision
            return 0.5 * (ratio + mean.square() * precision - 1 + prior - log_sigma_sq).sum(1).mean()

    class CVAE(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.prior, self.decoder = nn.Linear(36 + 5, 4), Prior(), nn.Linear(2 + 5, 36)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            mean, log_sigma_sq = torch.tanh(self.encoder(torch.cat([x, y.clamp(0, 1)], 1))).chunk(2, 1)
            z = mean + torch.exp(0.5 * log_sigma_sq) * torch.randn_like(mean)
            return F.mse_loss(self.decoder(torch.cat([z, y.clamp(0, 1)], 1)), x) + self.prior(y, mean, log_sigma_sq)

    torch.manual_seed(43)
    model = CVAE()
    with torch.no_grad():
        model.prior.log_variance.weight.abs_().neg_()
    batches = []
    for seed in range(7):
        x, y = digits(10, seed, pixels=36, classes=5)
        batches.append((x, F.one_hot(y, 5).float()))
    batches[4][1][6] = torch.tensor([0, 0, 40000.0, 0, 0])
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-3), model, batches)


@case(
    "ID_43b, ID_49b",
    "sqrt(exp(logvar))",
    (3, "gradient"),
    origin("backward", "divide_by_zero", "div", "cell", node="SqrtBackward*"),
    mechanism="derivative-at-pole",
)
def recurrent_vae_sqrt() -> Loop:
    """A recurrent VAE that samples at every time step, by one cell: the variance vanishes at the last step only."""

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.moments = nn.GRUCell(4, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor, h: Tensor, sharpness: Tensor) -> tuple[Tensor, Tensor]:
            h = self.gru(x, h)
            mean, log_sigma_sq = self.moments(h).chunk(2, dim=1)
            sigma = (log_sigma_sq - sharpness).exp().sqrt()  # DEFECT
            return mean + sigma * torch.randn_like(mean), h

    class RecurrentVAE(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.decoder = Cell(), nn.Linear(2, 4)

        def forward(self, x: Tensor, sharpness: Tensor) -> Tensor:
            h = torch.zeros(len(x), 8)
            loss = torch.zeros(())
            for t in range(x.shape[1]):
                z, h = self.cell(x[:, t], h, sharpness[:, t : t + 1])
                loss = loss + F.mse_loss(self.decoder(z), x[:, t])
            return loss

    torch.manual_seed(44)
    model = RecurrentVAE()
    batches = [(torch.randn(6, 5, 4), torch.rand(6, 5)) for _ in range(6)]
    batches[3][1][:, 4] = 400.0
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-2), model, batches)
