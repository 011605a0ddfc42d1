"""The sweep files pass the schema of W&B, and the commands that `wandb agent` makes of them run."""

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import wandb.wandb_agent
import yaml
from fake_server import FakeServer
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from runs import files_with, wandb_cli

from nangrid.cell.config import CONF_DIR, Config
from nangrid.records.grid import GridDirectory

ROOT = CONF_DIR.parent
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))
SCHEMA = Path(__file__).parent / "sweep_schema.json"
"""From the package `sweeps` 0.3.0 (MIT), by which W&B's controller checks; it cannot be installed with numpy 2."""

PREFIX = ["/usr/bin/env", "python", "-m", "src.run"]


def load(path: Path) -> dict[str, Any]:
    sweep: dict[str, Any] = yaml.safe_load(path.read_text())
    return sweep


def values(parameter: dict[str, Any], draw: random.Random) -> list[Any]:
    """All that W&B can hand over; of a distribution its ends and some draws."""
    if "value" in parameter:
        return [parameter["value"]]
    if "values" in parameter:
        return list(parameter["values"])
    assert parameter["distribution"] == "log_uniform_values"
    low, high = parameter["min"], parameter["max"]
    return [low, high, *(low * (high / low) ** draw.random() for _ in range(5))]


def cells(sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """So many that each value of each parameter occurs."""
    columns = {key: values(parameter, random.Random(key)) for key, parameter in sweep["parameters"].items()}
    longest = max(map(len, columns.values()))
    return [{key: column[i % len(column)] for key, column in columns.items()} for i in range(longest)]


@pytest.fixture
def agent_command(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What W&B's agent would start for a cell of a sweep, by its own code."""
    started: list[list[str]] = []

    class Process:
        def __init__(self, command: list[str], **_: Any) -> None:
            started.append(command)

    monkeypatch.setattr(wandb.wandb_agent, "AgentProcess", Process)
    for variable in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(variable, "")  # the agent sets them for good

    def command(sweep: dict[str, Any], cell: dict[str, Any]) -> list[str]:
        agent = wandb.wandb_agent.Agent(api=None, queue=None)
        agent._sweep_command = list(sweep["command"])
        args = {key: {"value": value} for key, value in cell.items()}
        agent._command_run({"run_id": "run1", "program": sweep["program"], "args": args})
        return started[-1]

    return command


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_sweep_passes_wandb_validation(path: Path) -> None:
    jsonschema.Draft7Validator(json.loads(SCHEMA.read_text())).validate(load(path))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_sweep_header_has_its_two_commands(path: Path) -> None:
    assert path.read_text().splitlines()[:2] == [
        f"# wandb sweep sweeps/{path.name}",
        "# wandb agent ENTITY/nangrid/SWEEP_ID",
    ]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_command_of_an_agent_composes(path: Path, agent_command: Any) -> None:
    sweep = load(path)
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        for cell in cells(sweep):
            command = agent_command(sweep, cell)
            assert command[:4] == PREFIX
            config = OmegaConf.to_object(compose("config", command[4:]))
            assert isinstance(config, Config)
            for key, value in cell.items():
                node = OmegaConf.select(OmegaConf.structured(config), key)
                assert getattr(node, "name", node) == value if OmegaConf.is_config(node) else node == value


def test_the_grid_varies_the_five_factors_and_the_others_lr_eps_and_rank() -> None:
    varied = {
        path.stem: {key for key, parameter in load(path)["parameters"].items() if "value" not in parameter}
        for path in SWEEPS
    }
    assert varied == {
        "bayes": {"optim.lr", "optim.eps", "targets.rank"},
        "grid": {"dtype", "init", "checkpointing", "optim", "upcast"},
        "random": {"optim.lr", "optim.eps", "targets.rank"},
    }


def test_agent_runs_a_real_cell_in_its_run(
    tmp_path: Path, server: FakeServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.delenv("HOME")  # the tiny model's cache is the user's
    said = wandb_cli("sweep", "--entity", "me", "sweeps/grid.yaml", cwd=ROOT)
    assert "wandb agent me/nangrid/sweep1" in said
    assert server.sweep["parameters"]["checkpointing"]["values"] == ["on", "off"]

    cell = {"dtype": "fp16", "checkpointing": "off", "upcast": "none", "model": "tiny", "horizon": 1}
    args = {name: {"value": value} for name, value in {**cell, "out": str(tmp_path / "out")}.items()}
    server.queue = [
        {"type": "run", "run_id": "agents-own", "program": "src/run.py", "args": args},
        {"type": "exit"},
    ]
    said = wandb_cli("agent", "me/nangrid/sweep1", cwd=ROOT)

    grid = GridDirectory.open(tmp_path / "out")
    ((record,), _) = grid.records()
    assert record.factors["dtype"] == "fp16", said
    assert list(server.runs) == ["agents-own"]
    assert server.runs["agents-own"]["groupName"] == grid.grid_id
    assert server.runs["agents-own"]["sweep"] == "sweep1"
    assert server.summary["agents-own"]["steps_survived"] == record.steps_survived
    assert server.config("agents-own")["ledger"]["residual_stream"] == record.ledger["residual_stream"]
    assert server.exit_codes == {"agents-own": 0}
    assert files_with(tmp_path, key) == []
