"""The loop around the step: chunks, resumption, validation, early stopping, callbacks, progress, failures."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array, Float

import bilevel as bl
from tests.compiling import compilations, compiled
from tests.outer.examples import (
    SAMPLES,
    coding_problem,
    coding_variables,
    dictionary_and_task,
    held_out_error,
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
ADAM = optax.adam(0.05)


def small_trainer(batch_size=4, loss=regression_loss, **options):
    return bl.Trainer(coding_problem(loss), ADAM, batch_size, **options)


# --- Steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 4])
def test_training_reduces_the_loss(batch_size):
    trainer, data = small_trainer(batch_size), signals()
    fitted = trainer.fit(data, 60, key=KEY)
    loss_of = compiled(lambda variables: trainer.problem.loss(variables, data)[0])
    assert loss_of(fitted.variables) < 0.2 * loss_of(trainer.problem.variables)
    assert same(fitted.variables, fitted.state.variables)


def test_fit_takes_the_steps_that_step_takes():
    trainer, data = small_trainer(), signals()
    fitted = trainer.fit(data, 8, key=KEY)
    step, state, losses = compiled(trainer.step), trainer.init(data, KEY), []
    for _ in range(8):
        state, metrics = step(state, data)
        losses.append(float(metrics.loss))
    np.testing.assert_allclose(fitted.history["loss"], losses, rtol=1e-9)
    for a, b in zip(leaves_of(fitted.state), leaves_of(state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-12)


def test_the_history_has_an_entry_a_step():
    fitted = small_trainer().fit(signals(), 8, key=KEY)
    history = fitted.history
    names = {"loss", "gradient_norm", "optimality", "inner_steps", "inner_success", "refused", "suspect"}
    assert history.keys() == names
    assert all(len(values) == 8 for values in history.values())
    assert np.all(history["inner_success"])
    assert not np.any(history["refused"])
    assert np.all(history["optimality"] <= 1e-8)
    assert int(fitted.state.step) == 8


def counted(function):
    """The function, and a list that grows by an entry each time Python runs it."""
    calls = []

    def counting(*args):
        calls.append(None)
        return function(*args)

    return counting, calls


def test_python_runs_the_step_once_for_all_epochs_and_later_calls():
    loss, calls = counted(regression_loss)
    trainer, data = small_trainer(loss=loss), signals()
    # Five epochs of three steps, the last one broken off.
    fitted = trainer.fit(data, 14, key=KEY)
    assert len(fitted.history["loss"]) == 14
    assert len(calls) == 1
    before = compilations()
    trainer.fit(data, 14, state=fitted.state)
    trainer.fit(signals(seed=1), 14, key=KEY)
    assert len(calls) == 1
    assert compilations() == before


def test_other_hyperparameters_need_no_other_program():
    loss, calls = counted(regression_loss)
    trainer, data = small_trainer(loss=loss), signals()
    other = eqx.tree_at(lambda t: t.problem.variables.objective.l1, trainer, jnp.asarray(0.3, float))
    losses = [t.fit(data, 6, key=KEY).history["loss"] for t in (trainer, other)]
    assert len(calls) == 1
    assert not np.any(losses[0] == losses[1])


# --- Resumption -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 4])
def test_going_on_from_a_state_is_as_if_never_interrupted(batch_size):
    trainer, data = small_trainer(batch_size), signals()
    whole = trainer.fit(data, 8, key=KEY, every=4)
    # Four steps end within an epoch of three.
    half = trainer.fit(data, 4, key=KEY, every=4)
    leaves, structure = jax.tree.flatten(half.state)
    assert not same(half.state, whole.state)
    is_key = [jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in leaves]
    stored = [np.array(x) for x in leaves_of(half.state)]
    loaded = [jax.random.wrap_key_data(x) if k else jnp.asarray(x) for x, k in zip(stored, is_key, strict=True)]
    resumed = trainer.fit(data, 4, state=jax.tree.unflatten(structure, loaded), every=4)
    assert same(resumed.state, whole.state)
    for name, values in whole.history.items():
        np.testing.assert_array_equal(np.concatenate([half.history[name], resumed.history[name]]), values)


def test_the_same_key_gives_the_same_and_zero_is_the_default():
    trainer, data = small_trainer(), signals()
    fits = [trainer.fit(data, 4, key=key).state.variables for key in (None, jax.random.key(0), KEY)]
    assert same(fits[0], fits[1])
    assert not same(fits[0], fits[2])


# --- Validation, early stopping, callbacks ----------------------------------------------------------------------------


def training_error(variables, model, batch):
    """The loss that Ridge itself minimizes but for its penalty: it is best without one."""
    X, y = batch.fit
    return 0.5 * jnp.mean((model(X) - y) ** 2)


def overfitting_trainer():
    """It leads alpha from where there is too much of it, past where the held-out error is best, to zero."""
    problem = eqx.tree_at(lambda p: p.outer_loss, ridge_problem(4.0), training_error)
    constraint = bl.Constrained(lambda v: v.objective.alpha, bl.prox.NonNegative())
    return bl.Trainer(eqx.tree_at(lambda p: p.constraints, problem, (constraint,)), ADAM)


OVERFITTED = split_of(seed=5, features=8, noise=1.0, samples=12)


def overfit(num_steps=60, **options):
    """A fit with a look every second step, and the alpha seen at each look."""
    seen = []

    def callback(state, history):
        seen.append(float(state.variables.objective.alpha))

    options = dict(every=2, callback=callback, validation=OVERFITTED, validation_loss=held_out_error) | options
    return overfitting_trainer().fit(OVERFITTED, num_steps, **options), seen


def test_the_best_variables_in_validation_are_kept():
    fitted, seen = overfit()
    losses = fitted.history["validation_loss"]
    np.testing.assert_array_equal(fitted.history["validation_step"], np.arange(2, 61, 2))
    loss_of = compiled(lambda v: ridge_problem(1.0).loss(v, OVERFITTED)[0])
    for alpha, loss in zip(seen, losses, strict=True):
        np.testing.assert_allclose(loss_of(bl.Variables(bl.objectives.Ridge(alpha))), loss, rtol=1e-9)
    best = int(np.argmin(losses))
    assert 2 < best < len(losses) - 3
    assert float(fitted.variables.objective.alpha) == seen[best]
    assert float(fitted.state.variables.objective.alpha) == seen[-1]


def test_patience_ends_training():
    (whole, _), (fitted, _) = overfit(), overfit(patience=3)
    best = int(np.argmin(whole.history["validation_loss"]))
    assert len(fitted.history["validation_loss"]) == best + 4
    assert len(fitted.history["loss"]) == 2 * (best + 4)
    assert same(fitted.variables, whole.variables)


def test_the_outer_loss_is_the_default_of_validation():
    problem, batch = ridge_problem(0.5), split_of()
    history = bl.Trainer(problem, optax.sgd(0.1)).fit(batch, 4, every=1, validation=batch).history
    np.testing.assert_allclose(history["validation_loss"][:-1], history["loss"][1:], rtol=1e-9)


class ScaledLoss(eqx.Module):
    """A loss with an array of its own."""

    scale: Float[Array, ""]

    def __call__(self, variables, model, batch):
        return self.scale * held_out_error(variables, model, batch)


def test_losses_may_be_modules():
    alpha, batch = np.array([0.1, 0.4, 0.9]), split_of()
    problem = eqx.tree_at(lambda p: p.outer_loss, ridge_problem(alpha), ScaledLoss(jnp.asarray(2.0)))
    trainer = bl.Trainer(problem, ADAM)
    fitted = trainer.fit(batch, 2, every=1, validation=batch, validation_loss=ScaledLoss(jnp.asarray(3.0)))
    np.testing.assert_allclose(fitted.history["loss"][0], 2 * ridge_by_hand(alpha, batch)[0], rtol=1e-9)
    np.testing.assert_allclose(fitted.history["validation_loss"][0], 1.5 * fitted.history["loss"][1], rtol=1e-9)
    assert trainer.problem.outer_loss.scale == 2


def test_validation_is_compiled_once():
    loss, calls = counted(held_out_error)
    overfit(num_steps=8, validation_loss=loss)
    assert len(calls) == 1


@pytest.mark.parametrize("warm_start", [True, False])
def test_validation_of_codes_starts_warm_or_cold_and_is_the_same(warm_start):
    trainer, data, held_out = small_trainer(None, warm_start=warm_start), signals(), signals(seed=1, samples=7)
    seen = []
    fitted = trainer.fit(data, 3, every=1, validation=held_out, callback=lambda s, h: seen.append(s.variables))
    loss_of = compiled(lambda v: trainer.problem.loss(v, held_out)[0])
    np.testing.assert_allclose(fitted.history["validation_loss"], [loss_of(v) for v in seen], rtol=1e-7)


def test_a_callback_sees_the_state_and_stops():
    seen = []

    def callback(state, history):
        seen.append((int(state.step), len(history["loss"])))
        return len(seen) == 2

    fitted = small_trainer().fit(signals(), 20, key=KEY, callback=callback)
    # By default a look is an epoch: three steps.
    assert seen == [(3, 3), (6, 6)]
    assert len(fitted.history["loss"]) == 6


def test_full_batches_are_looked_at_twenty_times():
    seen = []
    problem, batch = ridge_problem(0.5), split_of()
    bl.Trainer(problem, optax.sgd(0.1)).fit(batch, 45, callback=lambda state, _: seen.append(int(state.step)))
    assert seen == [*range(3, 46, 3)]
    assert len(seen) <= 20


@pytest.mark.parametrize("progress", [True, "a label"])
def test_a_progress_bar_shows_the_losses(capfd, progress):
    overfit(num_steps=4, progress=progress)
    shown = capfd.readouterr().err
    assert ("training" if progress is True else "a label") in shown
    assert "4/4" in shown
    assert "loss=" in shown
    assert "validation=" in shown


def test_no_progress_bar_is_the_default(capfd):
    overfit(num_steps=4)
    err = capfd.readouterr().err
    assert "it/s" not in err and "training" not in err


# --- Failures ---------------------------------------------------------------------------------------------------------


def spoiled_loss(variables, codes, batch):
    """NaN where sample 7 is in the batch."""
    return regression_loss(variables, codes, batch[:2]) + jnp.where(jnp.any(batch[2] == 7), jnp.nan, 0.0)


def test_a_refused_step_raises_with_its_number_or_is_recorded():
    trainer, data = small_trainer(5, spoiled_loss), (*signals(), jnp.arange(SAMPLES))
    fitted = trainer.fit(data, 4, key=KEY, on_failure="skip")
    refused = fitted.history["refused"]
    np.testing.assert_array_equal(np.isnan(fitted.history["loss"]), refused)
    # Two batches an epoch, of which one has the sample.
    assert refused[:2].sum() == refused[2:].sum() == 1
    assert bool(jnp.all(jnp.isfinite(fitted.variables.task)))
    first = int(np.flatnonzero(refused)[0])
    with pytest.raises(bl.InnerSolveError, match=rf"^Step {first} of training failed: .*the outer loss nan"):
        trainer.fit(data, 4, key=KEY)
    one = trainer.fit(data, 2, key=KEY, on_failure="skip")
    second = int(np.flatnonzero(refused)[1])
    with pytest.raises(bl.InnerSolveError, match=rf"^Step {second} of training"):
        trainer.fit(data, 2, state=one.state)


def test_a_failed_inner_solve_raises_or_is_recorded():
    solver = bl.solvers.ProximalGradient(max_steps=1)
    trainer, data = small_trainer(None, solver=solver), signals()
    with pytest.raises(bl.InnerSolveError, match=r"^Step 0 of training failed: .* after 1 steps"):
        trainer.fit(data, 3)
    fitted = trainer.fit(data, 3, on_failure="skip")
    assert not np.any(fitted.history["inner_success"])
    assert np.all(fitted.history["refused"])
    assert same(fitted.variables, trainer.init(data, KEY).variables)


def test_a_failed_validation_raises_or_is_recorded():
    def loss(variables, codes, batch):
        return jnp.where(jnp.sum(codes**2) > 0, jnp.nan, 0.0)

    trainer, data = small_trainer(), signals()
    options = dict(validation=data, validation_loss=loss, key=KEY)
    with pytest.raises(bl.InnerSolveError, match=r"^No validation loss after step 2"):
        trainer.fit(data, 6, **options)
    fitted = trainer.fit(data, 6, **options, on_failure="skip")
    assert np.all(np.isnan(fitted.history["validation_loss"]))
    assert len(fitted.history["loss"]) == 6
    # Where there is no best, the last is kept; and none of these is a new best.
    assert same(fitted.variables, fitted.state.variables)
    patient = trainer.fit(data, 20, **options, on_failure="skip", patience=2)
    assert len(patient.history["validation_loss"]) == 2


def test_a_validation_whose_inner_solve_fails_is_not_believed():
    # One step from zero is enough for samples that are zero, and for no others.
    solver = bl.solvers.ProximalGradient(max_steps=1)
    trainer, data = small_trainer(None, solver=solver), tuple(jnp.zeros_like(x) for x in signals())
    fitted = trainer.fit(data, 2, validation=signals(), on_failure="skip")
    assert np.all(fitted.history["inner_success"])
    assert np.all(np.isnan(fitted.history["validation_loss"]))


# --- Bad input --------------------------------------------------------------------------------------------------------


def test_batches_of_other_samples_than_the_data_are_refused():
    problem = bl.BilevelProblem(regression_loss, coding_variables(), inner_data=lambda batch: batch[0][:2])
    with pytest.raises(ValueError, match="`inner_data` must keep the samples"):
        bl.Trainer(problem, ADAM, 4).init(signals(), jax.random.key(0))


def fit(num_steps=2, data=None, batch_size=None, **options):
    return small_trainer(batch_size).fit(signals() if data is None else data, num_steps, **options)


def state_of(batch_size=None, samples=SAMPLES):
    return small_trainer(batch_size).init(signals(samples=samples), KEY)


BAD = {
    "num_steps` must be a Python int of at least 1, got 0": lambda: fit(0),
    "num_steps` must be": lambda: fit(None),
    "num_steps` must be a Python int of at least 1, got 2.0": lambda: fit(2.0),
    "num_steps` must be a Python int of at least 1, got True": lambda: fit(True),
    "every` must be": lambda: fit(every=0),
    "patience` must be": lambda: fit(patience=-1, validation=signals()),
    "patience` and `validation_loss` need `validation`": lambda: fit(patience=2),
    "patience` and `validation_loss` need": lambda: fit(validation_loss=regression_loss),
    "validation_loss` must be a function": lambda: fit(validation_loss=0.5, validation=signals()),
    "validation_loss` must return a number": lambda: fit(
        validation_loss=lambda variables, codes, batch: codes, validation=signals()
    ),
    "callback` must be a function": lambda: fit(callback=3),
    "progress` must be": lambda: fit(progress=3),
    "key` and `state` exclude each other": lambda: fit(key=KEY, state=state_of()),
    "key` must be a key": lambda: fit(key=0),
    "state` must be a TrainingState": lambda: fit(state=dictionary_and_task),
    "state` belongs to another trainer or to other data: state.warm_start": lambda: fit(state=state_of(samples=9)),
    "state` belongs to another trainer or to other data: state.order": lambda: fit(state=state_of(batch_size=4)),
    "data[0]` has 1 entries": lambda: fit(data=(signals()[0].at[0, 0].set(jnp.inf), signals()[1])),
    "validation[0]` has": lambda: fit(validation=(signals()[0].at[0, 0].set(jnp.inf), signals()[1])),
    "X` has 3 features": lambda: fit(validation=(signals()[0][:, :3], signals()[1])),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    with pytest.raises(ValueError) as caught:
        BAD[name]()
    assert str(caught.value).startswith(f"`{name}")
