"""The notebooks run as they are, and both halves of a pair say the same."""

from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

from tests.unit.experiments.finished_study import finished_study, with_config

NOTEBOOKS = sorted((Path(__file__).parents[3] / "experiments" / "notebooks").glob("*.ipynb"))


def cells(notebook):
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


def test_there_are_four_notebooks_and_each_has_its_script():
    assert [path.stem for path in NOTEBOOKS] == ["extend", "own_runs", "quickstart", "trade_offs"]
    assert all(path.with_suffix(".py").exists() for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_and_script_hold_the_same_cells(path):
    remedy = "run: jupytext --sync experiments/notebooks/*.ipynb"
    assert cells(nbformat.read(path, as_version=4)) == cells(jupytext.read(path.with_suffix(".py"))), remedy


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    nbformat.validate(notebook)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_shows_something(path, tmp_path):
    with_config(finished_study(tmp_path / "runs" / "quickstart"))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("text/html" in output.get("data", {}) for output in shown) >= 2
