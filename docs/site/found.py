"""What the notebooks found, as a page of the site: all that they printed, once every one of them has run in full."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import executed
from nbformat import NotebookNode

from benchmarks.results import environment, footer

PAGE = executed.ROOT / "docs" / "notebooks" / "found.md"
INTRODUCTION = """# What they found

What each notebook printed when it was run in full, which ends with what it asserts; its figures and derivations are on
its own page. `make notebooks` wrote this page. Unless a notebook says so itself, it computes in 64 bits."""


def page(notebooks: dict[Path, NotebookNode]) -> str:
    """The page, of executed notebooks by their texts."""
    parts, seconds = [INTRODUCTION], 0.0
    for text, notebook in notebooks.items():
        took = _seconds(notebook)
        seconds += took
        parts.append(f"## [{executed.title(text)}]({text.stem}.md)\n\n`notebooks/{text.name}`, {took:.0f} s")
        for heading, printed in _printed(notebook):
            parts += [f"**{heading}**", f"```\n{printed.rstrip()}\n```"]
    record = {**environment(), "quick": False, "precision": "64 bits", "seconds": seconds}
    return "\n\n".join([*parts, footer(record)]) + "\n"


def _printed(notebook: NotebookNode) -> Iterator[tuple[str, str]]:
    """What was printed, and the heading that it stands under."""
    heading, found = "", dict[str, str]()
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = next((line.strip("# ") for line in cell.source.split("\n") if line.startswith("#")), heading)
        else:
            printed = [output.text for output in cell.outputs if output.get("name") == "stdout"]
            found[heading] = found.get(heading, "") + "".join(printed)
    return ((heading, printed) for heading, printed in found.items() if printed)


def _seconds(notebook: NotebookNode) -> float:
    """From the first cell's begin to the last cell's end."""
    cells = [cell.metadata.execution for cell in notebook.cells if cell.cell_type == "code"]
    moment = lambda cell, event: datetime.fromisoformat(cell[event].replace("Z", "+00:00"))
    return (moment(cells[-1], "iopub.status.idle") - moment(cells[0], "iopub.status.busy")).total_seconds()


def main() -> None:
    runs = {text: executed.latest(text) for text in executed.TEXTS}
    missing = [text.name for text, (_, folder) in runs.items() if folder != executed.FULL]
    if missing:
        print(f"{PAGE.name} stays as it is: these have not run in full with their present text: {', '.join(missing)}.")
    else:
        PAGE.write_text(page({text: notebook for text, (notebook, _) in runs.items()}))
        print(f"{PAGE.relative_to(executed.ROOT)} is written anew.")


if __name__ == "__main__":
    main()
