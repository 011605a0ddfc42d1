import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def default_grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed records of the default grid."""
    folder = tmp_path_factory.mktemp("records")
    with tarfile.open(ROOT / "docs" / "default" / "records.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "default"
