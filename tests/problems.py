"""Inner problems as records: objective, data, and what NumPy knows of their solution and its derivative.

A problem is added by one line in `PROBLEMS`, and inherits the laws of every solver that serves its kind.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from bilevel.objectives import (
    AbstractObjective,
    Clamp,
    ElasticNet as ElasticNetRegression,
    FunctionObjective,
    LogisticRegression,
    MulticlassSVM,
    Ridge,
    SparseCoding,
)
from bilevel.prox import L1, AbstractPenalty, Box, ElasticNet, GroupL1, NonNegative, Simplex, UnitBall
from tests import witnesses

SAMPLES, FEATURES, ATOMS, TARGETS = 8, 6, 10, 3
_rng = np.random.default_rng(0)


class Problem(NamedTuple):
    """An objective with its data, and witnesses.

    The witnesses take the inexact leaves of (objective, data) in their order, `names`. `solve` gives the solution, its
    leaves raveled; `derivative(values, directions)` the solution's, or is None where central differences of `solve`
    have to do. `powers`: the powers of a by which those leaves multiply the objective by a², or None. `kinds`: the
    members of `KINDS` of solvers that serve it.
    """

    name: str
    objective: AbstractObjective
    data: PyTree
    solve: Callable[..., np.ndarray]
    kinds: set[str]
    derivative: Callable[..., np.ndarray] | None = None
    powers: tuple[float, ...] | None = None

    @property
    def leaves(self) -> list[Array]:
        return jax.tree.leaves(eqx.filter((self.objective, self.data), eqx.is_inexact_array))

    @property
    def names(self) -> list[str]:
        arrays = eqx.filter((self.objective, self.data), eqx.is_inexact_array)
        return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(arrays)]

    def replaced(self, leaves: list[Array]) -> tuple[AbstractObjective, PyTree]:
        """(objective, data) with other inexact leaves."""
        moving, still = eqx.partition((self.objective, self.data), eqx.is_inexact_array)
        return eqx.combine(jax.tree.unflatten(jax.tree.structure(moving), leaves), still)

    def direction_of(self, index: int, seed: int = 0) -> list[np.ndarray]:
        """A random direction in one leaf, zero in the others."""
        rng = np.random.default_rng(seed)
        directions = [rng.normal(size=leaf.shape) * (0.5 + np.abs(np.asarray(leaf))) for leaf in self.leaves]
        return [d if i == index else np.zeros(d.shape) for i, d in enumerate(directions)]

    def known_derivative(self, directions: list[np.ndarray]) -> list[np.ndarray]:
        """The closed form; or central differences of the solution, over a sweep of steps."""
        values = [np.asarray(leaf) for leaf in self.leaves]
        if self.derivative is not None:
            return [self.derivative(values, directions).ravel()]
        difference = lambda step: witnesses.central_difference(self.solve, values, directions, step)
        return [difference(step) for step in (1e-4, 1e-5, 1e-6)]


def raveled(params: PyTree) -> np.ndarray:
    """The inexact leaves of `params` in one vector."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(eqx.filter(params, eqx.is_inexact_array))])


# --- Ridge and Clamp: closed forms ------------------------------------------------------------------------------------


def ridge(name: str, samples: int, alpha: np.ndarray | float, targets: tuple[int, ...]) -> Problem:
    X, y = _rng.normal(size=(samples, FEATURES)), _rng.normal(size=(samples, *targets))
    return Problem(
        f"Ridge {name}",
        Ridge(alpha),
        (jnp.asarray(X), jnp.asarray(y)),
        lambda *leaves: witnesses.ridge(*leaves).ravel(),
        {"any", "smooth", "exact", "least squares"},
        witnesses.ridge_derivative,
        powers=(2, 1, 1),
    )


