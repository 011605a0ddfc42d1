"""A loop whose rank 1 is killed: in the middle of its training, or while both ranks look for the failure."""

import os
import signal
import sys
import time
from itertools import count
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from two_ranks import note

from nangrid import NonFiniteError, Watch

calls = count(1)
"""Nothing that a replay puts back."""


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        if next(calls) == (3 if training else 2) and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        out: Tensor = self.linear(x)
        return out


if __name__ == "__main__":
    dist.init_process_group("gloo")
    folder = Path(sys.argv[1])
    training = "training" in sys.argv
    (folder / f"pid{dist.get_rank()}").write_text(str(os.getpid()))
    model = DistributedDataParallel(Model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = Watch(model, optimizer, folder / "autopsy")
    data = [torch.rand(2, 3) if training else torch.full((2, 3), torch.inf)] * 10
    began = time.monotonic()
    try:
        for x in watch.batches(data):
            model(x).mean().backward()
            optimizer.step()
    except NonFiniteError as error:
        note({"message": str(error), "seconds": time.monotonic() - began, "evidence": error.autopsy.evidence})
