"""A healthy loop of two ranks, in whose third step rank 1 is killed."""

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nangrid import Watch

if __name__ == "__main__":
    dist.init_process_group("gloo")
    folder, rank = Path(sys.argv[1]), dist.get_rank()
    (folder / f"pid{rank}").write_text(str(os.getpid()))
    model = DistributedDataParallel(nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = Watch(model, optimizer, folder / "autopsy")
    for number, x in enumerate(watch.batches([torch.rand(2, 3)] * 10)):
        if (number, rank) == (2, 1):
            os.kill(os.getpid(), signal.SIGKILL)
        model(x).mean().backward()
        optimizer.step()
