import os
import sysconfig
from pathlib import Path

import nbformat
import papermill
import pytest

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "first_look.ipynb"


def test_the_notebook_for_colab_finds_the_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # It would install the released package over this one.
    notebook.cells = [cell for cell in notebook.cells if "install" not in cell.metadata.get("tags", ())]
    monkeypatch.setenv("PATH", os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"])))
    nbformat.write(notebook, tmp_path / "notebook.ipynb")
    done = papermill.execute_notebook(
        tmp_path / "notebook.ipynb", None, cwd=str(tmp_path), kernel_name="python3", progress_bar=False
    )
    train, why, diagnose = ["".join(o.text for o in cell.outputs) for cell in done.cells if cell.get("outputs")][1:]
    assert "step 0: loss 0." in train and "origin: aten.mean.default (train.py:" in train
    assert "where: proven" in why and "leave such batches out" in why
    assert "sufficient: hard_only=true (3 of 3 seeds" in diagnose and "cure: hard_only=false (3 of 3" in diagnose
