"""Memory and time against the number of inner iterations."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bilevel.plots.arrays import shaped
from bilevel.plots.axes import new_axes
from bilevel.plots.colors import series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {"bytes": "memory (MiB)", "seconds": "time (s)"}


def plot_costs(
    num_steps: Any, costs: Mapping[str, Any], *, quantity: str = "bytes", ax: "Axes | None" = None
) -> "Axes":
    """What each way of differentiating needs, against how many steps the inner solver takes; one line for each way.

    **Arguments:** `num_steps` (points,), ascending; `costs`, by the name of the way, (points,) numbers each, NaN where
    it was not measured; `quantity`, what they are: `"bytes"` or `"seconds"`.
    """
    if quantity not in LABELS:
        raise ValueError(f"`quantity` must be one of {tuple(LABELS)}, got {quantity!r}.")
    if not costs:
        raise ValueError("`costs` is empty: there is nothing to draw.")
    num_steps = shaped(num_steps, "num_steps", "points")
    each = {
        name: shaped(values, f"costs[{name!r}]", ("points", len(num_steps)), finite=False)
        for name, values in costs.items()
    }
    ax = new_axes(ax)
    unit = 2**20 if quantity == "bytes" else 1
    # Dashes, as one line may lie on another.
    dashes = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
    for index, (name, values) in enumerate(each.items()):
        ax.plot(num_steps, values / unit, lw=1.6, ms=5, ls=dashes[index % len(dashes)], label=name, **series(index))
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("inner iterations")
    ax.set_ylabel(LABELS[quantity])
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    return ax
