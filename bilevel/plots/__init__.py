"""Figures; they need matplotlib, the `plots` extra."""

from bilevel.plots.atoms import plot_atoms as plot_atoms
from bilevel.plots.modes import plot_modes as plot_modes
from bilevel.plots.training import plot_losses as plot_losses
