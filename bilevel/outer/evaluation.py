"""The outer loss, its gradient, and what is seen of the inner solve; on one device, or shard by shard on a mesh."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

from bilevel.core import Solution
from bilevel.outer.problem import BilevelProblem, Variables
from bilevel.scale import DeviceMesh, sum_over


class Evaluation(eqx.Module):
    """**Attributes:** the outer `loss` and its `gradient` in the trained part; the inner solution, `params`, how far it
    is from optimal, the steps it took and whether it met its tolerance; `suspect`, the first sample of the batch with
    an entry that is not finite, or -1."""

    loss: Scalar
    gradient: PyTree
    params: PyTree
    optimality: Scalar
    num_steps: Int[Array, ""]
    success: Bool[Array, ""]
    suspect: Int[Array, ""]


#: The outer loss and its gradient at a trained part, given the rest of the variables.
Evaluate = Callable[[PyTree, PyTree], Evaluation]


def evaluator(problem: BilevelProblem, batch: PyTree, start: PyTree, **options: Any) -> Evaluate:
    """Evaluate on a batch, from a start of the inner solve, all on one device."""

    def loss_of(trained: PyTree, rest: PyTree) -> tuple[Scalar, Solution]:
        return problem.loss(eqx.combine(trained, rest), batch, init=start, throw=False, **options)

    return lambda trained, rest: _evaluate(loss_of, trained, rest, batch)


# A batch of B samples is cut among n devices. As the outer loss is a mean over samples, plus terms of the variables
# alone, with B_d samples on device d
#
#     loss = Σ_d B_d / B · loss_d,    ∇ loss = Σ_d B_d / B · ∇ loss_d,
#
# and the inner solve and its adjoint, of independent samples, are the devices' own. The one thing they tell each other
# is this sum. Along with it goes what is seen of the inner solves: a table with a row for each, of which it fills its
# own.
def sharded_evaluator(
    problem: BilevelProblem,
    mesh: DeviceMesh,
    batch: PyTree,
    start: PyTree,
    weights: Float[Array, " slots"] | None,
    **options: Any,
) -> Evaluate:
    """Evaluate on a batch whose samples lie on the devices of a mesh, as many on each; or else with `weights` for them,
    1/B for its B samples and 0 for those that fill it up.

    Params stay where they are; all else is the same everywhere.
    """

    def evaluate(trained: PyTree, rest: PyTree) -> Evaluation:
        arrays, static = eqx.partition((problem, rest, options), eqx.is_array)

        def on_device(trained: PyTree, arrays: PyTree, batch: PyTree, start: PyTree, weights: Any) -> tuple:
            problem, rest, options = eqx.combine(arrays, static)

            def loss_of(trained: PyTree, rest: PyTree) -> tuple[Scalar, Solution]:
                variables = eqx.combine(trained, rest)
                solution = problem.solve(variables, batch, init=start, throw=False, **options)
                if weights is None:
                    return problem.outer_loss(variables, solution.params, batch) / mesh.size, solution
                return jnp.sum(weights * losses(problem, variables, solution.params, batch)), solution

            mine = _evaluate(loss_of, trained, rest, batch)
            return *sum_over(mesh.axes, (mine.loss, mine.gradient, _row_of_table(mesh, mine, batch))), mine.params

        everywhere, sharded = mesh.everywhere, mesh.over_samples
        in_specs = everywhere, everywhere, sharded, sharded, sharded
        run = mesh.by_device(on_device, in_specs, (everywhere, everywhere, everywhere, sharded))
        return _read(*run(trained, arrays, batch, start, weights))

    return evaluate


def losses(problem: BilevelProblem, variables: Variables, params: PyTree, batch: PyTree) -> Float[Array, " slots"]:
    """The outer loss of each sample, as a batch of one."""
    batch_of_one = lambda values: jax.tree.map(lambda x: x[None], values)
    loss_of = lambda *sample: problem.outer_loss(variables, *map(batch_of_one, sample))
    return jax.vmap(loss_of)(params, batch)


def _row_of_table(mesh: DeviceMesh, mine: Evaluation, batch: PyTree) -> Array:
    """What is seen on this device, in its row of a table of zeros."""
    suspect = jnp.where(mine.suspect < 0, -1, mine.suspect + mesh.index() * _num_samples(batch))
    seen = mine.optimality, mine.num_steps, mine.success, suspect
    row = jnp.stack([jnp.asarray(x).astype(mine.loss.dtype) for x in seen])
    return jnp.zeros((mesh.size, len(row)), row.dtype).at[mesh.index()].set(row)


def _read(loss: Scalar, gradient: PyTree, table: Array, params: PyTree) -> Evaluation:
    optimality, num_steps, success, suspects = (table[:, column] for column in range(4))
    worst = jnp.where(jnp.any(jnp.isnan(optimality)), jnp.nan, jnp.max(optimality))
    first = jnp.min(suspects, initial=jnp.inf, where=suspects >= 0)
    suspect = jnp.where(jnp.isinf(first), -1, first).astype(jnp.int32)
    return Evaluation(
        loss, gradient, params, worst, jnp.max(num_steps).astype(jnp.int32), jnp.all(success > 0), suspect
    )


def _evaluate(loss_of: Callable[..., tuple[Scalar, Solution]], trained: PyTree, rest: PyTree, batch: PyTree):
    (loss, solution), gradient = eqx.filter_value_and_grad(loss_of, has_aux=True)(trained, rest)
    stats, success = solution.stats, jnp.asarray(solution.successful)
    suspect = _first_not_finite(batch)
    return Evaluation(loss, gradient, solution.params, stats["optimality"], stats["num_steps"], success, suspect)


def _num_samples(batch: PyTree) -> int:
    return jnp.shape(jax.tree.leaves(batch)[0])[0]


def _first_not_finite(batch: PyTree) -> Int[Array, ""]:
    """The first sample with an entry that is not finite; -1 where there is none, or where arrays hold no samples."""
    arrays = [x for x in jax.tree.leaves(batch) if eqx.is_inexact_array(x)]
    if len({jnp.shape(x)[:1] for x in arrays}) != 1 or arrays[0].ndim == 0 or arrays[0].shape[0] == 0:
        return jnp.asarray(-1, jnp.int32)
    bad = sum(jnp.sum(~jnp.isfinite(x.reshape(len(x), -1)), axis=1) for x in arrays) > 0
    return jnp.where(jnp.any(bad), jnp.argmax(bad), -1).astype(jnp.int32)
