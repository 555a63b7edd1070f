"""What the notebooks found, as a page of the site: all that they printed, once every one of them has run in full."""

import json
import textwrap
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import executed
from nbformat import NotebookNode

from benchmarks.results import footer

PAGE = executed.ROOT / "docs" / "notebooks" / "found.md"
INTRODUCTION = """# What they found

What each notebook printed when it was run in full, which ends with what it asserts. Its figures and derivations are on
its own page. `make notebooks` wrote this page. All compute in 64 bits, but for the one that says otherwise."""


def page(notebooks: dict[Path, NotebookNode]) -> str:
    """The page, of notebooks that were executed with the same versions, by their texts."""
    parts, seconds = [INTRODUCTION], {text: _seconds(notebook) for text, notebook in notebooks.items()}
    for text, notebook in notebooks.items():
        link = f"[`notebooks/{text.name}`](../../notebooks/{text.stem}.ipynb)"
        parts.append(f"## {executed.title(text)}\n\n{link}, {seconds[text]:.0f} s")
        for heading, printed in _printed(notebook):
            parts += [f"**{heading}**", f"```\n{printed.rstrip()}\n```"]
    ran = next(iter(notebooks.values())).metadata.environment
    record = {**ran, "precision": "64 bits but in one", "quick": False, "seconds": sum(seconds.values())}
    return "\n\n".join([*parts, footer(record)]) + "\n"


def _printed(notebook: NotebookNode) -> Iterator[tuple[str, str]]:
    """What was printed, and the heading that it stands under."""
    heading, found = "", dict[str, str]()
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = next((line.strip("# ") for line in cell.source.split("\n") if line.startswith("#")), heading)
        else:
            printed = [output.text for output in cell.outputs if output.get("name") == "stdout"]
            lines = "".join(printed).splitlines()
            # Sentences, not tables.
            wrapped = (textwrap.fill(line, 100) if len(line) > 120 else line for line in lines)
            found[heading] = found.get(heading, "") + "".join(f"{line}\n" for line in wrapped)
    return ((heading, printed) for heading, printed in found.items() if printed)


def _seconds(notebook: NotebookNode) -> float:
    """From the first cell's begin to the last cell's end."""
    cells = [cell.metadata.execution for cell in notebook.cells if cell.cell_type == "code"]
    moment = lambda cell, event: datetime.fromisoformat(cell[event].replace("Z", "+00:00"))
    return (moment(cells[-1], "iopub.status.idle") - moment(cells[0], "iopub.status.busy")).total_seconds()


def main() -> None:
    runs = {text: executed.latest(text) for text in executed.TEXTS}
    missing = [text.name for text, (_, folder) in runs.items() if folder != executed.FULL]
    notebooks = {text: notebook for text, (notebook, _) in runs.items()}
    if missing:
        print(f"{PAGE.name} stays as it is: these have not run in full with their present text: {', '.join(missing)}.")
    elif len({json.dumps(notebook.metadata["environment"]) for notebook in notebooks.values()}) > 1:
        print(f"{PAGE.name} stays as it is: not all were run with one commit and one set of versions.")
    else:
        PAGE.write_text(page(notebooks))
        print(f"{PAGE.relative_to(executed.ROOT)} is written anew.")


if __name__ == "__main__":
    main()
