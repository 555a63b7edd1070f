"""Tables as a page: printed, written as CSV and Markdown, and drawn."""

import argparse
import csv
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import jax
import matplotlib.pyplot as plt

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
    write_csv(rows, options.out / f"{name}.csv")
    page = f"# {title}\n\n{(text or '').strip()}\n\n{as_markdown(rows)}\n\n{versions}.\n"
    (options.out / f"{name}.md").write_text(page)
    print(as_markdown(rows))
    print(versions)


def as_markdown(rows: Rows) -> str:
    names = list(rows[0])
    lines = ["| " + " | ".join(cells) + " |" for cells in (names, ["---"] * len(names), *(r.values() for r in rows))]
    return "\n".join(lines)


def write_csv(rows: Rows, path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def versions(*rivals: str) -> str:
    """What was measured on what."""
    found = [f"{name} {metadata.version(name)}" for name in ("jax", "jaxopt", "numba", *rivals)]
    device = jax.devices()[0]
    cores = bl.kernels.threads() if device.platform == "cpu" else 1
    own = f"bilevel {bl.__version__}, {', '.join(found)}, Python {platform.python_version()}"
    return f"{own}; {device.platform} ({device.device_kind}), {cores} cores."


def draw(rows: Rows, label: str, seconds: str, error: str, title: str, path: Path) -> None:
    """Seconds as bars, each with the error that was achieved."""
    ordered = sorted(rows, key=lambda row: -float(row[seconds]))
    names, values = [row[label] for row in ordered], [float(row[seconds]) for row in ordered]
    figure, ax = plt.subplots(figsize=(7.5, 0.6 + 0.42 * len(rows)), layout="constrained")
    colors = ["tab:red" if name.startswith("bilevel") else "tab:gray" for name in names]
    bars = ax.barh(names, values, color=colors, height=0.6)
    notes = [f" {row[seconds]} s, {error} {row[error]}" for row in ordered]
    ax.bar_label(bars, notes, fontsize=9)
    ax.set(xscale="log", xlabel="seconds", title=title, xlim=(min(values) / 2, 60 * max(values)))
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def publish_all(out: Path, name: str, text: str, tables: dict[str, Rows], footer: str) -> None:
    """Print the tables, and write them as one Markdown page, with a CSV file each in a folder of the page's name."""
    (out / name).mkdir(parents=True, exist_ok=True)
    page = [text.strip(), f"![{name.replace('_', ' ')}]({name}/figure.png)"]
    for title, rows in tables.items():
        page += [f"## {title}", as_markdown(rows)]
        write_csv(rows, out / name / f"{title.lower().replace(' ', '_')}.csv")
    page.append(footer)
    (out / f"{name}.md").write_text("\n\n".join(page) + "\n")
    print("\n\n".join(page[2:]))
