"""Dead atoms, which no sample uses and no gradient moves, become others that are of use."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from bilevel.core import tree
from bilevel.differentiation import argmin
from bilevel.objectives import SparseCoding
from bilevel.outer.callbacks import AbstractMonitor, Callback, History
from bilevel.outer.monitors.console import say
from bilevel.outer.monitors.rows import writes
from bilevel.outer.monitors.sparsity import usage
from bilevel.outer.state import TrainingState
from bilevel.scale import gathered
from bilevel.solvers import AbstractSolver

#: Cosine from which on two atoms are too much alike to have both: an angle of 8 degrees.
ALIKE = 0.99


class ReseedDeadAtoms(AbstractMonitor):
    """At each look replaces the atoms of a `SparseCoding` that no sample uses by the samples reconstructed worst.

    An atom is dead if no sample of `data` uses it, nor any code that warm starts keep. It becomes the residual of a
    sample of `data`, made as long as the longest atom; the optimizer's moments of it, where it has any, become zero.
    Only residuals by which the sample would use the atom are taken, and none that is almost parallel to another atom:
    there may be fewer than dead atoms.

    **Arguments:**

    - `data`: samples, or some of them, as the inner problem takes them; of several processes, those of each.
    - `until`: the step from which on nothing is replaced, so that training has time for the last ones.
    - `solver`: as in `argmin`, for the codes of `data`. Where they miss its tolerance, nothing is replaced.
    - `report`: gets a line that says how many atoms were dead and how many replaced; by default it is printed. None: no
      report.
    """

    data: Float[Array, "samples features"] = eqx.field(converter=tree.to_arrays)
    until: int | None = None
    solver: AbstractSolver | None = eqx.field(converter=tree.to_arrays, default=None)
    report: Callable[[str], object] | None = say

    def start(self, state: TrainingState) -> Callback:
        _coding(state).check_data(self.data)
        return self._look

    def _look(self, state: TrainingState, history: History) -> TrainingState | None:
        if self.until is not None and int(state.step) >= self.until:
            return None
        objective = _coding(state)
        used, residuals, solved = map(np.asarray, _explain(objective, self.data, self.solver))
        used = np.sum(gathered(used), axis=0)
        if state.warm_start is not None:
            used = used + usage(state.warm_start)
        residuals = gathered(residuals).reshape(-1, residuals.shape[1])
        if not np.all(gathered(solved)) or np.all(used > 0):
            return None
        dictionary, replaced = reseeded(np.asarray(objective.dictionary), used == 0, residuals, float(objective.l1))
        if self.report is not None and writes():
            dead = int(np.sum(used == 0))
            self.report(f"step {int(state.step)}: {int(np.sum(replaced))} of {dead} dead atoms re-seeded")
        return _with_atoms(state, dictionary, replaced) if np.any(replaced) else None


def reseeded(
    dictionary: Float[np.ndarray, "atoms features"],
    dead: Bool[np.ndarray, " atoms"],
    residuals: Float[np.ndarray, "samples features"],
    l1: float,
) -> tuple[Float[np.ndarray, "atoms features"], Bool[np.ndarray, " atoms"]]:
    """The dictionary with dead atoms replaced by the largest residuals, and which atoms were.

    A residual r is minus the derivative of a sample's loss in its reconstruction, x − Dᵀc for the squared error. Give
    the sample one more atom d, with code 0: by the optimality of its code this is still optimal if and only if
    |dᵀr| ≤ l1. So d = a r/‖r‖, which of all atoms of length a has the largest dᵀr, is used where a ‖r‖ > l1.
    """
    lengths = np.linalg.norm(dictionary, axis=1, keepdims=True)
    length = np.max(lengths) or 1.0
    alive = ~dead[:, None] & (lengths > 0)
    units = np.where(alive, dictionary / np.where(alive, lengths, 1), 0)
    dictionary, replaced = dictionary.copy(), np.zeros_like(dead)
    norms = np.linalg.norm(residuals, axis=1)
    free = iter(np.flatnonzero(dead))
    for sample in np.argsort(-norms, kind="stable"):
        if not length * norms[sample] > l1:
            break
        unit = residuals[sample] / norms[sample]
        if np.max(np.abs(units @ unit)) > ALIKE:
            continue
        atom = next(free, None)
        if atom is None:
            break
        units[atom], dictionary[atom], replaced[atom] = unit, length * unit, True
    return dictionary, replaced


def _coding(state: TrainingState) -> SparseCoding:
    objective = state.variables.objective
    if not isinstance(objective, SparseCoding):
        raise ValueError(f"`ReseedDeadAtoms` needs a SparseCoding objective, got {type(objective).__name__}.")
    return objective


@eqx.filter_jit
def _explain(
    objective: SparseCoding, X: Float[Array, "samples features"], solver: AbstractSolver | None
) -> tuple[Int[Array, " atoms"], Float[Array, "atoms features"], Bool[Array, ""]]:
    """How many samples use each atom, the largest residuals, and whether the codes are solutions."""
    solution = argmin(objective, X, solver=solver, throw=False)
    slope = jax.vmap(jax.grad(objective.sample_loss, argnums=1))(X, solution.params @ objective.dictionary)
    atoms = len(objective.dictionary)
    _, worst = jax.lax.top_k(jnp.linalg.norm(slope, axis=1), min(atoms, len(X)))
    residuals = jnp.zeros((atoms, X.shape[1]), X.dtype).at[: len(worst)].set(-slope[worst])
    return jnp.count_nonzero(solution.params, axis=0), residuals, jnp.asarray(solution.successful)


def _with_atoms(state: TrainingState, dictionary: np.ndarray, replaced: Bool[np.ndarray, " atoms"]) -> TrainingState:
    """The state with the `replaced` atoms of `dictionary`, whose codes in warm starts are zero already."""
    atoms = _set_rows(_coding(state).dictionary, replaced, dictionary)
    state = eqx.tree_at(lambda s: _coding(s).dictionary, state, atoms)
    # Optax keeps moments in trees like that of the variables: a leaf's path ends as the dictionary's does.
    is_moment = lambda path, x: jax.tree_util.keystr(path).endswith(".objective.dictionary") and eqx.is_array(x)
    of_atoms = lambda path, x: is_moment(path, x) and x.shape[:1] == replaced.shape
    forget = lambda path, x: _set_rows(x, replaced, np.zeros(x.shape, x.dtype)) if of_atoms(path, x) else x
    return dataclasses.replace(state, optimizer=jax.tree_util.tree_map_with_path(forget, state.optimizer))


def _set_rows(x: Array, rows: Bool[np.ndarray, " atoms"], values: np.ndarray) -> Array:
    """`x` with other rows, on the same devices."""
    return jax.device_put(_where_rows(x, rows.reshape(-1, *[1] * (x.ndim - 1)), values), x.sharding)


@jax.jit
def _where_rows(x: PyTree, rows: PyTree, values: PyTree) -> Array:
    return jnp.where(rows, values, x)
