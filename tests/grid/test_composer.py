"""Jobs assembled from parts are what Hydra composes."""

import random
from collections.abc import Iterator

import pytest
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.nangrid_launcher.composer import GROUPS, JobComposer
from nangrid.cell.config import CONF_DIR, Config
from nangrid.cell.levels import as_config
from nangrid.commands.help import levels
from nangrid.grid.plan import plain_config, task_overrides

FIELDS = [
    "optim.lr=1e-4",
    "optim.warmup=${seed}",
    "dtype.storage=fp32",
    "model.layers=2",
    "data.bos=false",
    "data.path='a b.jsonl'",
    "targets.modules=[q_proj,o_proj]",
    "out=${oc.env:HOME}/grid",
    "horizon=4",
    "start_from=null",
]
EXPERIMENTS = ["+experiment=smoke", "+experiment=covering"]
LEFT_TO_HYDRA = [
    ["+optim.betas=1"],
    ["++optim.lr=3"],
    ["~upcast"],
    ["optim.lr=1", "+optim={lr: 2}"],
    ["init={name: mean}"],
]


@pytest.fixture
def loader() -> Iterator[ConfigLoader]:
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


@pytest.fixture
def master(loader: ConfigLoader) -> DictConfig:
    return loader.load_configuration("config", ["hydra.launcher.n_jobs=2"], RunMode.MULTIRUN)


def jobs(number: int) -> list[list[str]]:
    draw = random.Random(0)
    chosen = []
    for seed in range(number):
        groups = draw.sample(GROUPS, draw.randint(0, 4))
        job = [f"{group}={draw.choice(levels()[group])}" for group in groups]
        job += draw.sample(FIELDS, draw.randint(0, 4)) + draw.sample(EXPERIMENTS, draw.randint(0, 1))
        draw.shuffle(job)
        chosen.append([*job, f"seed={seed}"])
    return chosen


def test_an_assembled_job_is_what_hydra_composes(loader: ConfigLoader, master: DictConfig) -> None:
    compose = JobComposer(loader, master)
    for job in [*jobs(15), *LEFT_TO_HYDRA]:
        whole = loader.load_sweep_config(master, job)
        config, overrides = compose(job)
        assert (config, overrides) == (plain_config(whole), task_overrides(whole.hydra)), job
        assert list(config) == list(plain_config(whole)), job


def test_each_level_is_composed_once(loader: ConfigLoader, master: DictConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    composed = []
    plain = type(loader).load_sweep_config

    def counting(self: ConfigLoader, master: DictConfig, overrides: list[str]) -> DictConfig:
        composed.append(overrides)
        return plain(self, master, overrides)

    monkeypatch.setattr(type(loader), "load_sweep_config", counting)
    compose = JobComposer(loader, master)
    seen = [compose([f"seed={seed}", f"init={init}"])[0] for seed in range(20) for init in ("zero", "mean")]
    assert composed == [[], ["init=zero"], ["init=mean"]]
    assert len({str(as_config(config)) for config in seen}) == 40


@pytest.mark.parametrize("overrides", [["hydra.searchpath=[file:///tmp]"], []])
def test_other_config_directories_are_left_to_hydra(overrides: list[str], loader: ConfigLoader) -> None:
    compose = JobComposer(loader, loader.load_configuration("config", overrides, RunMode.MULTIRUN))
    assert compose.reads_only_conf != bool(overrides)


def test_a_level_fills_its_own_group_and_nothing_else() -> None:
    """What assembling relies on."""
    for group in GROUPS:
        for path in (CONF_DIR / group).iterdir():
            assert path.suffix == ".yaml" and "@package" not in path.read_text()
            assert "defaults" not in OmegaConf.load(path)
    for path in [CONF_DIR / "config.yaml", *(CONF_DIR / "experiment").glob("*.yaml")]:
        assert "${" not in str(OmegaConf.to_container(OmegaConf.load(path)).get("defaults", "")), path
