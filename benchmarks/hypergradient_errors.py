"""How exact hypergradients are, by every way of differentiating, in 32 and 64 bits, on four inner problems.

The error is that of the gradient of a held-out loss in all hyperparameters, relative, against the 64-bit hypergradient
of the exact solution (a Newton step after a solve to 1e-12). Inner solvers run at their default tolerance: 1e-5 in 32
bits, 1e-8 in 64; those of unrolled, truncated and one-step derivatives take 1,000 steps at most. Quick: the first
problem only.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import PyTree
from tqdm import tqdm

import bilevel as bl
from benchmarks.results import Results, Rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

O, S = bl.objectives, bl.solvers


class Problem(NamedTuple):
    """An inner problem in 64 bits, an outer loss, and the solver that its iterative ways of differentiating run on."""

    name: str
    objective: O.AbstractObjective
    data: PyTree
    outer_loss: Callable[[Any, PyTree, PyTree], Any]
    solver: S.AbstractSolver


def held_out(objective: Any, params: PyTree, data: PyTree) -> Any:
    """A smooth function of the predictions on other samples."""
    X = jnp.cos(data[0])
    predictions = X @ (params.weight if isinstance(params, O.LinearModel) else params)
    return jnp.mean(jnp.logaddexp(predictions, -predictions) + 0.3 * predictions)


def of_codes(objective: Any, codes: PyTree, data: PyTree) -> Any:
    """A smooth function of linear outputs of the codes."""
    outputs = codes @ jnp.cos(jnp.arange(codes.shape[1], dtype=codes.dtype))
    return jnp.mean(jnp.logaddexp(outputs, -outputs) + 0.3 * outputs)


def problems() -> Iterator[Problem]:
    rng = np.random.default_rng(0)
    X, w = rng.normal(size=(200, 50)), rng.normal(size=50)
    y = X @ w + rng.normal(size=200)
    smooth, proximal = S.GradientDescent(max_steps=1000), S.ProximalGradient(max_steps=1000)
    tall = (jnp.asarray(X), jnp.asarray(y))
    yield Problem("ridge", O.Ridge(np.full(50, 0.1)), tall, held_out, smooth)
    labels = (jnp.asarray(X), jnp.asarray(np.sign(y)))
    yield Problem("logistic regression", O.LogisticRegression(l2=0.01), labels, held_out, smooth)
    wide = rng.normal(size=(100, 400))
    sparse = wide[:, :10] @ rng.normal(size=10) + 0.1 * rng.normal(size=100)
    yield Problem("elastic net, 100 x 400", O.ElasticNet(0.2, 0.01), (wide, sparse), held_out, proximal)
    D = rng.normal(size=(64, 32))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    samples = rng.normal(size=(300, 32))
    samples /= np.linalg.norm(samples, axis=1, keepdims=True)
    yield Problem("sparse codes, 300 x 64", O.SparseCoding(D, 0.15, 0.01), jnp.asarray(samples), of_codes, proximal)


def ways(dtype: Any) -> dict[str, bl.AbstractDifferentiation]:
    """Every way of differentiating; iterative linear solvers to a hundred roundings."""
    tolerance = 100 * float(jnp.finfo(dtype).eps)
    options: dict[str, float] = dict(rtol=tolerance, atol=tolerance)
    return {
        "Implicit (direct or CG)": bl.Implicit(),
        "Implicit, CG": bl.Implicit(lx.CG(**options)),
        "Implicit, GMRES": bl.Implicit(lx.GMRES(**options)),
        "Implicit, BiCGStab": bl.Implicit(lx.BiCGStab(**options)),
        "Implicit, normal CG": bl.Implicit(lx.Normal(lx.CG(**options))),
        "Implicit, Neumann, 20 terms": bl.Implicit(bl.Neumann(20)),
        "Implicit, ridge 1e-4": bl.Implicit(ridge=1e-4),
        "hypergradient, corrected": bl.Implicit(on_failure="ignore"),
        "Unrolled": bl.Unrolled(),
        "Truncated, 20 steps": bl.Truncated(20),
        "OneStep": bl.OneStep(),
        "Shine (on L-BFGS)": bl.Shine(),
        "JaxoptImplicit": bl.JaxoptImplicit(),
    }


def cast(tree: PyTree, dtype: Any) -> PyTree:
    """The floating leaves in another precision."""
    tree = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, tree)
    return jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, tree)


def gradient_of(problem: Problem, name: str, diff: bl.AbstractDifferentiation, dtype: Any) -> PyTree:
    objective, data = cast((problem.objective, problem.data), dtype)
    if name.startswith("hypergradient"):
        options: dict[str, Any] = dict(correct=True, on_failure="ignore")
        return bl.hypergradient(problem.outer_loss, objective, data, **options).gradient
    solver = S.LBFGS() if isinstance(diff, bl.Shine) else problem.solver
    moving, still = eqx.partition(objective, eqx.is_inexact_array)

    @eqx.filter_jit
    def gradient(moving: PyTree, data: PyTree) -> PyTree:
        def loss(moving: PyTree) -> Any:
            objective = eqx.combine(moving, still)
            chosen = None if name.startswith("Implicit") else solver
            return problem.outer_loss(
                objective, bl.argmin(objective, data, solver=chosen, diff=diff, throw=False).params, data
            )

        return jax.grad(loss)(moving)

    return gradient(moving, data)


def reference_of(problem: Problem) -> np.ndarray:
    objective, data = cast((problem.objective, problem.data), jnp.float64)
    tight = S.ProximalGradient(tol=1e-12, max_steps=100_000)
    options: dict[str, Any] = dict(solver=tight, correct=True, on_failure="ignore")
    done = bl.hypergradient(problem.outer_loss, objective, data, **options)
    assert float(done.certificate.relative_error) < 1e-11, done.certificate
    return flat(done.gradient)


def flat(tree: PyTree) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])


def run(quick: bool) -> Results:
    rows = {name: {"way of differentiating": name} for name in ways(jnp.float64)}
    chosen = list(problems())[: 1 if quick else None]
    cells = [(p, dtype, name) for p in chosen for dtype in ("float32", "float64") for name in rows]
    references: dict[str, np.ndarray] = {}
    for problem, dtype, name in tqdm(cells, desc="hypergradient errors"):
        if problem.name not in references:
            references[problem.name] = reference_of(problem)
        reference = references[problem.name]
        entry: Any = "not served"
        with contextlib.suppress(ValueError):
            found = flat(gradient_of(problem, name, ways(dtype)[name], dtype))
            entry = float(np.linalg.norm(found - reference) / np.linalg.norm(reference))
        rows[name][f"{problem.name}, {dtype}"] = entry
    table: Rows = list(rows.values())
    return Results({"Relative errors": table}, {"Relative errors of hypergradients": draw(table)}, "32 and 64 bits")


def draw(rows: Rows) -> "Figure":
    """The table, in shades."""
    names, columns = [row["way of differentiating"] for row in rows], list(rows[0])[1:]
    digits = [[-np.log10(max(e, 1e-16)) if isinstance(e := row[c], float) else np.nan for c in columns] for row in rows]
    figure, ax = plt.subplots(figsize=(3.2 + 0.95 * len(columns), 6), layout="constrained")
    image = ax.imshow(np.clip(digits, 0, None), cmap="viridis", vmin=0, vmax=16, aspect="auto")
    ax.set_yticks(range(len(names)), names)
    labels = [column.replace(", ", "\n").replace(" regression", "\nregression") for column in columns]
    ax.set_xticks(range(len(columns)), labels, fontsize=8)
    for (i, j), value in np.ndenumerate(np.asarray(digits)):
        text = "–" if np.isnan(value) else f"{max(value, 0):.0f}"
        ax.text(j, i, text, ha="center", va="center", color="black" if np.isnan(value) or value > 9 else "white")
    figure.colorbar(image, label="correct digits of the hypergradient")
    return figure
