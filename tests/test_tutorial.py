"""tutorial.ipynb runs from top to bottom, and its stored outputs can be read."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
ROOT = Path(__file__).parents[1]


def test_outputs_are_stored():
    book = nbformat.read(ROOT / "tutorial.ipynb", 4)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert sum("image/png" in str(cell.outputs) for cell in cells) >= 5
    assert not any("Traceback" in str(cell.outputs) for cell in cells)


@pytest.mark.slow
def test_every_cell_runs():
    book = nbformat.read(ROOT / "tutorial.ipynb", 4)
    settings = {"timeout": 900, "resources": {"metadata": {"path": str(ROOT)}}}
    nbclient.NotebookClient(book, **settings).execute()
    assert "named rightly" in str(book.cells)
