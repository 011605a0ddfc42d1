import logging
import os
import signal
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nangrid.records.cell import CLOCKS, CellRecord, Seconds, Trains, earliest_onset

# As in every cell's process: else MKL's float32 products differ in the last bit with where memory happens to lie.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


@pytest.fixture(autouse=True)
def loggers_speak() -> None:
    """Undo what Hydra's job_logging=disabled, and libraries that quieten their logs, left behind in earlier tests."""
    logging.disable(logging.NOTSET)
    for logger in logging.Logger.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.disabled = False
            if logger.name.partition(".")[0] == "nangrid":
                logger.setLevel(logging.NOTSET)
                logger.propagate = True
    logging.getLogger().setLevel(logging.WARNING)


@pytest.fixture
def heeded_signals() -> Iterator[None]:
    """Under nohup, or in the background of a script, pytest is started with signals ignored, and hands that on."""
    defaults = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    ignored = [number for number in defaults if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, defaults[number])
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="module")
def default_grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed records of the default grid."""
    folder = tmp_path_factory.mktemp("records")
    with tarfile.open(Path(__file__).parents[1] / "docs" / "default" / "records.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "default"


@pytest.fixture(scope="session")
def make_record() -> Callable[..., CellRecord]:
    """A finite cell of 16 steps, but for what is passed; `rung` are the clocks that rang."""

    def make(rung: dict[str, int] | None = None, **changes: Any) -> CellRecord:
        clocks: dict[str, int | None] = dict.fromkeys(CLOCKS) | (rung or {})
        onset = earliest_onset(clocks)
        fields: dict[str, Any] = {
            "cell_id": "0123456789ab",
            "grid_id": "grid-00000000",
            "overrides": ["dtype=bf16"],
            "factors": {"seed": 0, "dtype": "bf16", "dtype.storage": "bf16", "init": "zero"},
            "status": "finite" if onset is None else "nonfinite",
            "horizon": 16,
            "steps_done": 16 if onset is None else onset.step + 1,
            "censored": onset is None,
            "onset": onset,
            "clocks": clocks,
            "trains": Trains(None, [], 1e-3, 3.96, 3.41),
            "ledger": {"residual_stream": "bf16", "warnings": []},
            "environment": {"torch": "2.13.0"},
            "autopsy": None,
            "snapshot": None,
            "seconds": Seconds(4.0, 20.0, 0.0),
            "peak_rss_bytes": 2**31,
            "error": None,
        }
        return CellRecord(**fields | changes)

    return make
