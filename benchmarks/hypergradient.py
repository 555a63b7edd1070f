"""How long a value and its gradient through sparse codes take, by this library and by JAXopt, and how right they are.

A logistic loss of the codes of 2,994 patches of a photograph, 12 × 12, is differentiated with respect to a dictionary
of 256 atoms, l1 = 0.15 and l2 = 0.01. Each takes turns with ours; seconds are medians without compilation, "first call"
is with it. The error is relative, against the gradient by dense linear algebra in 64 bits, sample by sample in NumPy,
at codes whose duality gaps are below 1e-14. "Backward" is what the gradient takes beyond the value. An epoch of
training is 6 steps on 499 patches each: codes, gradient, Adam, unit atoms; this library's is `Trainer` with warm starts
in its second epoch, JAXopt's the same steps around its `ProximalGradient(implicit_diff=True)`, from the last codes too.

JAXopt's plain rows are JAXopt as it comes: its adjoint is conjugate gradient on the normal equations to a tolerance of
its own, for at most ten steps an entry of the codes. "Adjoint 30" limits it to 30 steps.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax

import bilevel as bl
from benchmarks.figures import ranking
from benchmarks.measure import ATOMS, L1, L2, Patches, interleaved, patches, relative_gaps, stepsize_of
from benchmarks.results import Results, Rows, tabulate

SAMPLES, BATCH = 2994, 499


def task_loss(codes: Any, head: Any, signs: Any) -> Any:
    return jnp.mean(jnp.logaddexp(jnp.zeros_like(signs), -signs * (codes @ head)))


def codes_by_bilevel(D: Any, X: Any, init: Any, solver: Any = None, diff: Any = None) -> Any:
    coding = bl.objectives.SparseCoding(D, L1, L2)
    options: dict[str, Any] = dict(solver=solver, diff=bl.Implicit() if diff is None else diff)
    return bl.argmin(coding, X, init=init, throw=False, **options).params


def codes_by_jaxopt(
    D: Any, X: Any, init: Any, stepsize: float, steps: int, implicit: bool = True, adjoint_steps: int | None = None
) -> Any:
    """`adjoint_steps` limits its conjugate gradient on the normal equations: else ten for each entry of the codes."""
    loss = lambda codes, D, X: 0.5 * jnp.sum((X - codes @ D) ** 2) + 0.5 * L2 * jnp.sum(codes**2)
    options: dict[str, Any] = dict(maxiter=steps, tol=0.0, implicit_diff=implicit, unroll=not implicit)
    if adjoint_steps is not None:
        options["implicit_diff_solve"] = functools.partial(jaxopt.linear_solve.solve_normal_cg, maxiter=adjoint_steps)
    solver = jaxopt.ProximalGradient(loss, jaxopt.prox.prox_lasso, stepsize=stepsize, **options)
    return solver.run(init, jnp.asarray(L1, X.dtype), D=D, X=X).params


def exact_gradient(problem: Patches, head: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """In the dictionary:  Σ over samples of  β rᵀ − c (Dᵀβ)ᵀ  with  (D_S D_Sᵀ + l2 I) β_S = v_S  for a slope v."""
    D, X = problem.D, problem.X
    C = np.asarray(jax.jit(codes_by_bilevel)(jnp.asarray(D), jnp.asarray(X), jnp.zeros((len(X), len(D)))))
    assert np.max(relative_gaps(problem, C)) <= 1e-14
    slopes = -signs / (1 + np.exp(signs * (C @ head))) / len(X)
    gradient = np.zeros_like(D)
    for x, c, slope in zip(X, C, slopes, strict=True):
        S = np.flatnonzero(c)
        beta = np.linalg.solve(D[S] @ D[S].T + L2 * np.eye(len(S)), slope * head[S])
        gradient[S] += np.outer(beta, x - c @ D) - np.outer(c[S], beta @ D[S])
    return gradient


def gradients(dtype: Any, quick: bool, repeats: int) -> Rows:
    problem = patches(600 if quick else SAMPLES)
    head, signs = np.random.default_rng(2).normal(size=len(problem.D)), np.sign(problem.X[:, 0])
    reference = exact_gradient(problem, head, signs)
    X, D, head, signs = (jnp.asarray(x, dtype) for x in (*problem, head, signs))
    zero, stepsize = jnp.zeros((len(X), len(D)), dtype), stepsize_of(problem.D)
    ways: dict[str, Callable[..., Any]] = {
        "bilevel": codes_by_bilevel,
        "JAXopt implicit, 100 steps": lambda D, X, init: codes_by_jaxopt(D, X, init, stepsize, 100),
        "JAXopt implicit, 100 steps, adjoint 30": lambda D, X, init: codes_by_jaxopt(
            D, X, init, stepsize, 100, adjoint_steps=30
        ),
        "JAXopt unrolled, 100 steps": lambda D, X, init: codes_by_jaxopt(D, X, init, stepsize, 100, implicit=False),
    }
    if not quick:
        ways["JAXopt implicit, 1000 steps"] = lambda D, X, init: codes_by_jaxopt(D, X, init, stepsize, 1000)
        solver = bl.solvers.ProximalGradient(max_steps=100, tol=1e-30)
        unrolled = bl.Unrolled()
        ways["bilevel Unrolled, 100 steps"] = lambda *args: codes_by_bilevel(*args, solver=solver, diff=unrolled)
    values, both, memory, backward = {}, {}, {}, {}
    for name, codes in ways.items():
        loss = lambda D, X, init, head, signs, codes=codes: task_loss(codes(D, X, init), head, signs)
        args = (D, X, zero, head, signs)
        value, pair = jax.jit(loss), jax.jit(jax.value_and_grad(loss))
        values[name] = lambda value=value, args=args: value(*args)
        both[name] = lambda pair=pair, args=args: pair(*args)
        memory[name] = jax.jit(jax.value_and_grad(loss)).lower(*args).compile().memory_analysis().temp_size_in_bytes
    # Each in turns with ours alone, as what it leaves behind in memory weighs on the next.
    ours, rivals = "bilevel", ("JAXopt implicit, 100 steps", "JAXopt implicit, 100 steps, adjoint 30")
    pairs = {name: interleaved({ours: both[ours], name: both[name]}, repeats) for name in both if name != ours}
    timed = {ours: pairs[rivals[0]][ours], **{name: pair[name] for name, pair in pairs.items()}}
    ratio = {ours: 1.0, **{name: pair[name].median / pair[ours].median for name, pair in pairs.items()}}
    for name in (ours, *rivals):
        pair = interleaved({"value": values[name], "both": both[name]}, repeats)
        value = pair["value"].median
        backward[name] = (pair["both"].median - value) / value
    rows = []
    for name in ways:
        t = timed[name]
        found = np.asarray(t.result[1], np.float64)
        rows.append(
            {
                "way": name,
                "precision": jnp.dtype(dtype).name,
                "value and gradient, s": t.median,
                "spread": t.spread,
                "times ours": ratio[name],
                "backward / value": backward.get(name),
                "first call, s": t.first,
                "temporary MiB": memory[name] / 2**20,
                "error": float(np.linalg.norm(found - reference) / np.linalg.norm(reference)),
            }
        )
    return rows


class Training(NamedTuple):
    """`epoch(state)` is the next state; `read(state)` is the pair of dictionary and head; `state`, the first."""

    epoch: Callable[[Any], Any]
    read: Callable[[Any], tuple[Any, Any]]
    state: Any


class Task(NamedTuple):
    """Samples and signs in batches; where dictionary and head start; the outer optimizer."""

    X: Any
    signs: Any
    D: Any
    head: Any
    batch: int
    optimizer: optax.GradientTransformation


def by_bilevel(task: Task) -> Training:
    problem = bl.BilevelProblem(
        lambda variables, codes, batch: task_loss(codes, variables.task, batch[1]),
        bl.Variables(bl.objectives.SparseCoding(task.D, L1, L2), task=task.head),
        inner_data=lambda batch: batch[0],
        train=lambda variables: (variables.objective.dictionary, variables.task),
        constraints=[bl.Constrained(lambda variables: variables.objective.dictionary, bl.prox.UnitSphere())],
    )
    trainer, data = bl.Trainer(problem, task.optimizer, batch_size=task.batch), (task.X, task.signs)

    @eqx.filter_jit
    def epoch(state: Any, data: Any) -> Any:
        arrays, static = eqx.partition(state, eqx.is_array)
        step = lambda arrays, _: (eqx.filter(trainer.step(eqx.combine(arrays, static), data)[0], eqx.is_array), None)
        return eqx.combine(jax.lax.scan(step, arrays, length=len(data[0]) // task.batch)[0], static)

    read = lambda state: (state.variables.objective.dictionary, state.variables.task)
    return Training(lambda state: epoch(state, data), read, trainer.init(data, jax.random.key(0)))


def by_jaxopt(task: Task, stepsize: float, inner_steps: int, adjoint_steps: int | None = None) -> Training:
    """The same steps, written around JAXopt's `ProximalGradient`, each from the last codes of its samples."""
    count = len(task.X) // task.batch

    @jax.jit
    def epoch(trained: Any, state: Any, codes: Any, X: Any, signs: Any) -> Any:
        batches = tuple(x.reshape(count, task.batch, *x.shape[1:]) for x in (X, signs, codes))

        def step(carry: Any, batch: Any) -> Any:
            (trained, state), (X, signs, init) = carry, batch

            def loss(trained: Any) -> Any:
                codes = codes_by_jaxopt(trained[0], X, init, stepsize, inner_steps, adjoint_steps=adjoint_steps)
                return task_loss(codes, trained[1], signs), codes

            gradient, codes = jax.grad(loss, has_aux=True)(trained)
            updates, state = task.optimizer.update(gradient, state)
            D, head = optax.apply_updates(trained, updates)
            return ((D / jnp.linalg.norm(D, axis=1, keepdims=True), head), state), codes

        (trained, state), after = jax.lax.scan(step, (trained, state), batches)
        return trained, state, after.reshape(codes.shape)

    start = (task.D, task.head)
    zero = jnp.zeros((len(task.X), len(task.D)), task.X.dtype)
    advance = lambda state: epoch(*state, task.X, task.signs)
    return Training(advance, lambda state: state[0], (start, task.optimizer.init(start), zero))


