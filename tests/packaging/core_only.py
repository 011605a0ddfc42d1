"""Checks that the core dependencies alone are enough for `Watch`; `make test-core` runs it in a fresh environment.

A plain script, because pytest and the other tests' dependencies are not installed there.
"""

import json
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import nangrid
from nangrid import NonFiniteError, Watch

ABSENT = ("accelerate", "bitsandbytes", "hydra", "matplotlib", "pandas", "peft", "transformers", "wandb")


def train_until_nan(out: Path) -> NonFiniteError:
    """Train a bare loop until its third batch, whose weights are all zero, divides 0 by 0."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    watch = Watch(model, optimizer, out_dir=out)

    def closure(weights: torch.Tensor) -> torch.Tensor:
        errors = model(torch.ones(2, 4)).square().flatten()
        loss = (errors * weights).sum() / weights.sum()
        loss.backward()
        return loss.detach()

    try:
        for step in range(4):
            watch.step(closure, torch.full((2,), float(step != 2)))
    except NonFiniteError as error:
        return error
    raise AssertionError("the NaN was not caught")


def command(name: str) -> subprocess.CompletedProcess[str]:
    """Run `nangrid NAME` as the installed script does."""
    return subprocess.run(
        [Path(sys.executable).with_name("nangrid"), name], capture_output=True, text=True, check=False
    )


def main() -> None:
    """Check the environment, a failing loop, and the messages that name the missing extra."""
    assert not [package for package in ABSENT if find_spec(package)], "this is not a core-only environment"
    assert "site-packages" in (nangrid.__file__ or ""), nangrid.__file__

    with TemporaryDirectory() as folder:
        error = train_until_nan(Path(folder))
        (written,) = Path(folder).rglob("autopsy.json")
        autopsy = json.loads(written.read_text())
    assert (autopsy["step"], autopsy["op"], autopsy["reproduced"]) == (2, "aten.div.Tensor", True), autopsy
    assert error.autopsy is not None and error.autopsy.op == autopsy["op"]

    for name in ("run", "report", "diagnose"):
        done = command(name)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done
        assert "pip install 'nangrid[grid" in done.stderr, done.stderr
    assert command("--help").returncode == 0

    try:
        import_module("nangrid.integrations").watch_trainer  # noqa: B018
    except ImportError as missing:
        assert "pip install 'nangrid[grid" in str(missing), missing
    else:
        raise AssertionError("watch_trainer needs no transformers")
    print(f"core only: {autopsy['op']} at step {autopsy['step']}, {autopsy['mechanism']}")


if __name__ == "__main__":
    main()