ALPHAS = np.linspace(0.2, 0.8, FEATURES)
#: Both shapes of the system, with one alpha and many, one target and many.
RIDGES = [
    ridge("primal, one target", SAMPLES, 0.3, ()),
    ridge("primal, several targets, alpha per feature", SAMPLES, ALPHAS, (TARGETS,)),
    ridge("dual, one target, alpha per feature", 4, ALPHAS, ()),
    ridge("dual, several targets", 4, 0.3, (TARGETS,)),
]

CLAMP = Problem(
    "Clamp",
    Clamp(np.array([-2.0, -0.5, 0.3, 0.9, 1.4, 2.2, 3.0]), mu=0.7, c=0.8),
    None,
    witnesses.clamp,
    {"any", "exact"},
    witnesses.clamp_derivative,
)

# --- Sparse codes -----------------------------------------------------------------------------------------------------


class LogCosh(eqx.Module):
    """Σ width² log cosh((x − r) / width), a smooth Huber loss with a parameter of its own."""

    width: Float[Array, ""]

    def __call__(self, x: Float[Array, " features"], reconstruction: Float[Array, " features"]) -> Float[Array, ""]:
        scaled = (x - reconstruction) / self.width
        return self.width**2 * jnp.sum(jnp.logaddexp(scaled, -scaled) - math.log(2))


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


DICTIONARY, SIGNALS = _unit_rows(_rng.normal(size=(ATOMS, FEATURES))), _rng.normal(size=(SAMPLES, FEATURES))


def codes_by_proximal_gradient(
    dictionary: np.ndarray, l1: np.ndarray, l2: np.ndarray, width: np.ndarray | None, X: np.ndarray
) -> np.ndarray:
    """Sparse codes for the log-cosh loss of a width, or the squared error."""
    slope = (lambda residual: residual) if width is None else (lambda residual: width * np.tanh(residual / width))
    return witnesses.proximal_gradient(
        lambda C: slope(C @ dictionary - X) @ dictionary.T + l2 * C,
        lambda C, stepsize: witnesses.soft_threshold(C, stepsize * l1),
        np.linalg.norm(dictionary, 2) ** 2 + l2,
        np.zeros((len(X), len(dictionary))),
    ).ravel()


CODES = Problem(
    "SparseCoding",
    SparseCoding(DICTIONARY, l1=0.3, l2=0.1),
    jnp.asarray(SIGNALS),
    lambda dictionary, l1, l2, X: codes_by_proximal_gradient(dictionary, l1, l2, None, X),
    {"any", "least squares", "codes"},
    powers=(1, 2, 2, 1),
)
ROBUST_CODES = Problem(
    "SparseCoding log-cosh",
    SparseCoding(DICTIONARY, l1=0.3, l2=0.1, loss=LogCosh(jnp.asarray(0.8))),
    jnp.asarray(SIGNALS),
    codes_by_proximal_gradient,
    {"any"},
    powers=(1, 2, 2, 1, 1),
)

# --- A user's own function: smooth ------------------------------------------------------------------------------------


def logistic_loss(hyperparams: dict[str, Array], w: Array, data: tuple[Array, Array]) -> Array:
    """scale · (Σᵢ log(1 + exp(−yᵢ xᵢ·w)) + ½ rho ‖w‖²)."""
    X, y = data
    losses = jnp.logaddexp(-y * (X @ w), jnp.zeros_like(y))
    return hyperparams["scale"] * (jnp.sum(losses) + 0.5 * hyperparams["rho"] * jnp.sum(w**2))


def _solve_logistic(rho: np.ndarray, scale: np.ndarray, start: np.ndarray, X: np.ndarray, y: np.ndarray) -> np.ndarray:
    gradient = lambda w: -X.T @ (y / (1 + np.exp(y * (X @ w)))) + rho * w
    return witnesses.proximal_gradient(gradient, witnesses.no_prox, np.linalg.norm(X, 2) ** 2 / 4 + rho, start)


