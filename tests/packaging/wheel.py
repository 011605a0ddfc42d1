"""Checks an installed wheel by what a new user types first; `make dist` runs it in a fresh environment.

A plain script, because the environment holds the wheel with its `grid` extra and nothing of the checkout.
"""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nangrid

PACKAGE = Path(nangrid.__file__).parent
CELL = ["run", "model=tiny", "tracker=none", "horizon=2"]


def typed(*arguments: str, cwd: str) -> str:
    """Run `nangrid ARGUMENTS`, which must succeed, and return what it printed."""
    environment = os.environ | {"XDG_CACHE_HOME": f"{cwd}/cache", "HF_HUB_OFFLINE": "1"}
    script = Path(sys.executable).with_name("nangrid")
    done = subprocess.run(
        [script, *arguments], cwd=cwd, env=environment, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, f"nangrid {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}"
    return done.stdout


def main() -> None:
    """Check the files of the wheel, the help texts, a plan and a cell of two steps."""
    assert "site-packages" in str(PACKAGE), PACKAGE
    assert nangrid.Watch and nangrid.NonFiniteError
    assert (PACKAGE / "conf" / "config.yaml").is_file() and list((PACKAGE / "conf" / "experiment").glob("*.yaml"))
    assert list((PACKAGE / "notebooks").glob("*.py")) and (PACKAGE / "py.typed").is_file()
    assert (PACKAGE / "SKILL.md").is_file() and (PACKAGE / "records" / "output" / "schemas" / "why.json").is_file()

    with TemporaryDirectory() as folder:
        assert "diagnose" in typed("--help", cwd=folder)
        assert "horizon" in typed("run", "--help", cwd=folder)
        typed(*CELL, "dry_run=true", cwd=folder)
        assert not list(Path(folder).rglob("result.json"))
        typed(*CELL, cwd=folder)
        (result,) = Path(folder).rglob("result.json")
        assert "Nothing went wrong" in typed("why", str(result.parent), cwd=folder)
    print(f"wheel: {result.relative_to(folder)}")


if __name__ == "__main__":
    main()
