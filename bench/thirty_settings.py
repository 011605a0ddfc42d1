"""Thirty settings differ between a failing and a training script; one of them is guilty, and one pair. How many runs?

python bench/thirty_settings.py

Every run is a real one: a small classifier in a plain loop with a Watch, in a process of its own. `eps=0` divides 0 by
0 for an empty text at step 7; so does `smooth=0`, where `ignore=all` ignores every label of that batch.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

import nangrid

HARMLESS = [f"scale_{number}" for number in range(27)]
FAILING: dict[str, Any] = {"eps": 0.0, "smooth": 0.0, "ignore": "all"} | dict.fromkeys(HARMLESS, 0.011)
REFERENCE: dict[str, Any] = {"eps": 1e-6, "smooth": 1e-6, "ignore": "none"} | dict.fromkeys(HARMLESS, 0.01)
RESULT = Path(__file__).parent / "results" / "thirty_settings.md"


class Pooled(nn.Module):
    """The mean of a text's words, and a linear layer."""

    def __init__(self, levels: dict[str, Any]) -> None:
        super().__init__()
        self.embed, self.head, self.levels = nn.Embedding(50, 8), nn.Linear(8, 2), levels

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The logits of each text."""
        words = self.embed(ids) * mask[..., None]
        return self.head(words.sum(1) / (mask.sum(1, keepdim=True) + self.levels["eps"]))


def train(levels: dict[str, Any]) -> None:
    """Train until the run's horizon; the settings that are harmless move the learning rate a little."""
    torch.manual_seed(3)
    model = Pooled(levels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=sum(levels[name] for name in HARMLESS) / 300)
    watch = nangrid.Watch(model, optimizer)

    def closure(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        losses = nn.functional.cross_entropy(model(batch["ids"], batch["mask"]), batch["y"], reduction="none")
        loss = (losses * batch["counts"]).sum() / (batch["counts"].sum() + levels["smooth"])
        loss.backward()
        return loss

    for step in range(10**6):
        words, counts = torch.randint(1, 9, (16,)), torch.ones(16)
        if step == 7:
            words[3] = 0  # an empty text
            counts *= levels["ignore"] == "none"
        mask = (torch.arange(8)[None] < words[:, None]).float()
        ids, y = torch.randint(0, 50, (16, 8)), torch.randint(0, 2, (16,))
        watch.step(closure, {"ids": ids, "mask": mask, "y": y, "counts": counts})


def main() -> None:
    """Diagnose, and keep what was found."""
    with tempfile.TemporaryDirectory() as out:
        found = nangrid.diagnose(train, failing=FAILING, reference=REFERENCE, out=out, n_jobs=2)
    keys = list(FAILING)
    causes = [" ".join(sorted(keys[i] for i in cause)) for cause in found.causes.causes]
    cures = [" ".join(sorted(keys[i] for i in cure)) for cure in found.cures.cures]
    RESULT.write_text(
        "`python bench/thirty_settings.py`: 30 settings differ; the truth is eps alone, and smooth with ignore.\n\n"
        "| runs | combinations | causes found | cures found |\n"
        "| ---: | ---: | --- | --- |\n"
        f"| {found.runs} | {found.cells} | {'; '.join(causes)} | {'; '.join(cures)} |\n"
    )
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
