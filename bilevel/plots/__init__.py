"""Figures; they need matplotlib, the `plots` extra. Each function takes the axes to draw on, and returns them."""

from bilevel.plots.archetypes import plot_archetypes as plot_archetypes
from bilevel.plots.atoms import plot_atoms as plot_atoms
from bilevel.plots.certificate import plot_certificate as plot_certificate
from bilevel.plots.clamp import (
    plot_clamp_curves as plot_clamp_curves,
    plot_clamp_map as plot_clamp_map,
    plot_clamp_solutions as plot_clamp_solutions,
)
from bilevel.plots.codes import plot_code_histogram as plot_code_histogram, plot_sparsity as plot_sparsity
from bilevel.plots.convergence import plot_convergence as plot_convergence, plot_decrease as plot_decrease
from bilevel.plots.costs import plot_costs as plot_costs
from bilevel.plots.encoder import plot_encoder as plot_encoder
from bilevel.plots.modes import plot_modes as plot_modes
from bilevel.plots.norms import plot_norms as plot_norms
from bilevel.plots.reconstruction import plot_reconstruction as plot_reconstruction
from bilevel.plots.simplex import plot_simplex as plot_simplex
from bilevel.plots.training import plot_losses as plot_losses