LOGISTIC = Problem(
    "logistic regression",
    FunctionObjective(logistic_loss, {"scale": 1.0, "rho": 0.5}, start=np.zeros(FEATURES)),
    (jnp.asarray(SIGNALS), jnp.asarray(np.sign(_rng.normal(size=SAMPLES)))),
    _solve_logistic,
    {"any", "smooth"},
    powers=(0, 2, 0, 0, 0),
)


class Features(eqx.Module):
    """Hyperparameters with a function among the leaves: x ↦ activation(scale · x)."""

    scale: Float[Array, " features"]
    activation: Callable[[Array], Array]


class Readout(eqx.Module):
    """Params with a function and a string among the leaves."""

    weight: Float[Array, "targets features"]
    bias: Float[Array, " targets"]
    squash: Callable[[Array], Array]
    name: str


def module_loss(features: Features, readout: Readout, data: tuple[Array, Array]) -> Array:
    """½ ‖W φ(x) + b − y‖² over samples + ½ (‖W‖² + ‖b‖²) / 2, φ a composition of both modules' functions."""
    X, y = data
    phi = readout.squash(features.activation(X * jnp.broadcast_to(features.scale, X.shape)))
    predictions = phi @ readout.weight.T
    residual = predictions + jnp.broadcast_to(readout.bias, predictions.shape) - y
    return 0.5 * jnp.sum(residual**2) + 0.25 * (jnp.sum(readout.weight**2) + jnp.sum(readout.bias**2))


def _solve_modules(scale: np.ndarray, *rest: np.ndarray) -> np.ndarray:
    X, y = rest[-2:]
    phi = np.hstack([np.tanh(np.sin(scale * X)), np.ones((len(X), 1))])
    both = np.linalg.solve(phi.T @ phi + 0.5 * np.eye(phi.shape[1]), phi.T @ y).T
    return np.concatenate([both[:, :-1].ravel(), both[:, -1]])


MODULES = Problem(
    "Equinox modules",
    FunctionObjective(
        module_loss,
        Features(jnp.linspace(0.5, 1.5, FEATURES), jnp.sin),
        start=Readout(jnp.zeros((TARGETS, FEATURES)), jnp.zeros(TARGETS), jnp.tanh, "readout"),
    ),
    (jnp.asarray(SIGNALS), jnp.asarray(_rng.normal(size=(SAMPLES, TARGETS)))),
    _solve_modules,
    {"any", "smooth"},
)

# --- A user's own function: with every penalty ------------------------------------------------------------------------


def least_squares_loss(rho: Array, Y: Array, data: tuple[Array, Array]) -> Array:
    """½ ‖A Y − B‖² + ½ rho ‖Y‖²."""
    A, B = data
    return 0.5 * jnp.sum((A @ Y - B) ** 2) + 0.5 * rho * jnp.sum(Y**2)


DESIGN, RESPONSE = _rng.normal(size=(5, 3)), 2 * _rng.normal(size=(5, 4))


def penalized(
    penalty: AbstractPenalty, prox: Callable[..., np.ndarray], powers: tuple[int, ...], kinds: set
) -> Problem:
    """Least squares with a penalty; `prox(Y, stepsize, *the penalty's own leaves)` in NumPy."""

    def solve(rho: np.ndarray, *rest: np.ndarray) -> np.ndarray:
        *own, start, A, B = rest
        gradient = lambda Y: A.T @ (A @ Y - B) + rho * Y
        lipschitz = np.linalg.norm(A, 2) ** 2 + rho
        return witnesses.proximal_gradient(gradient, lambda Y, s: prox(Y, s, *own), lipschitz, start).ravel()

    objective = FunctionObjective(least_squares_loss, 0.1, start=np.zeros((3, 4)), nonsmooth=penalty)
    data = (jnp.asarray(DESIGN), jnp.asarray(RESPONSE))
    powers = (2, *powers, 0, 1, 1)
    return Problem(type(penalty).__name__, objective, data, solve, {"any", *kinds}, powers=powers)


