"""Notebooks as pages. As a program, runs those that are named in full, or else in quick sizes what has not run."""

import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

import jupytext
import nbclient
import nbformat
from nbconvert import MarkdownExporter
from nbformat import NotebookNode
from tqdm import tqdm

from benchmarks.results import environment

ROOT = Path(__file__).parents[2]
TEXTS = sorted((ROOT / "notebooks").glob("*.py"))
#: Where `make notebooks` and this program leave what they ran.
FULL, QUICK = ROOT / "out" / "notebooks", ROOT / "out" / "notebooks" / "quick"

WORDS = {
    FULL: "Executed in full sizes.",
    QUICK: "Executed in quick sizes: smaller problems, fewer repeats. `make notebooks` runs it in full.",
    None: "Not executed yet: `make notebooks` runs it.",
}


class Page(NamedTuple):
    """A page in Markdown, and its figures by their names."""

    markdown: str
    figures: dict[str, bytes]


def title(text: Path) -> str:
    """The heading with which a notebook begins."""
    return jupytext.read(text).cells[0].source.split("\n")[0].strip("# ")


def latest(text: Path) -> tuple[NotebookNode, Path | None]:
    """The notebook as it ran, in full where there is one, and in which folder; else as it is written."""
    written = jupytext.read(text)
    cells = lambda notebook: [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]
    for folder in (FULL, QUICK):
        path = folder / f"{text.stem}.ipynb"
        if path.exists() and cells(ran := nbformat.read(path, as_version=4)) == cells(written):
            return ran, folder
    # The kernel would say so.
    written.metadata["language_info"] = {"name": "python"}
    return written, None


def as_page(text: Path) -> Page:
    """The page of a notebook."""
    notebook, folder = latest(text)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = _for_readers(cell.outputs)
    resources = {"unique_key": text.stem, "output_files_dir": text.stem}
    body, resources = MarkdownExporter().from_notebook_node(notebook, resources)
    note = f'!!! note "`notebooks/{text.name}`"\n    {WORDS[folder]}'
    # A formula by itself is a paragraph by itself, which Jupyter does not ask for.
    body = re.sub(r"\n*(\$\$.+?\$\$)\n*", r"\n\n\1\n\n", body, flags=re.DOTALL)
    heading, rest = body.lstrip().split("\n", 1)
    return Page(f"{heading}\n\n{note}\n\n{_described(rest, heading)}", resources["outputs"])


def _for_readers(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Without progress bars and what compilers and kernels say of themselves; what is printed in one piece."""
    kept: list[NotebookNode] = []
    for output in outputs:
        printed = output.get("name") == "stdout"
        if printed and kept and kept[-1].get("name") == "stdout":
            kept[-1].text += output.text
        elif printed or output.output_type != "stream":
            kept.append(output)
    return kept


def _described(body: str, heading: str) -> str:
    """Figures with a description: the heading above them, where nbconvert writes "png"."""
    lines = []
    for line in body.split("\n"):
        if line.startswith("#"):
            heading = line
        lines.append(re.sub(r"^!\[\w+\]", f"![{heading.strip('# ')}]", line))
    return "\n".join(lines)


def run(text: Path, folder: Path) -> None:
    """Run a notebook; what it was run with stands in its metadata."""
    notebook = jupytext.read(text)
    notebook.metadata["environment"] = environment()
    where = {"metadata": {"path": str(text.parent)}}
    nbclient.NotebookClient(notebook, timeout=None, resources=where).execute()
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / f"{text.stem}.ipynb")


def main() -> None:
    if named := [Path(argument).resolve() for argument in sys.argv[1:]]:
        folder = FULL
    else:
        named, folder = [text for text in TEXTS if latest(text)[1] is None], QUICK
        os.environ["BILEVEL_QUICK"] = "1"
    for text in tqdm(named, desc="notebooks"):
        run(text, folder)


if __name__ == "__main__":
    main()
