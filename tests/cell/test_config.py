"""Everything in conf/ composes, and the keys of the command line stay what they are."""

import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from nangrid.cell.config import CONF_DIR, SCIENTIFIC, Config, factors

NOT_OVERRIDES = ("hydra", "hypotheses")
LEVELS = [path for path in sorted(CONF_DIR.rglob("*.yaml")) if path.relative_to(CONF_DIR).parts[0] not in NOT_OVERRIDES]

KEYS = [
    "seed",
    "horizon",
    "out",
    "resume",
    "dry_run",
    "threads",
    "processes",
    "headroom",
    "keep_every",
    "start_from",
    "python",
    "model.name",
    "model.source",
    "model.id",
    "model.attn",
    "model.compile",
    "model.layers",
    "quant.name",
    "quant.double",
    "dtype.name",
    "dtype.storage",
    "dtype.compute",
    "dtype.adapter",
    "dtype.autocast",
    "vocab.name",
    "vocab.size",
    "init.name",
    "init.std",
    "targets.name",
    "targets.modules",
    "targets.rank",
    "targets.alpha",
    "targets.dropout",
    "checkpointing.name",
    "optim.name",
    "optim.lr",
    "optim.eps",
    "optim.weight_decay",
    "optim.clip",
    "optim.warmup",
    "upcast.name",
    "data.name",
    "data.path",
    "data.split",
    "data.template",
    "data.bos",
    "data.length",
    "data.batch",
    "data.accumulation",
    "data.packing",
    "data.padding_side",
    "data.labels",
    "data.held_out",
    "data.eval_every",
    "tracker.name",
    "tracker.mode",
    "tracker.project",
    "tracker.entity",
]


def composed(overrides: list[str]) -> Config:
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = OmegaConf.to_object(compose("config", overrides))
    assert isinstance(config, Config)
    return config


def command(path: Path) -> list[str]:
    """The overrides of the command that heads a YAML; Hydra wants its own `@package` line before it."""
    lines = path.read_text().splitlines()
    head = next(line for line in lines if not line.startswith("# @package"))
    assert head.startswith("# python -m src.run"), f"{path} is not headed by its command"
    return shlex.split(head.removeprefix("# python -m src.run"))


@pytest.mark.parametrize("path", LEVELS, ids=lambda path: str(path.relative_to(CONF_DIR)))
def test_every_yaml_composes_with_the_command_in_its_header(path: Path) -> None:
    overrides = command(path)
    config = composed([override for override in overrides if override != "-m"])
    group = path.parent.name
    if group == "experiment":
        assert "-m" in overrides and f"+experiment={path.stem}" in overrides
    elif path.parent != CONF_DIR:
        assert getattr(config, group).name == path.stem
        assert any(override.startswith(f"{group}={path.stem}") for override in overrides)


@pytest.mark.parametrize("path", sorted(CONF_DIR.glob("hydra/*/*.yaml")), ids=lambda path: path.stem)
def test_plugin_yamls_have_a_grid_command_in_their_header(path: Path) -> None:
    assert "-m" in command(path)


def test_the_keys_of_the_command_line_are_frozen() -> None:
    """A key that changes breaks scripts and cell_ids: change this list only on purpose."""
    config = vars(composed([]))
    keys = [
        f"{key}.{name}" if name else key
        for key, value in config.items()
        for name in (vars(value) if hasattr(value, "__dict__") else [""])
    ]
    assert keys == KEYS


def test_the_defaults_are_the_reported_failing_run() -> None:
    defaults = factors(composed([]))
    assert {key: defaults[key] for key in SCIENTIFIC} == {
        "seed": 0,
        "processes": 1,
        "model": "gemma3-270m",
        "quant": "nf4",
        "dtype": "bf16",
        "vocab": "spm",
        "init": "zero",
        "targets": "qv_embed_head",
        "checkpointing": "on",
        "optim": "paged_adamw_8bit",
        "upcast": "none",
        "data": "pydoc",
    }
    assert (defaults["optim.lr"], defaults["optim.clip"]) == (2e-4, 1.0)
