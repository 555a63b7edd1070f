"""How exact the hypergradients of a training are."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import PyTree, Scalar

from bilevel.core import RESULTS, tree
from bilevel.objectives import AbstractObjective
from bilevel.outer.hypergradient import hypergradient
from bilevel.outer.problem import Variables
from bilevel.outer.state import TrainingState
from bilevel.outer.trainer import Trainer


class HypergradientCertificate(eqx.Module):
    """Measures the hypergradient of a training on one `batch`, by the `trainer`'s solver and way of differentiating:
    its `bl.Certificate`, as numbers.

    `hypergradient_error`, the estimated relative error; `hypergradient_optimality`, the optimality error of the inner
    solution, of the worst sample; `hypergradient_margin`, the distance to the nearest change of the support;
    `hypergradient_at_risk`, the fraction of coordinates for which that is too near; `hypergradient_certified`, 1 where
    nothing failed, else 0.

    A certificate costs several hypergradients: take a small batch.
    """

    trainer: Trainer
    batch: PyTree = eqx.field(converter=tree.to_arrays)

    def __check_init__(self):
        if not isinstance(self.trainer, Trainer):
            raise ValueError(f"`trainer` must be a Trainer, got {type(self.trainer).__name__}.")

    def __call__(self, state: TrainingState) -> dict[str, float]:
        variables, problem = state.variables, self.trainer.problem
        outer_loss = _OuterLoss(problem.outer_loss, variables.task, self.batch)
        data, solver, diff = problem.inner_data(self.batch), self.trainer.solver, self.trainer.diff
        done = hypergradient(outer_loss, variables.objective, data, solver=solver, diff=diff, on_failure="ignore")
        certificate = done.certificate
        samples = certificate if certificate.samples is None else certificate.samples
        found = {
            "error": certificate.relative_error,
            "optimality": jnp.max(samples.optimality),
            "margin": certificate.margin,
            "at_risk": certificate.at_risk,
            "certified": certificate.result == RESULTS.successful,
        }
        return {f"hypergradient_{name}": float(value) for name, value in found.items()}


class _OuterLoss(eqx.Module):
    """The loss of a problem as `hypergradient` takes it. A module, so that what changes is no constant of a program."""

    outer_loss: Callable
    task: PyTree
    batch: PyTree

    def __call__(self, objective: AbstractObjective, params: PyTree, data: PyTree) -> Scalar:
        return self.outer_loss(Variables(objective, self.task), params, self.batch)
