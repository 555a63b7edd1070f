"""A table as a page: printed, and written as CSV and Markdown."""

import argparse
import csv
import platform
from collections.abc import Callable
from pathlib import Path

import jax

import bilevel as bl

Rows = list[dict[str, str]]


def publish(name: str, title: str, text: str | None, measure: Callable[[], Rows]) -> None:
    """The script's `main`: `measure` in 64 bits, print, and write `name`.csv and `name`.md, which opens with `text`."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"), help="folder for the tables (%(default)s)")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    rows = measure()
    versions = (
        f"bilevel {bl.__version__}, JAX {jax.__version__}, Python {platform.python_version()}, {jax.devices()[0]}"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    page = f"# {title}\n\n{(text or '').strip()}\n\n{as_markdown(rows)}\n\n{versions}.\n"
    (options.out / f"{name}.md").write_text(page)
    print(as_markdown(rows))
    print(versions)


def as_markdown(rows: Rows) -> str:
    names = list(rows[0])
    lines = ["| " + " | ".join(cells) + " |" for cells in (names, ["---"] * len(names), *(r.values() for r in rows))]
    return "\n".join(lines)
