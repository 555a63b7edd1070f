"""All results of a folder as one self-contained HTML page."""

import html
import json
import re
import textwrap
from pathlib import Path

from benchmarks.results import cell, footer
from bilevel.plots import page


def report(out: Path) -> Path:
    """Write out/report.html from every out/NAME/results.json; returns its path."""
    records = sorted(out.glob("*/results.json"))
    if not records:
        raise FileNotFoundError(f"There are no results in {out}. Run a benchmark first: python -m benchmarks NAME")
    parts = ["<nav><p>Contents: " + " · ".join(_link(path.parent.name) for path in records) + "</p></nav>"]
    for path in records:
        parts += _section(path)
    target = out / "report.html"
    target.write_text(page.page("Benchmarks of bilevel", parts))
    return target


def _title(name: str) -> str:
    return html.escape(name.replace("_", " ").capitalize())


def _link(name: str) -> str:
    return f'<a href="#{html.escape(name)}">{_title(name)}</a>'


def _prose(text: str) -> str:
    """A paragraph of a docstring, with its `code` and **stress**; an indented one is a formula."""
    if text.startswith("    "):
        return f"<pre>{html.escape(textwrap.dedent(text))}</pre>"
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
    return "<p>" + re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text, flags=re.DOTALL) + "</p>"


def _section(path: Path) -> list[str]:
    record = json.loads(path.read_text())
    parts = [f'<h2 id="{html.escape(record["benchmark"])}">{_title(record["benchmark"])}</h2>']
    parts += [_prose(text) for text in record["text"].split("\n\n")]
    parts += [page.figure((path.parent / file).read_bytes(), title) for title, file in record["figures"].items()]
    for title, rows in record["tables"].items():
        cells = [[cell(value) for value in row.values()] for row in rows]
        parts.append(f'<div style="overflow-x: auto; font-size: .78em">{page.table(list(rows[0]), cells, title)}</div>')
    return [*parts, page.paragraph(footer(record))]
