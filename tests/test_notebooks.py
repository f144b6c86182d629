"""The notebooks run from top to bottom, offline, on the demo slide."""

from __future__ import annotations

from pathlib import Path

import pytest

NOTEBOOKS = sorted(Path(__file__).parents[1].glob("notebooks/*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")  # Jupyter's own
def test_notebook_runs(path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    assert all(cell.get("execution_count") for cell in notebook.cells if cell.cell_type == "code")
    assert all("outputs" not in cell or not cell.outputs for cell in nbformat.read(path, as_version=4).cells), (
        "notebooks are kept without output"
    )


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS
