"""What a benchmark returns, and how it is written: CSV, JSON, PNG and a Markdown page."""

import csv
import json
import platform
import re
import subprocess
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
from tqdm import tqdm

import bilevel as bl
from bilevel.plots.page import to_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Text is shown as it is, numbers to three digits, None as nothing.
Rows = list[dict[str, Any]]

#: Whose versions are recorded, where they are installed.
PACKAGES = "jax jaxlib jaxopt numpy numba equinox lineax optax scikit-learn spams-bin skglm archetypes pyunlocbox"


class Results(NamedTuple):
    """Tables and figures by their titles, which also name their files; the precision that was measured, in words."""

    tables: dict[str, Rows]
    figures: dict[str, "Figure"]
    precision: str


def tabulate(name: str, parts: Mapping[str, Callable[[], Rows]]) -> dict[str, Rows]:
    """The tables of a benchmark, one after the other, under a progress bar."""
    bar = tqdm(parts.items(), desc=name)
    return {title: part() for title, part in bar}


def cell(value: Any) -> str:
    """A value of a table as text."""
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def slug(title: str) -> str:
    """A title as a file's name."""
    return re.sub(r"\W+", "_", title.lower()).strip("_")


def as_markdown(rows: Rows) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([cell(v) for v in row.values()] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def environment() -> dict[str, Any]:
    """What is measured on what: versions, device, cores, commit."""
    installed = {d.metadata["Name"] for d in metadata.distributions()}
    (device,) = jnp.zeros(()).devices()
    return {
        "versions": {
            "bilevel": bl.__version__,
            "Python": platform.python_version(),
            **{name: metadata.version(name) for name in PACKAGES.split() if name in installed},
        },
        "device": f"{device.platform} ({device.device_kind})",
        "cores": bl.kernels.threads(),
        "commit": commit(),
    }


def commit() -> str:
    """The commit that is checked out where this file lies, and whether tracked files differ, but for measurements."""
    git = lambda *args: subprocess.run(
        ["git", *args], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    ).stdout.strip()
    changed = ("status", "--porcelain", "-uno", "--", ":/", ":(top,exclude)docs/measured")
    try:
        return git("rev-parse", "HEAD") + (" and changes" if git(*changed) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def footer(record: Mapping[str, Any]) -> str:
    """A record's environment in a sentence."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    sizes = "quick" if record["quick"] else "full"
    where = f"{record['device']}, {record['cores']} cores, {record['precision']}, {sizes} sizes"
    commit, *changes = record["commit"].split(" ", 1)
    return f"{versions}; {where}; commit {' '.join([commit[:12], *changes])}; {record['seconds']:.0f} s."


def write(name: str, text: str, results: Results, record: dict[str, Any], out: Path) -> str:
    """Into out/name/: a CSV file for each table, a PNG file for each figure, results.json; beside it, name.md.

    Returns the page.
    """
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.csv"), *folder.glob("*.png")):
        old.unlink()
    parts = [f"# {name.replace('_', ' ').capitalize()}", text.strip()]
    for title, figure in results.figures.items():
        (folder / f"{slug(title)}.png").write_bytes(to_png(figure))
        parts.append(f"![{title}]({name}/{slug(title)}.png)")
    for title, rows in results.tables.items():
        with (folder / f"{slug(title)}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        parts += [f"## {title}", as_markdown(rows)]
    record = {
        "benchmark": name,
        "text": text.strip(),
        **record,
        "precision": results.precision,
        "tables": results.tables,
        "figures": {title: f"{slug(title)}.png" for title in results.figures},
    }
    (folder / "results.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    page = "\n\n".join([*parts, footer(record)]) + "\n"
    (out / f"{name}.md").write_text(page)
    return page