def epochs(quick: bool, repeats: int) -> Rows:
    problem = patches(2 * BATCH if quick else 6 * BATCH)
    X, D = (jnp.asarray(x, jnp.float32) for x in problem)
    head = jnp.asarray(np.random.default_rng(2).normal(size=len(D)), jnp.float32)
    task = Task(X, jnp.sign(X[:, 0]), D, head, BATCH, optax.adam(1e-3))
    stepsize = stepsize_of(problem.D)
    trainings = {
        "bilevel": by_bilevel(task),
        "JAXopt, 100 steps": by_jaxopt(task, stepsize, 100),
        "JAXopt, 100 steps, adjoint 30": by_jaxopt(task, stepsize, 100, adjoint_steps=30),
    }
    # The second epoch, which starts from the codes of the first.
    calls = {name: lambda t=t, after=t.epoch(t.state): t.read(t.epoch(after)) for name, t in trainings.items()}
    timed = interleaved(calls, repeats)
    return [
        {
            "training": name,
            "seconds an epoch": t.median,
            "spread": t.spread,
            "times ours": t.median / timed["bilevel"].median,
        }
        for name, t in timed.items()
    ]


def run(quick: bool) -> Results:
    repeats = 3 if quick else 11
    parts: dict[str, Callable[[], Rows]] = {
        "In 32 bits": lambda: gradients(jnp.float32, quick, repeats),
        "In 64 bits": lambda: gradients(jnp.float64, quick, repeats),
        "An epoch of training": lambda: epochs(quick, repeats),
    }
    tables = tabulate("hypergradient", parts)
    title = f"Value and gradient in a dictionary of {ATOMS} atoms, 32 bits"
    figure = ranking(tables["In 32 bits"], "way", "value and gradient, s", "error", title)
    return Results(tables, {"Seconds and error of value and gradient": figure}, "32 and 64 bits")
