"""nangrid.diagnose on a function that trains on several ranks: what fails on two of them alone is their number."""

import subprocess
import sys
from pathlib import Path

from nangrid.records.autopsy import read_autopsy
from nangrid.records.grid import GridDirectory

SCRIPT = """
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
import nangrid

def train(levels):
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=levels["lr"])
    watch = nangrid.Watch(model, optimizer)
    inputs, labels = torch.rand(6, 4, 3), torch.zeros(6, 4, dtype=torch.long)
    labels[1, 2:] = -100  # two long samples were cut: half a batch without labels
    share = 4 // dist.get_world_size()
    own = slice(share * dist.get_rank(), share * (dist.get_rank() + 1))
    data = [(x[own], y[own]) for x, y in zip(inputs, labels)]
    for x, y in watch.batches(data):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

if __name__ == "__main__":
    diagnosis = nangrid.diagnose(train, failing={"processes": 2, "lr": 0.2}, reference={"processes": 1, "lr": 0.1},
        horizon=3, seeds=1, n_jobs=1, out="out")
"""


def test_two_processes_are_the_cause(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "sufficient: processes=2 (" in done.stdout and "cure: processes=1 (" in done.stdout, done.stderr
    grid = GridDirectory.open(tmp_path / "out")
    records, errors = grid.records()
    failing = [record for record in records if record.status == "nonfinite"]
    assert errors == [] and {record.factors["processes"] for record in failing} == {2}
    for record in failing:
        cell = tmp_path / "out" / "cells" / record.cell_id
        autopsy = read_autopsy(cell)
        assert autopsy is not None and (autopsy.rank, autopsy.step, autopsy.mechanism) == (1, 1, "empty-labels")
        assert record.autopsy == "autopsy.json" and record.snapshot is not None and (cell / record.snapshot).exists()
