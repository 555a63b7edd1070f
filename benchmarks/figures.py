"""Figures that several benchmarks draw."""

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt

from benchmarks.results import Rows, cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def bars(rows: Rows, label: str, seconds: str, error: str, title: str) -> "Figure":
    """Seconds as bars, each with the error that was achieved; rows without a time are left out."""
    ordered = sorted((row for row in rows if isinstance(row[seconds], float)), key=lambda row: -row[seconds])
    names, values = [row[label] for row in ordered], [row[seconds] for row in ordered]
    figure, ax = plt.subplots(figsize=(7.5, 0.8 + 0.42 * len(ordered)), layout="constrained")
    colors = ["tab:red" if name.startswith("bilevel") else "tab:gray" for name in names]
    drawn = ax.barh(names, values, color=colors, height=0.6)
    notes = [f" {cell(row[seconds])} s, {error} {row[error]:.0e}" for row in ordered]
    ax.bar_label(drawn, notes, fontsize=9)
    ax.set(xscale="log", xlabel="seconds", title=title, xlim=(min(values) / 2, 60 * max(values)))
    ax.spines[["top", "right"]].set_visible(False)
    return figure