PENALIZED = [
    penalized(L1(2.0), lambda Y, s, l1: witnesses.soft_threshold(Y, s * l1), (2,), set()),
    penalized(
        ElasticNet(2.0, 1.0), lambda Y, s, l1, l2: witnesses.soft_threshold(Y, s * l1) / (1 + s * l2), (2, 2), set()
    ),
    penalized(GroupL1(5.0), lambda Y, s, strength: witnesses.group_threshold(Y, s * strength), (2,), set()),
    penalized(Box(-0.4, 0.6), lambda Y, s, low, high: np.clip(Y, low, high), (0, 0), {"constraint"}),
    penalized(NonNegative(), lambda Y, s: np.maximum(Y, 0), (), {"constraint"}),
    penalized(Simplex(2.0), lambda Y, s, total: witnesses.onto_simplices(Y, total), (0,), {"constraint", "simplex"}),
    penalized(UnitBall(), lambda Y, s: witnesses.onto_balls(Y), (), {"constraint"}),
]

# --- Models: elastic net, sparse logistic regression, multiclass SVM --------------------------------------------------


def elastic_net_weights(l1: np.ndarray, l2: np.ndarray, X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A row for each target, raveled."""
    return witnesses.proximal_gradient(
        lambda W: (X @ W.T - y).T @ X / len(X),
        lambda W, s: witnesses.soft_threshold(W, s * l1) / (1 + s * l2),
        np.linalg.norm(X, 2) ** 2 / len(X),
        np.zeros((*y.shape[1:], X.shape[1])),
    ).ravel()


def logistic_weights(l2: np.ndarray, l1: np.ndarray, X: np.ndarray, y: np.ndarray) -> np.ndarray:
    return witnesses.proximal_gradient(
        lambda w: -X.T @ (y / (1 + np.exp(y * (X @ w)))) / len(X) + l2 * w,
        lambda w, s: witnesses.soft_threshold(w, s * l1),
        np.linalg.norm(X, 2) ** 2 / (4 * len(X)) + np.max(l2),
        np.zeros(X.shape[1]),
    )


def svm_duals(theta: np.ndarray, X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    return witnesses.proximal_gradient(
        lambda beta: Y - X @ (X.T @ (Y - beta)) / theta,
        lambda beta, s: witnesses.onto_simplices(beta, 1.0),
        np.linalg.norm(X, 2) ** 2 / theta,
        np.full(Y.shape, 1 / Y.shape[1]),
    ).ravel()


_models = np.random.default_rng(1)
ELASTIC_NET = Problem(
    "elastic net regression",
    ElasticNetRegression(l1=0.2, l2=0.1),
    (jnp.asarray(SIGNALS), jnp.asarray(2 * _models.normal(size=(SAMPLES, 2)))),
    elastic_net_weights,
    {"any", "least squares"},
    powers=(2, 2, 1, 1),
)
SPARSE_LOGISTIC = Problem(
    "LogisticRegression",
    LogisticRegression(l2=0.1, l1=np.linspace(0.02, 0.2, FEATURES)),
    (jnp.asarray(SIGNALS), jnp.asarray(np.sign(_models.normal(size=SAMPLES)))),
    logistic_weights,
    {"any"},
)
SVM = Problem(
    "MulticlassSVM",
    MulticlassSVM(4.0),
    (jnp.asarray(SIGNALS[:5]), jnp.asarray(np.eye(3)[[0, 1, 2, 0, 1]])),
    svm_duals,
    {"any", "constraint", "simplex"},
)
MODELS = [ELASTIC_NET, SPARSE_LOGISTIC, SVM]

PROBLEMS = [RIDGES[1], CODES, ROBUST_CODES, CLAMP, LOGISTIC, MODULES, *PENALIZED, *MODELS]
#: What solvers can serve, by the names of `Problem.kinds`.
KINDS = {"any", "smooth", "exact", "least squares", "codes", "constraint", "simplex"}


def by_name(record: Any) -> str:
    """For `pytest.mark.parametrize(ids=...)`."""
    return record.name
