"""A training step: pure, on one pytree, with any optimizer, within constraints, on batches, refused if not finite."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from tests.compiling import compiled
from tests.outer.examples import (
    SAMPLES,
    coding_problem,
    coding_variables,
    dictionary_and_task,
    dictionary_of,
    leaves_of,
    regression_loss,
    ridge_by_hand,
    ridge_problem,
    same,
    signals,
    split_of,
)

KEY = jax.random.key(3)
#: One object for all tests: another one, though alike, would be another program.
ADAM = optax.adam(0.1)


@compiled
def step(trainer, state, data):
    return trainer.step(state, data)


def steps(trainer, state, data, count):
    """The states after each of `count` steps, from the start on, and the metrics of each."""
    states, metrics = [state], []
    for _ in range(count):
        state, metric = step(trainer, states[-1], data)
        states.append(state)
        metrics.append(metric)
    return states, metrics


# --- Purity -----------------------------------------------------------------------------------------------------------


def test_init_and_step_are_pure():
    trainer, data = bl.Trainer(coding_problem(), ADAM, batch_size=4), signals()
    state = trainer.init(data, KEY)
    before = leaves_of((trainer, data, state))
    after, metrics = step(trainer, state, data)
    assert same(trainer.init(data, KEY), state)
    again, metrics_again = step(trainer, state, data)
    assert same((after, metrics), (again, metrics_again))
    assert not same(after.variables, state.variables)
    assert all(np.array_equal(x, y) for x, y in zip(before, leaves_of((trainer, data, state)), strict=True))


def test_another_key_is_another_order():
    trainer, data = bl.Trainer(coding_problem(), ADAM, batch_size=4), signals()
    order = lambda key: np.asarray(step(trainer, trainer.init(data, key), data)[0].order)
    assert not np.array_equal(order(KEY), order(jax.random.key(4)))


def test_numpy_data_serve_as_well():
    trainer, data = bl.Trainer(coding_problem(), ADAM, batch_size=4), signals()
    arrays = jax.tree.map(np.asarray, data)
    assert same(trainer.init(arrays, KEY), trainer.init(data, KEY))
    assert same(step(trainer, trainer.init(data, KEY), arrays), step(trainer, trainer.init(data, KEY), data))


def test_the_state_is_one_pytree_that_jit_and_scan_take():
    trainer, data = bl.Trainer(coding_problem(), ADAM, batch_size=4), signals()
    state = trainer.init(data, KEY)
    leaves, structure = jax.tree.flatten(state)
    assert all(eqx.is_array(leaf) for leaf in leaves)
    assert same(jax.tree.unflatten(structure, leaves), state)
    scanned, metrics = jax.jit(lambda s, d: jax.lax.scan(lambda s, _: trainer.step(s, d), s, length=5))(state, data)
    states, expected = steps(trainer, state, data, 5)
    assert jax.tree.structure(scanned) == structure
    for actual, wanted in zip(
        leaves_of((scanned.variables, scanned.order)), leaves_of((states[-1].variables, states[-1].order)), strict=True
    ):
        np.testing.assert_allclose(actual, wanted, rtol=1e-9)
    np.testing.assert_allclose(metrics.loss, [m.loss for m in expected], rtol=1e-9)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_steps_keep_32_bits(batch_size):
    problem = coding_problem(variables=coding_variables(dtype=jnp.float32))
    trainer = bl.Trainer(problem, ADAM, batch_size)
    data = jax.tree.map(lambda x: x.astype(jnp.float32), signals())
    state = trainer.init(data, KEY)
    after, metrics = step(trainer, state, data)
    dtypes = lambda tree: [x.dtype for x in leaves_of(tree)]
    assert dtypes(after) == dtypes(state)
    assert jnp.float64 not in dtypes((after, metrics))


# --- Projected gradient -----------------------------------------------------------------------------------------------


def test_sgd_with_constraints_equals_projected_gradient_by_hand():
    low, high, rate = 0.05, 0.6, 0.5
    box = bl.Constrained(lambda v: v.objective.alpha, bl.prox.Box(low, high))
    alpha, batch = np.array([0.1, 0.4, 0.9]), split_of(noise=3.0)
    trainer = bl.Trainer(ridge_problem(alpha, constraints=[box]), optax.sgd(rate))
    states, metrics = steps(trainer, trainer.init(batch, KEY), batch, 10)
    alpha = np.clip(alpha, low, high)
    assert alpha[2] == high
    for state, metric in zip(states, metrics, strict=False):
        np.testing.assert_allclose(state.variables.objective.alpha, alpha, rtol=1e-9)
        loss, gradient = ridge_by_hand(alpha, batch)
        np.testing.assert_allclose(metric.loss, loss, rtol=1e-9)
        np.testing.assert_allclose(metric.gradient_norm, np.linalg.norm(gradient), rtol=1e-9)
        alpha = np.clip(alpha - rate * gradient, low, high)
    # Otherwise the constraint would not have been tested, or all that moves is what it stops.
    np.testing.assert_array_equal(alpha == low, [False, True, True])


def loss_of_long_atoms(variables, codes, batch):
    """It pushes atoms out of any ball."""
    return regression_loss(variables, codes, batch) - 0.2 * jnp.sum(dictionary_of(variables) ** 2)


@pytest.mark.parametrize(("constraint", "lowest"), [(bl.prox.UnitBall(), 0.0), (bl.prox.UnitSphere(), 1.0)])
def test_constraints_hold_after_every_step_for_each_atom(constraint, lowest):
    problem = coding_problem(loss_of_long_atoms, constraints=[bl.Constrained(dictionary_of, constraint)])
    # Atoms that are long, short, and nothing at all before the first projection.
    scales = jnp.array([3.0, 1.0, 0.5, 1e-3, 0.0])[:, None]
    problem = eqx.tree_at(lambda p: p.variables.objective.dictionary, problem, replace_fn=lambda d: scales * d)
    trainer, data = bl.Trainer(problem, optax.sgd(1.0)), signals()
    states, _ = steps(trainer, trainer.init(data, KEY), data, 5)
    norms = np.array([np.linalg.norm(dictionary_of(s.variables), axis=1) for s in states])
    assert np.all((norms >= lowest - 1e-14) & (norms <= 1 + 1e-14))
    np.testing.assert_allclose(norms[-1, :3], 1, rtol=1e-14)
    # The short atom grew on its own: nothing scaled the matrix as a whole.
    assert lowest == 1 or 1e-3 < norms[-1, 3] < 0.9
    assert not np.allclose(dictionary_of(states[0].variables), dictionary_of(states[-1].variables), atol=1e-2)


def test_only_the_selection_moves():
    trainer, data = bl.Trainer(coding_problem(train=lambda v: v.task), ADAM), signals()
    start = trainer.init(data, KEY)
    states, _ = steps(trainer, start, data, 3)
    assert same(states[-1].variables.objective, start.variables.objective)
    assert not np.any(np.asarray(states[-1].variables.task) == np.asarray(start.variables.task))


# --- Optimizers -------------------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "adam": lambda: optax.adam(0.05),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "chain": lambda: optax.chain(optax.clip_by_global_norm(0.05), optax.adamw(0.05, weight_decay=0.1)),
    "schedule": lambda: optax.sgd(optax.exponential_decay(0.5, transition_steps=2, decay_rate=0.5)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_moves_as_it_would_by_itself(name):
    optimizer, batch = OPTIMIZERS[name](), split_of()
    problem = ridge_problem(np.array([0.1, 0.4, 0.9]))
    trainer = bl.Trainer(problem, optimizer)
    states, _ = steps(trainer, trainer.init(batch, KEY), batch, 4)
    alpha = problem.variables.objective.alpha
    memory = optimizer.init(alpha)
    for state in states[1:]:
        _, gradient = ridge_by_hand(np.asarray(alpha), batch)
        # Optax does not keep to strict promotion.
        with jax.numpy_dtype_promotion("standard"):
            moves, memory = jax.jit(optimizer.update)(jnp.asarray(gradient), memory, alpha)
        alpha = optax.apply_updates(alpha, moves)
        np.testing.assert_allclose(state.variables.objective.alpha, alpha, rtol=1e-9)


def test_a_rate_that_follows_the_loss_sees_it():
    # Impatient: every loss that is not 1 % better halves the rate.
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=0.01)
    trainer = bl.Trainer(ridge_problem(np.array([0.1, 0.4, 0.9])), optax.chain(optax.sgd(1e-3), plateau))
    batch = split_of()
    states, _ = steps(trainer, trainer.init(batch, KEY), batch, 5)
    assert states[-1].optimizer[-1].scale < 1


def test_a_line_search_evaluates_the_loss():
    # With the dictionary at rest, the head is a least squares problem.
    problem, data = coding_problem(train=lambda v: v.task), signals()
    trainer = bl.Trainer(problem, optax.lbfgs())
    states, _ = steps(trainer, trainer.init(data, KEY), data, 40)
    codes = np.asarray(states[-1].warm_start)
    expected = np.linalg.lstsq(codes, np.asarray(data[1]), rcond=None)[0]
    np.testing.assert_allclose(states[-1].variables.task, expected, atol=1e-5)


def test_modules_with_functions_among_their_leaves_are_task_variables():
    head = eqx.nn.MLP(5, "scalar", 4, 1, activation=jax.nn.gelu, key=jax.random.key(0))

    def loss(variables, codes, batch):
        return 0.5 * jnp.mean((jax.vmap(variables.task)(codes) - batch[1]) ** 2)

    problem = coding_problem(loss, variables=coding_variables(head))
    trainer, data = bl.Trainer(problem, optax.adam(0.05), batch_size=5), signals()
    fitted = trainer.fit(data, 30)
    assert fitted.variables.task.activation is jax.nn.gelu
    assert not same(fitted.variables.task.layers[0].weight, head.layers[0].weight)
    assert fitted.history["loss"][-2:].mean() < 0.5 * fitted.history["loss"][:2].mean()


# --- Batches ----------------------------------------------------------------------------------------------------------


def rows_of(trainer, state):
    """The samples that the step from this state to the next one takes; `state` is the one after it."""
    per_epoch, size = -(-SAMPLES // trainer.batch_size), trainer.batch_size
    place = (int(state.step) - 1) % per_epoch
    return np.asarray(state.order)[(place * size + np.arange(size)) % SAMPLES]


@pytest.mark.parametrize("batch_size", [5, 4, 7, 10])
def test_every_epoch_sees_every_sample_in_batches_of_one_shape(batch_size):
    # The loss is a mark of the batch's samples: 2^i for sample i.
    data = (*signals(), jnp.asarray(2.0 ** np.arange(SAMPLES)))
    loss = lambda variables, codes, batch: jnp.sum(batch[2]) + 0 * jnp.sum(variables.task)
    trainer = bl.Trainer(coding_problem(loss), optax.sgd(0.0), batch_size)
    per_epoch = trainer.steps_per_epoch(data)
    assert per_epoch == -(-SAMPLES // batch_size)
    _, metrics = steps(trainer, trainer.init(data, KEY), data, 3 * per_epoch)
    marks = [int(m.loss) for m in metrics]
    seen = [{i for i in range(SAMPLES) if mark >> i & 1} for mark in marks]
    # No sample is twice in a batch, or its mark would be another's.
    assert all(len(samples) == batch_size for samples in seen)
    epochs = [seen[i : i + per_epoch] for i in range(0, len(seen), per_epoch)]
    assert all(set.union(*epoch) == set(range(SAMPLES)) for epoch in epochs)
    # The fill of the last batch is the epoch's own beginning.
    fill = per_epoch * batch_size - SAMPLES
    assert all(len(epoch[0] & epoch[-1]) == fill for epoch in epochs if per_epoch > 1)
    assert batch_size == SAMPLES or epochs[0] != epochs[1] or epochs[1] != epochs[2]


def test_warm_starts_stay_with_their_samples():
    trainer, data = bl.Trainer(coding_problem(), optax.sgd(0.2), batch_size=4), signals()
    states, _ = steps(trainer, trainer.init(data, KEY), data, 5)
    encode = compiled(lambda objective, X: bl.argmin(objective, X).params)
    for before, after in itertools.pairwise(states):
        rows = rows_of(trainer, after)
        others = np.setdiff1d(np.arange(SAMPLES), rows)
        codes = np.asarray(encode(before.variables.objective, data[0]))
        np.testing.assert_allclose(after.warm_start[rows], codes[rows], atol=1e-7)
        np.testing.assert_array_equal(after.warm_start[others], before.warm_start[others])
    # Three steps are an epoch.
    assert np.all(np.any(np.asarray(states[3].warm_start) != 0, axis=1))


@pytest.mark.parametrize("batch_size", [None, 4])
def test_warm_and_cold_starts_lead_to_the_same_end(batch_size):
    # Ten steps, and ten that hardly move, for which warm starts are solutions already.
    data, optimizer = signals(), optax.sgd(optax.piecewise_constant_schedule(0.2, {10: 1e-12}))
    warm, cold = (
        bl.Trainer(coding_problem(), optimizer, batch_size, warm_start=warm).fit(data, 20, key=KEY)
        for warm in (True, False)
    )
    for a, b in zip(leaves_of(warm.variables), leaves_of(cold.variables), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert cold.state.warm_start is None
    assert np.all(warm.history["inner_steps"][-3:] == 0)
    assert np.all(cold.history["inner_steps"] > 0)


# --- Refusal ----------------------------------------------------------------------------------------------------------

REASONS = {
    "the loss": lambda flag, task: jnp.where(flag, jnp.nan, 0.0),
    # √0 is 0, and its derivative infinite.
    "the gradient": lambda flag, task: jnp.sqrt(jnp.where(flag, 0.0, 1.0) + 0 * jnp.sum(task)),
}


def spoiled(reason):
    """A problem whose loss is not finite, or has no finite gradient, where sample 7 is in the batch."""

    def loss(variables, codes, batch):
        return regression_loss(variables, codes, batch[:2]) + REASONS[reason](jnp.any(batch[2] == 7), variables.task)

    return bl.Trainer(coding_problem(loss), ADAM, batch_size=5), (*signals(), jnp.arange(SAMPLES))


@pytest.mark.parametrize("reason", REASONS)
def test_a_step_that_is_not_finite_leaves_the_state(reason):
    trainer, data = spoiled(reason)
    states, metrics = steps(trainer, trainer.init(data, KEY), data, 4)
    pick = lambda state: (state.variables, state.optimizer, state.warm_start)
    for (before, after), metric in zip(itertools.pairwise(states), metrics, strict=True):
        spoils = 7 in rows_of(trainer, after)
        assert bool(metric.refused) == spoils
        assert same(pick(before), pick(after)) == spoils
        assert int(after.step) == int(before.step) + 1
    # Two batches an epoch, of which one is spoiled.
    assert sum(bool(m.refused) for m in metrics) == 2


@pytest.mark.parametrize("on_failure", ["nan", "ignore"])
def test_a_failed_inner_solve_is_refused_unless_the_caller_wants_it(on_failure):
    solver, diff = bl.solvers.ProximalGradient(max_steps=1), bl.Implicit(on_failure=on_failure)
    trainer, data = bl.Trainer(coding_problem(), ADAM, solver=solver, diff=diff), signals()
    start = trainer.init(data, KEY)
    after, metrics = step(trainer, start, data)
    assert not bool(metrics.inner_success)
    assert bool(metrics.refused) == (on_failure == "nan")
    assert same(after.variables, start.variables) == (on_failure == "nan")


# --- Bad input --------------------------------------------------------------------------------------------------------

BAD = {
    "problem": lambda: bl.Trainer(dictionary_and_task, ADAM),
    "optimizer": lambda: bl.Trainer(coding_problem(), 0.1),
    "batch_size` must be a Python int of at least 1, got 0": lambda: bl.Trainer(coding_problem(), ADAM, 0),
    "batch_size` must be a Python int": lambda: bl.Trainer(coding_problem(), ADAM, 2.0),
    "batch_size` is 11, but `data` has 10 samples": lambda: init(batch_size=11),
    "data` must have the same number of samples": lambda: init((signals()[0], jnp.ones(3)), batch_size=2),
    "data` must have the same number": lambda: init((*signals(), jnp.asarray(1e-3)), batch_size=2),
    "data[1]` has 1 entries that are NaN": lambda: init((signals()[0], signals()[1].at[2].set(jnp.nan))),
    "X` has 3 features": lambda: init((signals()[0][:, :3], signals()[1])),
    "X` has dtype float32": lambda: init((signals()[0].astype(jnp.float32), signals()[1])),
    "key` must be a key": lambda: init(key=0),
    "key` must be a key such": lambda: init(key=jax.random.split(KEY)),
}


def init(data=None, key=KEY, batch_size=None):
    return bl.Trainer(coding_problem(), ADAM, batch_size).init(signals() if data is None else data, key)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    with pytest.raises(ValueError) as caught:
        BAD[name]()
    assert str(caught.value).startswith(f"`{name}")
