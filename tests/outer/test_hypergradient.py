"""Hypergradients with their certificates: against the truth, estimated against true error, policies, corrections."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from sklearn.linear_model import lars_path

import bilevel as bl
from benchmarks.certificates import FAMILIES, study
from tests import witnesses
from tests.compiling import compilations, compiled
from tests.laws import error
from tests.problems import (
    CODES,
    LOGISTIC,
    MODULES,
    PENALIZED,
    RIDGES,
    Problem,
    by_name,
    codes_by_proximal_gradient,
    elastic_net_weights,
    raveled,
)

O, S = bl.objectives, bl.solvers
EXAMPLES = [RIDGES[1], CODES, MODULES, PENALIZED[0], PENALIZED[2], PENALIZED[5]]


def outer(objective, params, data):
    """Σ sin(y + 0.3) + Σ θ² / 10: through the solution, and directly."""
    through = sum(jnp.sum(jnp.sin(x + 0.3)) for x in jax.tree.leaves(eqx.filter(params, eqx.is_inexact_array)))
    direct = sum(jnp.sum(x**2) for x in jax.tree.leaves(eqx.filter(objective, eqx.is_inexact_array)))
    return through + 0.1 * direct


@compiled
def by_argmin(objective, data, diff):
    """The gradients in objective and data of `outer` after an `argmin`."""
    moving, still = eqx.partition((objective, data), eqx.is_inexact_array)

    def loss(moving):
        objective, data = eqx.combine(moving, still)
        return outer(objective, bl.argmin(objective, data, diff=diff, throw=False).params, data)

    return jax.grad(loss)(moving)


certified_sum = compiled(functools.partial(bl.hypergradient, lambda o, p, d: jnp.sum(p), on_failure="ignore"))
certified = compiled(functools.partial(bl.hypergradient, outer, on_failure="ignore"))


@pytest.mark.parametrize("problem", EXAMPLES, ids=by_name)
def test_is_the_gradient_through_argmin_and_certified(problem: Problem):
    # The one is forward mode transposed, the other the transpose written out.
    done = certified(problem.objective, problem.data)
    expected = by_argmin(problem.objective, problem.data, bl.Implicit())
    assert error(raveled((done.gradient, done.data_gradient)), raveled(expected)) <= 1e-12
    certificate = done.certificate
    assert certificate.result == bl.RESULTS.successful
    assert certificate.optimality <= certificate.tol == 1e-8
    assert certificate.adjoint_residual <= 1e-10 and certificate.relative_error <= 1e-5
    assert certificate.margin > 0 and certificate.at_risk == 0
    assert (certificate.samples is None) == (not problem.objective.samplewise)
    assert "estimated relative error" in str(certificate)


@pytest.mark.parametrize("problem", [RIDGES[1], CODES, LOGISTIC], ids=by_name)
def test_corrected_it_is_exact_to_rounding_from_a_rough_solution(problem: Problem):
    solver = None if problem is RIDGES[1] else S.ProximalGradient(tol=1e-5)
    exact = certified(problem.objective, problem.data, correct=True)
    plain, corrected = (certified(problem.objective, problem.data, solver=solver, correct=c) for c in (False, True))
    flat = lambda done: raveled(done.gradient)
    if problem is not RIDGES[1]:
        assert 1e-8 < error(flat(plain), flat(exact)) < 1e-2
    # Where f is quadratic to rounding; else with the square of the error.
    assert error(flat(corrected), flat(exact)) <= (1e-12 if problem in (RIDGES[1], CODES) else 1e-7)
    assert corrected.certificate.relative_error <= max(1e-12, 1e-3 * float(plain.certificate.relative_error))


@pytest.mark.parametrize("problem", [RIDGES[1], CODES, PENALIZED[0]], ids=by_name)
def test_vmap_is_a_loop(problem: Problem):
    factors = (1.0, 1.05, 1.1)
    each = [problem.replaced([a * leaf for leaf in problem.leaves]) for a in factors]
    moving, still = zip(*(eqx.partition(pair, eqx.is_inexact_array) for pair in each), strict=True)
    of_one = lambda moving: bl.hypergradient(outer, *eqx.combine(moving, still[0]), on_failure="ignore")
    together = compiled(jax.vmap(of_one))(jax.tree.map(lambda *leaves: jnp.stack(leaves), *moving))
    for k, (objective, data) in enumerate(each):
        row, alone = jax.tree.map(lambda x, k=k: x[k], together), certified(objective, data)
        assert error(row.value, alone.value) <= 1e-10
        assert (
            error(raveled((row.gradient, row.data_gradient)), raveled((alone.gradient, alone.data_gradient))) <= 1e-10
        )
        assert row.certificate.result == alone.certificate.result == bl.RESULTS.successful
        # An estimate of what is small: to its leading digits, above rounding.
        np.testing.assert_allclose(
            row.certificate.relative_error, alone.certificate.relative_error, rtol=0.1, atol=1e-12
        )


# --- Estimated against true error -------------------------------------------------------------------------------------

families = pytest.mark.parametrize("family", FAMILIES)


@families
def test_the_estimated_error_is_within_a_factor_of_ten_of_the_true_one(family: str):
    s = study(family, compiled)
    assert s.counts.sum() >= 500
    assert np.mean(s.outside(10)[s.counts]) <= 0.05
    assert np.mean(s.outside(2)[s.counts & s.settled]) <= 0.1
    # And what is outside has a reason.
    reasons = s.reasons()
    assert np.all(sum(reason.astype(int) for reason in reasons.values()) == 1)
    assert not np.any(reasons["none of these"] & s.outside(10))


@families
def test_slopes_of_the_error_against_the_inner_error(family: str):
    s = study(family, compiled)
    for errors, corrected in ((s.true, s.corrected), (s.jacobian, s.corrected_jacobian)):
        slopes = s.slopes(errors)
        assert len(slopes) >= 50 and abs(np.median(slopes) - 1) <= 0.05
        if family == "logistic":
            slopes = s.slopes(corrected)
            assert len(slopes) >= 50 and abs(np.median(slopes) - 2) <= 0.1
        else:
            # Relative to hypergradients some of which nearly vanish.
            assert np.max(corrected[s.near]) <= 1e-11 and np.median(corrected[s.near]) <= 1e-14


# --- Degenerate solutions ---------------------------------------------------------------------------------------------

ONE_MORE = np.random.default_rng(3).normal(size=(1, 6))
with_atom = lambda atom: np.concatenate([np.asarray(CODES.objective.dictionary), atom])
TWICE = with_atom(np.asarray(CODES.objective.dictionary[:1]))
LARGEST = np.max(np.abs(np.asarray(CODES.data) @ TWICE.T))
DICTIONARIES = {
    "an atom twice": (TWICE, 0.3, 0.1),
    "no l2": (with_atom(ONE_MORE), 0.3, 0.0),
    "a zero atom": (with_atom(0 * ONE_MORE), 0.3, 0.1),
    "a zero atom and no l2": (with_atom(0 * ONE_MORE), 0.3, 0.0),
    "all-zero codes": (TWICE, 2 * LARGEST, 0.1),
    "all-zero codes and no l2": (TWICE, 2 * LARGEST, 0.0),
    "the largest strength": (TWICE, LARGEST, 0.0),
}


@pytest.mark.parametrize("name", DICTIONARIES)
def test_degenerate_dictionaries_are_right(name: str):
    D, l1, l2 = DICTIONARIES[name]
    X = np.asarray(CODES.data)
    done = certified(O.SparseCoding(D, l1, l2), CODES.data)
    codes = codes_by_proximal_gradient(D, l1, l2, None, X).reshape(len(X), -1)
    *through, in_X = witnesses.code_gradients(D, l2, X, codes, np.cos(codes + 0.3))
    assert done.certificate.result == bl.RESULTS.successful
    # On a kink, and it says so.
    assert (done.certificate.margin <= 1e-15) == (name == "the largest strength")
    for found, known, leaf in zip(jax.tree.leaves(done.gradient), through, (D, l1, l2), strict=True):
        assert error(found, known + 0.2 * leaf) <= 1e-8
    assert error(done.data_gradient, in_X) <= 1e-8


def test_an_atom_twice_without_l2_has_no_derivative():
    done = certified(O.SparseCoding(TWICE, 0.3, 0.0), CODES.data)
    assert done.certificate.result == bl.RESULTS.singular_hessian
    assert np.all(np.isnan(done.gradient.l1))


DESIGN, RESPONSE = map(np.asarray, RIDGES[0].data)
with_feature = lambda feature: np.column_stack([DESIGN[:, :5], feature])
COLLINEAR = with_feature(DESIGN[:, 3])


def elastic_net_at(l1: float, l2: float, X: np.ndarray, start: np.ndarray = np.zeros(6), tol: float = 1e-8):
    arrays = jnp.asarray(X), jnp.asarray(RESPONSE)
    solver, init = S.ProximalGradient(tol=jnp.asarray(tol), max_steps=50_000), O.LinearModel(jnp.asarray(start))
    return certified(O.ElasticNet(l1, l2), arrays, solver=solver, init=init)


@pytest.mark.parametrize(
    ("X", "l1", "l2"),
    [
        (COLLINEAR, 0.05, 0.1),
        (with_feature(DESIGN[:, 0] + DESIGN[:, 1]), 0.05, 0.0),
        (with_feature(0 * DESIGN[:, 0]), 0.05, 0.0),
        (COLLINEAR, 10.0, 0.0),
    ],
    ids=["a feature twice, with l2", "a sum of features", "a zero feature", "above the largest strength"],
)
def test_degenerate_designs_are_right(X: np.ndarray, l1: float, l2: float):
    done = elastic_net_at(l1, l2, X, tol=1e-13)
    w = elastic_net_weights(np.asarray(l1), np.asarray(l2), X, RESPONSE)[None]
    assert done.certificate.result == bl.RESULTS.successful
    # Sparse codes of one sample: D = Xᵀ / √n and x = y / √n.
    D, y = X.T / np.sqrt(8), RESPONSE[None] / np.sqrt(8)
    in_D, in_l1, in_l2, in_y = witnesses.code_gradients(D, l2, y, w, np.cos(w + 0.3))
    assert error(done.gradient.l1, in_l1 + 0.2 * l1) <= 1e-8 and error(done.gradient.l2, in_l2 + 0.2 * l2) <= 1e-8
    assert error(done.data_gradient[0], in_D.T / np.sqrt(8)) <= 1e-8
    assert error(done.data_gradient[1], in_y / np.sqrt(8)) <= 1e-8


def test_collinear_features_without_l2_have_no_derivative_and_it_says_so():
    both = elastic_net_at(0.05, 0.0, COLLINEAR)
    assert np.all(both.solution.params.weight[jnp.asarray([3, 5])] != 0)
    assert both.certificate.result == bl.RESULTS.singular_hessian
    # The one feature alone does as well: the other is then on its kink, on the side where the solver's tolerance
    # leaves it.
    start = np.append(elastic_net_weights(np.asarray(0.05), np.asarray(0.0), DESIGN[:, :5], RESPONSE), 0.0)
    for a in 1 + 1e-9 * np.arange(-4, 9):
        result = elastic_net_at(0.05, 0.0, COLLINEAR, a * start).certificate.result
        assert result in (bl.RESULTS.singular_hessian, bl.RESULTS.degenerate), a


def fit_of_features(strength, weight, data):
    """(1/2n) ‖X w − y‖², for a column of weights."""
    X, y = data
    return 0.5 * jnp.mean((X @ weight[:, 0] - strength * y) ** 2)


@pytest.mark.parametrize("penalty", [None, bl.prox.L1(0.05), bl.prox.GroupL1(0.05)], ids=["none", "L1", "GroupL1"])
def test_a_function_of_collinear_features_is_singular_although_its_system_has_a_solution(penalty):
    # The loss sees predictions, which are unique: conjugate gradient and GMRES find one of many adjoints.
    def run(X):
        objective = O.FunctionObjective(fit_of_features, 1.0, start=jnp.zeros((6, 1)), nonsmooth=penalty)
        seen = lambda objective, weight, data: jnp.sum((data[0] @ weight) ** 2)
        solver = S.LBFGS() if penalty is None else S.ProximalGradient(max_steps=20_000)
        arrays = jnp.asarray(X), jnp.asarray(RESPONSE)
        return compiled(bl.hypergradient)(seen, objective, arrays, solver=solver, on_failure="ignore")

    both = run(COLLINEAR)
    assert np.all(np.isfinite(both.gradient.hyperparams)) and both.certificate.adjoint_residual <= 1e-9
    assert both.certificate.result == bl.RESULTS.singular_hessian
    near = run(with_feature(DESIGN[:, 3] + 0.3 * DESIGN[:, 5]))
    assert near.certificate.result == bl.RESULTS.successful


def test_on_a_kink_there_is_no_two_sided_derivative_and_the_certificate_says_so():
    knots, _, _ = lars_path(DESIGN, RESPONSE, method="lasso")
    assert len(knots) >= 5
    for knot, following in itertools.pairwise(knots):
        assert elastic_net_at(knot, 0.0, DESIGN).certificate.result in (bl.RESULTS.degenerate, bl.RESULTS.inaccurate)
        between = elastic_net_at(0.5 * (knot + following), 0.0, DESIGN)
        assert between.certificate.result == bl.RESULTS.successful
    assert elastic_net_at(knots[0], 0.0, DESIGN).certificate.result == bl.RESULTS.degenerate


# --- Options ----------------------------------------------------------------------------------------------------------


def test_a_loss_may_close_over_traced_values_and_return_more():
    targets = jnp.linspace(-1, 1, 8)

    def of(head):
        def loss(objective, codes, X):
            predictions = codes @ head
            return jnp.mean((predictions - targets) ** 2), {"predictions": predictions}

        done = bl.hypergradient(loss, CODES.objective, CODES.data, on_failure="nan")
        return done.value, done.gradient, done.aux

    head = jnp.linspace(0.5, 1.5, 10)
    value, gradient, aux = compiled(of)(head)
    np.testing.assert_allclose(value, np.mean((aux["predictions"] - targets) ** 2), rtol=1e-12)
    # The derivative in what is closed over is JAX's.
    slope = compiled(jax.grad(lambda head: of(head)[0]))(head)
    codes = bl.argmin(CODES.objective, CODES.data).params
    np.testing.assert_allclose(slope, 2 * codes.T @ (codes @ head - targets) / 8, rtol=1e-10)
    assert gradient.dictionary.shape == CODES.objective.dictionary.shape and np.all(np.isfinite(gradient.dictionary))


def test_an_error_above_rtol_is_a_failure():
    rough = functools.partial(certified, CODES.objective, CODES.data, solver=S.ProximalGradient(tol=1e-2))
    exact = certified(CODES.objective, CODES.data)
    done = rough()
    error_of = done.certificate.relative_error
    assert done.certificate.optimality <= done.certificate.tol
    assert error_of > 1e-2 and done.certificate.result == bl.RESULTS.inaccurate
    assert rough(rtol=2 * error_of).certificate.result == bl.RESULTS.successful
    assert error(raveled(done.gradient), raveled(exact.gradient)) > 1e-2


def test_a_ridge_gives_what_a_singular_hessian_does_not():
    twice = jnp.concatenate([CODES.objective.dictionary, CODES.objective.dictionary[:1]])
    coding, solver = O.SparseCoding(twice, l1=0.3, l2=0.0), S.ProximalGradient(tol=1e-11, max_steps=100_000)
    done = certified(coding, CODES.data, solver=solver, diff=bl.Implicit(ridge=1e-7))
    assert done.certificate.result == bl.RESULTS.successful
    # What the loss can see of two equal atoms is the sum of their codes: as with one of them.
    seen = lambda coding, codes, X: jnp.sum(jnp.sin(codes @ coding.dictionary))
    in_l1 = lambda coding, diff: bl.hypergradient(seen, coding, CODES.data, solver=solver, diff=diff).gradient.l1
    single = O.SparseCoding(CODES.objective.dictionary, l1=0.3, l2=0.0)
    np.testing.assert_allclose(in_l1(coding, bl.Implicit(ridge=1e-7)), in_l1(single, bl.Implicit()), rtol=1e-4)


def test_new_numbers_do_not_recompile():
    loss = lambda objective, model, data: jnp.sum(model.weight)
    run = lambda v: bl.hypergradient(
        loss, O.Ridge(v), RIDGES[0].data, solver=S.LBFGS(tol=1e-8 * v), diff=bl.Implicit(ridge=1e-9 * v), rtol=0.1 * v
    )
    run(0.3)
    before = compilations()
    run(0.31)
    assert compilations() == before


@pytest.mark.parametrize("problem", [PENALIZED[0], CODES], ids=by_name)
def test_an_adjoint_may_be_given_to_start_from(problem: Problem):
    cg = lx.CG(rtol=0.03, atol=0.03)
    solve = lambda start: certified(
        problem.objective, problem.data, diff=bl.Implicit(linear_solver=cg), adjoint_init=start
    )
    exact = certified(problem.objective, problem.data)
    cold, warm = solve(None), solve(exact.adjoint)
    assert warm.certificate.adjoint_residual < 1e-10 < cold.certificate.adjoint_residual
    assert error(raveled(warm.gradient), raveled(exact.gradient)) <= 1e-9


def test_other_ways_of_differentiating_are_certified_too():
    # One step of gradient descent is no derivative of the solution, and the certificate says how far off.
    options = dict(solver=S.GradientDescent(acceleration=False))
    exact = certified(RIDGES[0].objective, RIDGES[0].data)
    one_step = certified(RIDGES[0].objective, RIDGES[0].data, diff=bl.OneStep(), **options)
    assert one_step.certificate.result == bl.RESULTS.inaccurate
    true = np.linalg.norm(raveled(one_step.gradient) - raveled(exact.gradient)) / np.linalg.norm(
        raveled(exact.gradient)
    )
    assert true > 0.1
    np.testing.assert_allclose(one_step.certificate.relative_error, true, rtol=1e-5)


def test_samples_are_certified_one_by_one():
    # Twice the same atom without l2: the samples that use it have no derivative, and only they.
    twice = jnp.concatenate([CODES.objective.dictionary, CODES.objective.dictionary[:1]])
    coding = O.SparseCoding(twice, l1=0.3, l2=0.0)
    done = certified(coding, CODES.data, solver=S.ProximalGradient(tol=1e-12, max_steps=100_000))
    use = np.asarray((done.solution.params[:, 0] != 0) & (done.solution.params[:, -1] != 0))
    assert 0 < use.sum() < len(use)
    np.testing.assert_array_equal(np.isnan(done.certificate.samples.adjoint_residual), use)
    np.testing.assert_array_equal(np.isnan(done.certificate.samples.relative_error), use)
    assert np.all(np.asarray(done.certificate.samples.relative_error)[~use] <= 1e-8)
    assert done.certificate.result == bl.RESULTS.singular_hessian


def test_the_margin_is_the_distance_to_the_nearest_kink():
    # Soft thresholding of x by l1: with D = I codes are its outcome, and the distance ||x| − l1|.
    x = jnp.asarray([[1.0, 0.2, -0.31, 0.0]])
    done = certified(O.SparseCoding(jnp.eye(4), l1=0.3), x)
    np.testing.assert_allclose(done.certificate.margin, 0.01, rtol=1e-9)
    rough = certified(CODES.objective, CODES.data, solver=S.ProximalGradient(max_steps=1))
    assert rough.certificate.at_risk > 0


# --- Failures ---------------------------------------------------------------------------------------------------------

SINGULAR = O.SparseCoding(jnp.ones((2, 3)), l1=0.1), jnp.ones((1, 3))
FAILURES = {
    "stopped early": (*[CODES.objective, CODES.data], S.ProximalGradient(max_steps=1), "used up `max_steps`"),
    "singular": (*SINGULAR, S.ProximalGradient(max_steps=20_000), "Hessian is singular on the support"),
}
failures = pytest.mark.parametrize(("objective", "data", "solver", "message"), FAILURES.values(), ids=FAILURES)


WAVES = O.FunctionObjective(lambda h, p, d: jnp.sum(jnp.cos(p - h)), 0.0, start=jnp.zeros(2))
SADDLES = [
    O.FunctionObjective(
        lambda h, p, d, down=down: 0.5 * p[0] ** 2 - down * p[1] ** 2 + h * p[0], 1.0, start=np.zeros(2)
    )
    for down in (0.5, 1e-4, 1e-8)
]


@pytest.mark.parametrize("objective", [WAVES, *SADDLES], ids=["maximum", "saddle", "flat saddle", "flatter saddle"])
def test_what_is_stationary_but_no_minimum_is_named(objective):
    done = certified_sum(objective, solver=S.GradientDescent(stepsize=0.5))
    assert done.certificate.result == bl.RESULTS.not_a_minimum


def test_a_loss_that_is_not_finite_is_named():
    problem = RIDGES[0]
    for loss in (
        lambda o, p, d: jnp.sum(p.weight) * jnp.nan,
        lambda o, p, d: jnp.sum(p.weight) + jnp.sqrt(0 * o.alpha),
    ):
        with pytest.raises(bl.HypergradientError, match="outer loss, or its derivative"):
            bl.hypergradient(loss, problem.objective, problem.data)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_a_loss_of_any_size_in_32_bits(scale: float):
    centers = jnp.arange(3, dtype=jnp.float32)
    objective = O.FunctionObjective(lambda h, p, d: 0.5 * jnp.sum((p - h) ** 2), centers, start=0 * centers)
    done = bl.hypergradient(lambda o, p, d: jnp.float32(scale) * jnp.sum(p), objective)
    np.testing.assert_allclose(np.asarray(done.gradient.hyperparams, np.float64) / scale, 1, rtol=1e-5)


def test_an_objective_without_a_start():
    objective = O.FunctionObjective(lambda h, p, d: 0.5 * jnp.sum((p - h) ** 2), jnp.ones(3))
    done = bl.hypergradient(lambda o, p, d: jnp.sum(p**2), objective, init=jnp.zeros(3))
    np.testing.assert_allclose(done.gradient.hyperparams, 2, rtol=1e-6)


def test_a_linear_solver_that_runs_away_is_no_success():
    runs_on = bl.Implicit(lx.CG(0.0, 0.0, max_steps=200))
    found = by_argmin(CODES.objective, CODES.data, runs_on)
    expected = raveled(by_argmin(CODES.objective, CODES.data, bl.Implicit()))
    assert np.any(np.isnan(raveled(found))) or error(raveled(found), expected) <= 1e-6


@failures
def test_on_failure(objective, data, solver, message):
    run = lambda on_failure: bl.hypergradient(outer, objective, data, solver=solver, on_failure=on_failure)
    with pytest.raises(bl.HypergradientError, match=f"{message}(.|\n)*Try(.|\n)*estimated relative error"):
        run("raise")
    with pytest.warns(RuntimeWarning, match=message):
        warned = run("warn")
    ignored, made_nan = run("ignore"), run("nan")
    assert ignored.certificate.result == made_nan.certificate.result != bl.RESULTS.successful
    np.testing.assert_array_equal(raveled(warned.gradient), raveled(ignored.gradient))
    assert np.all(np.isnan(raveled(made_nan.gradient))) and np.all(np.isnan(raveled(made_nan.data_gradient)))


@failures
def test_on_failure_within_jit(objective, data, solver, message):
    run = lambda on_failure: compiled(
        lambda o, d: raveled_array(bl.hypergradient(outer, o, d, solver=solver, on_failure=on_failure).gradient)
    )(objective, data)
    raveled_array = lambda tree: jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)])
    with pytest.raises(eqx.EquinoxRuntimeError, match=message):
        jax.block_until_ready(run("raise"))
    assert np.all(np.isnan(run("nan")))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bl.hypergradient("loss", *SINGULAR), "`outer_loss` must be a function"),
        (lambda: bl.hypergradient(lambda o, p, d: p, *SINGULAR), "`outer_loss` must return a floating number"),
        (
            lambda: bl.hypergradient(lambda o, p, d: jnp.sum(p).astype(complex), *SINGULAR),
            "a floating number.* got complex",
        ),
        (lambda: bl.hypergradient(lambda o, p, d: None, *SINGULAR), "a floating number.* got NoneType"),
        (lambda: bl.hypergradient(lambda o, p, d: jnp.sum(p).astype(int), *SINGULAR, diff=bl.OneStep()), "got int"),
        (lambda: bl.hypergradient(outer, *SINGULAR, adjoint_init=jnp.zeros(3)), "`adjoint_init` must be like"),
        (lambda: bl.hypergradient(outer, *SINGULAR, adjoint_init=jnp.full((1, 2), jnp.nan)), "`adjoint_init` has 2"),
        (lambda: bl.hypergradient(outer, *SINGULAR, rtol=0.0), "`rtol` must be finite and positive"),
        (lambda: bl.check_hypergradient("loss", *SINGULAR), "`outer_loss` must be a function"),
        (lambda: bl.compare_modes(outer, *SINGULAR, modes=[bl.Implicit()]), "`modes` must map names"),
        (lambda: bl.compare_modes(outer, *SINGULAR, repeats=0), "`repeats` must be at least 1"),
        (lambda: bl.hypergradient(outer, *SINGULAR, on_failure="hope"), "`on_failure` must be one of .* got 'hope'"),
        (lambda: bl.Implicit(ridge=-1.0), "`ridge` must be finite and not negative"),
        (lambda: bl.Implicit(linear_solver="cg"), "`linear_solver` must be a Lineax solver"),
        (lambda: bl.Neumann(0), "`num_terms` must be a whole number of at least 1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
