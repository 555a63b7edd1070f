"""Every notebook runs, in quick sizes, and asserts what it claims; its two forms are one, without output."""

import ast
import os
import re
from pathlib import Path

import jupytext
import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
TEXTS = sorted(FOLDER.glob("*.py"))
#: A cell may take so many.
SECONDS = 300


def test_they_are_there_in_both_forms():
    """Without a notebook the tests below would be skipped, in silence."""
    assert {"00_start", "01_jacobian_error", "02_memory"} <= {path.stem for path in TEXTS}
    assert [path.stem for path in TEXTS] == sorted(path.stem for path in FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_runs_in_quick_sizes(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BILEVEL_QUICK", "1")
    # The kernel is a process of its own: it is to import this library, and to draw as a reader's does.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = jupytext.read(path)
    nbclient.NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(FOLDER)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    # A progress bar is all that belongs there.
    said = [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    assert [text for text in said if "Warning" in text] == []


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_text_and_notebook_are_one(path: Path):
    """`make pair` writes notebooks anew from their text."""
    notebook = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    text = jupytext.read(path)
    cells = lambda of: [(cell.cell_type, cell.source) for cell in of.cells]
    assert cells(notebook) == cells(text)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_opens_with_a_question_and_ends_with_what_it_asserts(path: Path):
    notebook = jupytext.read(path)
    first, *_ = notebook.cells
    assert first.cell_type == "markdown" and "?" in first.source and "$" in first.source
    opening, *_, last = (cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert "BILEVEL_QUICK" in opening
    asserted = [node.test for node in ast.walk(ast.parse(last)) if isinstance(node, ast.Assert)]
    assert asserted and not any(isinstance(test, ast.Constant) for test in asserted)


def test_what_they_found_in_full_is_on_a_page():
    """`make notebooks` writes it when all of them ran."""
    _, *sections = (ROOT / "docs" / "notebooks" / "found.md").read_text().split("\n## ")
    assert [re.search(r"/(\w+)\.ipynb\)", section)[1] for section in sections] == [path.stem for path in TEXTS]
    assert all("```" in section for section in sections) and "full sizes" in sections[-1]
