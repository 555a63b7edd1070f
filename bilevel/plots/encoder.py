"""An encoder against its decoder."""

from typing import TYPE_CHECKING, Any

import numpy as np

from bilevel.plots.arrays import shaped
from bilevel.plots.axes import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_encoder(dictionary: Any, encoder: Any, *, gridsize: int = 70, ax: "Axes | None" = None) -> "Axes":
    """Every entry of the encoder E against the entry of Dᵀ in its place, counted in hexagons; and where E = Dᵀ.

    A tied encoder is the dashed line; the cosine of the angle between E and Dᵀ says how nearly it is one, up to scale.
    As images, `plot_atoms(dictionary, image_shape, beside=encoder.T)` shows them in pairs.

    **Arguments:** `dictionary` (atoms, features); `encoder` (features, atoms).
    """
    D = shaped(dictionary, "dictionary", "atoms", "features")
    E = shaped(encoder, "encoder", ("features", D.shape[1]), ("atoms", D.shape[0]))
    ax = new_axes(ax)
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    limit = 1.05 * max(np.abs(D).max(), np.abs(E).max()) or 1.0
    square = (-limit, limit, -limit, limit)
    blues = ListedColormap(colormaps["Blues"](np.linspace(0.3, 1, 256)))
    counts = ax.hexbin(D.T.ravel(), E.ravel(), gridsize=gridsize, extent=square, bins="log", mincnt=1, cmap=blues)
    ax.plot([-limit, limit], [-limit, limit], color="0.2", lw=1, ls="--", label="E = Dᵀ")
    ax.set(aspect="equal", xlim=(-limit, limit), ylim=(-limit, limit))
    ax.set_xlabel("entry of the decoder Dᵀ")
    ax.set_ylabel("entry of the encoder E")
    norms = np.linalg.norm(D) * np.linalg.norm(E)
    if norms > 0:
        cosine = f"cos∠(E, Dᵀ) = {np.sum(D.T * E) / norms:.2f}"
        ax.text(0.97, 0.04, cosine, transform=ax.transAxes, ha="right")
    ax.legend(frameon=False, loc="upper left")
    ax.figure.colorbar(counts, ax=ax, label="entries in a hexagon")
    return ax
