"""A Trainer of Lightning under the watch: one changed line."""

import lightning
import torch
from torch import Tensor, nn

from nangrid.integrations import LightningWatch


class Standardised(lightning.LightningModule):
    """A regression on inputs that are standardised over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.1), nn.Tanh(), nn.Linear(8, 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        # Where all of the batch have the same value, this divides 0 by 0.
        x = (x - x.mean(dim=0)) / x.std(dim=0)
        loss = nn.functional.mse_loss(self.net(x).squeeze(1), y)
        self.log("loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def train(loader, **options) -> None:
    watch = LightningWatch(out_dir="autopsy")
    trainer = lightning.Trainer(max_epochs=1, gradient_clip_val=1.0, callbacks=[watch], **options)
    trainer.fit(Standardised(), loader)
