import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bare_loop import train
from torch import Tensor, nn

from nangrid import NonFiniteError
from nangrid.records import atomic
from nangrid.records.autopsy import read_autopsy
from nangrid.records.start_from import find_start, kept_in

HEALTHY = [torch.ones(2, 4)] * 4
FAILING = [*HEALTHY, torch.full((2, 4), torch.inf)]


def steps(out_dir: Path) -> list[int]:
    return [int(folder.name) for folder in kept_in(out_dir)]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Writing a file whose name contains this text finds the disk full."""

    def full(name: str) -> None:
        original = atomic._write_temporary

        def write(path: Path, content: bytes) -> Path:
            if name in path.name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(path, content)

        monkeypatch.setattr(atomic, "_write_temporary", write)

    return full


@pytest.mark.parametrize("file", ["snapshot.safetensors", "snapshot.json"])
def test_a_full_disk_ends_no_healthy_run(
    file: str, full_disk: Callable[[str], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full_disk(file)
    assert len(train(nn.Linear(4, 1), HEALTHY, tmp_path, keep_every=1)) == len(HEALTHY)
    (warning,) = caplog.messages
    assert warning.startswith("the snapshot of step 0 could not be written to")
    assert "No space left on device" in warning and steps(tmp_path) == []


@pytest.mark.parametrize("file", ["autopsy.json", "snapshot.safetensors", "snapshot.json"])
def test_an_onset_on_a_full_disk_is_reported_with_its_autopsy(
    file: str, full_disk: Callable[[str], None], tmp_path: Path
) -> None:
    full_disk(file)
    with pytest.raises(NonFiniteError, match=r"step 4\norigin: (.|\n)*cannot be written \(No space left") as raised:
        train(nn.Linear(4, 1), FAILING, tmp_path)
    assert raised.value.autopsy is not None and raised.value.autopsy.step == 4


def test_an_onset_where_nothing_can_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NonFiniteError, match=r"cannot be written \(Not a directory") as raised:
        train(nn.Linear(4, 1), FAILING, tmp_path / "file" / "autopsy", keep_every=1)
    assert raised.value.autopsy is not None


def test_a_closure_that_raises_oserror_in_the_replay_hides_no_onset(tmp_path: Path) -> None:
    calls: list[int] = []

    def loss_of(out: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise FileNotFoundError("batch.npy")
        return out.sum() / 0

    with pytest.raises(NonFiniteError, match="step 0 could not be replayed: FileNotFoundError"):
        train(nn.Linear(4, 1), HEALTHY, tmp_path, loss_of)


def test_a_second_run_in_the_same_directory_keeps_its_own_snapshots(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(nn.Linear(4, 1), HEALTHY * 5, tmp_path, keep_every=1)
    assert steps(tmp_path) == [18, 19]
    train(nn.Linear(4, 1), HEALTHY, tmp_path, keep_every=1)
    assert steps(tmp_path) == [2, 3] and find_start(str(tmp_path)).step == 3
    assert steps(tmp_path / "earlier" / "0") == [18, 19]
    assert [m for m in caplog.messages if "held the records of an earlier run" in m and "earlier/0" in m]


def test_a_second_run_that_fails_leaves_nothing_of_the_first_to_resume(tmp_path: Path) -> None:
    train(nn.Linear(4, 1), HEALTHY * 5, tmp_path, keep_every=1)
    for _ in range(2):
        with pytest.raises(NonFiniteError):
            train(nn.Linear(4, 1), FAILING, tmp_path)
    assert find_start(str(tmp_path)).step == 4
    assert {path.name for path in (tmp_path / "earlier").iterdir()} == {"0", "1"}
    first: Any = read_autopsy(tmp_path / "earlier" / "1")
    assert first.step == 4


def test_a_snapshot_cut_off_by_a_kill_is_not_resumed(tmp_path: Path) -> None:
    train(nn.Linear(4, 1), HEALTHY, tmp_path, keep_every=1)
    (tmp_path / "kept" / "3" / "snapshot.json").unlink()
    assert find_start(str(tmp_path)).step == 2
