"""Bad input names the argument, what came, and what to do: a `ValueError` where it is known, else an error of the run.

`SAYS` is a piece of each message's three parts.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from tests.compiling import compiled
from tests.problems import CODES, RIDGES

O, S = bl.objectives, bl.solvers
X, y = RIDGES[0].data
D, signals = CODES.objective.dictionary, CODES.data
RIDGE, CODING = O.Ridge(0.3), CODES.objective
SMOOTH = O.FunctionObjective(lambda h, p, d: jnp.sum((p - d) ** 2), start=jnp.zeros(6))
hole = X.at[1, 2].set(jnp.nan)
single = lambda x: x.astype(jnp.float32)

MAKING = {
    "negative alpha": (lambda: O.Ridge(-0.1), "`alpha` must be finite and not negative, got -0.1", "Pass a value"),
    "one negative alpha": (lambda: O.Ridge([1.0, -2.0]), "`alpha` .* not negative, got -2.0 at index", "Pass a value"),
    "NaN alpha": (lambda: O.Ridge(jnp.nan), "`alpha` must be finite", "got nan"),
    "infinite alpha": (lambda: O.Ridge(np.inf), "`alpha` must be finite", "got inf"),
    "matrix alpha": (lambda: O.Ridge(np.eye(2)), "`alpha` must be a number or one for each feature", r"\(2, 2\)"),
    "integer alphas": (lambda: O.Ridge(np.array([1, 2])), "`alpha` must have a floating dtype, got int64", "astype"),
    "text alpha": (lambda: O.Ridge("large"), "`alpha` must be an array of numbers, got str", ""),
    "complex alpha": (lambda: O.Ridge(1j), "`alpha` must be real, got dtype complex", "Pass real"),
    "negative l1": (lambda: O.SparseCoding(D, -1.0), "`l1` must be finite and not negative, got -1.0", "Pass a value"),
    "negative l2": (lambda: O.SparseCoding(D, 1.0, -1.0), "`l2` must be finite and not negative", "got -1.0"),
    "l1 per atom": (lambda: O.SparseCoding(D, np.ones(10)), "`l1` must have 0 axes, got shape", r"\(10,\)"),
    "no atoms": (lambda: O.SparseCoding(D[:0], 1.0), "`dictionary` is empty", r"\(0, 6\)(.|\n)*at least one"),
    "one atom as a vector": (
        lambda: O.SparseCoding(D[0], 1.0),
        r"`dictionary` must have shape \(atoms, features\)",
        "",
    ),
    "integer dictionary": (
        lambda: O.SparseCoding(np.eye(3, dtype=int), 1.0),
        "`dictionary` must have a floating",
        "int",
    ),
    "NaN dictionary": (lambda: O.SparseCoding(D.at[0, 0].set(jnp.nan), 1.0), "`dictionary` has 1 entries that are", ""),
    "loss of another kind": (
        lambda: O.SparseCoding(D, 1.0, loss="huber"),
        "`loss` must be None or a function",
        "huber",
    ),
    "mu of zero": (lambda: O.Clamp(np.ones(2), mu=0.0), "`mu` must be finite and positive, got 0.0", "Pass a value"),
    "negative mu": (lambda: O.Clamp(np.ones(2), mu=-1.0), "`mu` must be finite and positive, got -1.0", ""),
    "infinite z0": (lambda: O.Clamp(np.array([1, np.inf]), mu=1.0), "`z0` has 1 entries that are NaN or infinite", ""),
    "negative strength": (lambda: bl.prox.L1(-1.0), "`strength` must be finite and not negative, got -1.0", ""),
    "no steps": (lambda: S.LBFGS(max_steps=0), "`max_steps` must be a whole number of at least 1, got 0", ""),
    "half a step": (lambda: S.ProximalGradient(max_steps=1.5), "`max_steps` must be a whole number", "got 1.5"),
    "zero tol": (lambda: S.LBFGS(tol=0.0), "`tol` must be finite and positive, got 0.0", ""),
    "NaN tol": (lambda: S.SparseCoder(tol=jnp.nan), "`tol` must be finite and positive, got nan", ""),
    "negative step": (lambda: S.GradientDescent(stepsize=-1.0), "`stepsize` must be finite and positive, got -1", ""),
    "no history": (lambda: S.LBFGS(history_size=0), "`history_size` must be a whole number of at least 1, got 0", ""),
    "negative ridge": (lambda: S.AndersonAcceleration(ridge=-1.0), "`ridge` must be finite and positive", "got -1"),
    "NaN start": (lambda: O.FunctionObjective(jnp.sum, start=hole), "`start` has 1 entries that are NaN", ""),
    "16 bits": (lambda: O.SparseCoding(D.astype(jnp.float16), 0.1), "`dictionary` has dtype float16", "astype"),
    "unknown option": (
        lambda: bl.Implicit(on_failure="hope"),
        "`on_failure` must be one of .*'nan'.* got 'hope'",
        "",
    ),
}

SOLVING = {
    "class as objective": (
        lambda: bl.argmin(O.Ridge, (X, y)),
        "`objective` does not fit: got the class Ridge",
        "wanted",
    ),
    "function as objective": (lambda: bl.argmin(jnp.sum, X), "`objective` does not fit", "FunctionObjective"),
    "class as solver": (lambda: bl.argmin(RIDGE, (X, y), solver=S.LBFGS), "`solver` .* the class LBFGS", r"LBFGS\(\)"),
    "text as solver": (lambda: bl.argmin(RIDGE, (X, y), solver="lbfgs"), "`solver` does not fit: got 'str'", ""),
    "class as diff": (
        lambda: bl.argmin(RIDGE, (X, y), diff=bl.Implicit),
        "`diff` .* the class Implicit",
        r"Implicit\(\)",
    ),
    "X alone": (lambda: bl.argmin(RIDGE, X), r"`data` must be a pair \(X, y\), got", ""),
    "other number of targets": (
        lambda: bl.argmin(RIDGE, (X, y[:5])),
        "`y` has 5 samples, but `X` has 8",
        "Pass one row",
    ),
    "X a vector": (lambda: bl.argmin(RIDGE, (y, y)), r"`X` must have shape \(samples, features\), got \(8,\)", ""),
    "no samples": (lambda: bl.argmin(RIDGE, (X[:0], y[:0])), r"`X` is empty.*\(0, 6\)", "at least one"),
    "no codes": (lambda: bl.argmin(CODING, signals[:0]), r"`X` is empty.*\(0, 6\)", "at least one"),
    "integers": (
        lambda: bl.argmin(CODING, jnp.ones((8, 6), int)),
        "`X` must have a floating dtype, got int64",
        "astype",
    ),
    "integer targets": (lambda: bl.argmin(RIDGE, (X, y.astype(int))), "`y` must have a floating dtype", "astype"),
    "list": (lambda: bl.argmin(CODING, [[1.0]]), r"`X` must be an array of shape \(samples, features\), got list", ""),
    "32 bits to 64": (
        lambda: bl.argmin(CODING, single(signals)),
        "`X` has dtype float32, but .* has float64",
        "astype",
    ),
    "targets of 32 bits": (lambda: bl.argmin(RIDGE, (X, single(y))), "`y` has dtype float32", "astype"),
    "features": (lambda: bl.argmin(CODING, signals[:, :4]), "`X` has 4 features, but the atoms .* have 6", "are rows"),
    "alphas": (lambda: bl.argmin(O.Ridge(np.ones(4)), (X, y)), "`alpha` has 4 entries, but `X` has 6 features", ""),
    "NaN": (lambda: bl.argmin(RIDGE, (hole, y)), r"`data\[0\]` has 1 entries that are NaN", "Remove or impute them"),
    "NaN samples": (lambda: bl.argmin(CODING, hole), "`data` has 1 entries that are NaN", "Remove or impute them"),
    "infinity": (lambda: bl.argmin(SMOOTH, y[:6].at[0].set(jnp.inf)), "`data` has 1 entries that are NaN or inf", ""),
    "init of another shape": (
        lambda: bl.argmin(CODING, signals, init=signals),
        r"`init` must be like float64\[8, 10\]",
        "",
    ),
    "init of 32 bits": (
        lambda: bl.argmin(CODING, signals, init=jnp.zeros((8, 10), jnp.float32)),
        r"`init` must be like float64\[8, 10\]",
        "got float32",
    ),
    "integer start": (
        lambda: bl.argmin(O.FunctionObjective(lambda h, p, d: jnp.sum(p), start=jnp.zeros(3, int))),
        "`init` has no floating arrays to optimize, got",
        "Start from",
    ),
    "not a number": (lambda: bl.argmin(O.FunctionObjective(lambda h, p, d: p, start=y)), "must return a number", "sum"),
    "init of 16 bits": (
        lambda: bl.argmin(O.FunctionObjective(lambda h, p, d: jnp.sum(p), start=jnp.zeros(3, jnp.bfloat16))),
        "`init` has dtype bfloat16",
        "astype",
    ),
    "NaN in init": (lambda: bl.argmin(SMOOTH, y[:6], init=y[:6] * jnp.nan), "`init` has 6 entries that are NaN", ""),
}


@pytest.mark.parametrize(("call", "what", "more"), [*MAKING.values(), *SOLVING.values()], ids=[*MAKING, *SOLVING])
def test_says_what_is_wrong(call, what: str, more: str):
    with pytest.raises(ValueError, match=f"(?s){what}.*{more}"):
        call()


# What is traced is judged when it runs.
TRACED = {
    "negative alpha": (lambda a: (O.Ridge(a), (X, y)), -0.1, "`alpha` must be finite and not negative"),
    "negative l1": (lambda l1: (O.SparseCoding(D, l1), signals), -0.1, "`l1` must be finite and not negative"),
    "NaN l2": (lambda l2: (O.SparseCoding(D, 0.3, l2), signals), jnp.nan, "`l2` must be finite"),
    "NaN in X": (lambda bad: (RIDGE, (X.at[1, 2].set(bad), y)), jnp.nan, r"`data\[0\]` has entries that are NaN"),
    "mu of zero": (lambda mu: (O.Clamp(y, mu), None), 0.0, "`mu` must be finite and positive"),
}


@pytest.mark.parametrize(("make", "value", "message"), TRACED.values(), ids=TRACED)
def test_traced_values_raise_when_they_run(make, value: float, message: str):
    solve = compiled(lambda value: jax.tree.leaves(bl.argmin(*make(value)).params))
    with pytest.raises(eqx.EquinoxRuntimeError, match=message):
        jax.block_until_ready(solve(jnp.asarray(value)))


@pytest.mark.parametrize(("make", "value", "message"), TRACED.values(), ids=TRACED)
def test_traced_values_are_a_result_without_throw(make, value: float, message: str):
    @compiled
    def solve(value):
        def of(value):
            solution = bl.argmin(*make(value), throw=False)
            return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(solution.params)), solution.result

        (total, result), slope = jax.value_and_grad(of, has_aux=True)(value)
        return total, result, slope, jax.jvp(lambda v: of(v)[0], (value,), (jnp.ones_like(value),))[1]

    total, result, slope, pushed = solve(jnp.asarray(value))
    assert result == bl.RESULTS.invalid_input
    assert np.all(np.isnan([total, slope, pushed]))


def test_good_traced_values_pass():
    solve = compiled(lambda value: bl.argmin(O.Ridge(value), (X, y)))
    assert solve(jnp.asarray(0.1)).result == bl.RESULTS.successful


def test_options_may_be_given_within_jit():
    solve = compiled(lambda tol: bl.argmin(RIDGE, (X, y), solver=S.GradientDescent(tol=tol, stepsize=0.1)).result)
    assert solve(jnp.asarray(1e-6)) == bl.RESULTS.successful
    static = compiled(lambda: bl.argmin(RIDGE, (X, y), solver=S.GradientDescent(tol=1e-6, stepsize=0.1)).result)
    assert static() == bl.RESULTS.successful
    with pytest.raises(ValueError, match="`tol` must be finite and positive"):
        compiled(lambda: bl.argmin(RIDGE, (X, y), solver=S.GradientDescent(tol=-1e-6)).result)()
