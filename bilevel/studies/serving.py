"""The library's solvers, and which of them serve an objective."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import ScalarLike

from bilevel.objectives import AbstractObjective
from bilevel.solvers import (
    BFGS,
    LBFGS,
    AbstractSolver,
    AndersonAcceleration,
    BlockCoordinateDescent,
    Exact,
    GradientDescent,
    MirrorDescent,
    Newton,
    NonlinearCG,
    OptaxSolver,
    ProjectedGradient,
    ProximalGradient,
    ScipyMinimize,
    SparseCoder,
)


class Seconds(NamedTuple):
    """Of the first call, which compiles, and of the one after."""

    first: float
    again: float


def serving(
    objective: AbstractObjective, tol: ScalarLike, optimizer: optax.GradientTransformation
) -> dict[str, AbstractSolver]:
    """Every solver that serves the objective, by name; `optimizer` is the one of Optax."""
    solvers: dict[str, AbstractSolver] = {
        "exact": Exact(),
        "proximal gradient": ProximalGradient(tol=tol, max_steps=20_000),
        "proximal gradient, plain": ProximalGradient(tol=tol, max_steps=20_000, acceleration=False),
        "Anderson acceleration": AndersonAcceleration(tol=tol, max_steps=20_000),
        "gradient descent": GradientDescent(tol=tol, max_steps=20_000),
        "gradient descent, plain": GradientDescent(tol=tol, max_steps=20_000, acceleration=False),
        "projected gradient": ProjectedGradient(tol=tol),
        "mirror descent": MirrorDescent(tol=tol),
        "L-BFGS": LBFGS(tol=tol),
        "BFGS": BFGS(tol=tol),
        "nonlinear CG": NonlinearCG(tol=tol),
        "Newton": Newton(tol=tol),
        "block coordinate descent": BlockCoordinateDescent(tol=tol),
        "sparse coder": SparseCoder(tol=tol),
        "Optax": OptaxSolver(optimizer=optimizer, tol=tol),
        "SciPy, L-BFGS-B": ScipyMinimize(method="L-BFGS-B", tol=tol),
        "SciPy, BFGS": ScipyMinimize(method="BFGS", tol=tol),
        "SciPy, CG": ScipyMinimize(method="CG", tol=tol),
    }
    return {name: solver for name, solver in solvers.items() if _serves(solver, objective)}


def _serves(solver: AbstractSolver, objective: AbstractObjective) -> bool:
    try:
        solver.check(objective)
    except ValueError:
        return False
    return True


def timed(call: Callable[[], Any]) -> tuple[Any, Seconds]:
    """What the call returns, and its seconds: with compilation, and without."""
    seconds = []
    result = None
    for _ in range(2):
        start = time.perf_counter()
        result = jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return result, Seconds(*seconds)
