"""Axes to draw on."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def require_matplotlib() -> Any:
    """matplotlib, or an error that says how to install it."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("Figures need matplotlib. Install it with: pip install 'bilevel[plots]'") from error
    return matplotlib


def new_axes(ax: "Axes | None") -> "Axes":
    """`ax`, or the axes of a new figure."""
    if ax is not None:
        return ax
    require_matplotlib()
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1]
