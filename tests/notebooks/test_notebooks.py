"""Every notebook runs, in quick sizes, and asserts what it claims; its two forms are one, without output."""

from pathlib import Path

import jupytext
import nbclient
import nbformat
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
TEXTS = sorted(FOLDER.glob("*.py"))
SECONDS = 600


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_runs_in_quick_sizes(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BILEVEL_QUICK", "1")
    notebook = jupytext.read(path)
    nbclient.NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(FOLDER)}}).execute()
    kinds = {kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})}
    assert "image/png" in kinds


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_text_and_notebook_are_one(path: Path):
    """`make pair` writes notebooks anew from their text."""
    notebook = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    text = jupytext.read(path)
    cells = lambda of: [(cell.cell_type, cell.source) for cell in of.cells]
    assert cells(notebook) == cells(text)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_opens_with_a_question_and_asserts_at_its_end(path: Path):
    first, *others = jupytext.read(path).cells
    assert first.cell_type == "markdown" and "?" in first.source and "$" in first.source
    assert any("assert" in cell.source for cell in others[-4:] if cell.cell_type == "code")
