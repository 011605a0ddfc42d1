"""nangrid.diagnose between two environments: what fails is the version of a package."""

import subprocess
import sys
from pathlib import Path

from environments import make_environment

from nangrid.records.grid import GridDirectory

SCRIPT = """
import torch
from torch import nn
import nangrid

def train(levels):
    from scaling import scale  # as installed in the Python that runs the cell
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=levels["lr"])
    watch = nangrid.Watch(model, optimizer)
    for inputs in watch.batches(list(torch.zeros(3, 4, 3))):
        optimizer.zero_grad()
        model(scale(inputs)).square().mean().backward()
        optimizer.step()

if __name__ == "__main__":
    import sys
    nangrid.diagnose(train, failing={"python": sys.argv[1], "lr": 0.2}, reference={"python": sys.argv[2], "lr": 0.1},
        horizon=2, seeds=1, n_jobs=1, out="out")
"""


def test_a_package_version_is_the_cause(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SCRIPT)
    new = make_environment(tmp_path / "new", scaling=("2.0", "def scale(x): return x / x.std()"))
    old = make_environment(tmp_path / "old", scaling=("1.9", "def scale(x): return x / (x.std() + 1e-6)"))
    command = [sys.executable, "mine.py", new, old]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert f"sufficient: python={new} (" in done.stdout and f"cure: python={old} (" in done.stdout, done.stderr
    assert "of the failing run and of the reference, differ in scaling 2.0 and 1.9\n" in done.stdout
    records, _ = GridDirectory.open(tmp_path / "out").records()
    assert {r.factors["python"]: r.status for r in records} == {new: "nonfinite", old: "finite"}
