"""What a bilevel problem is: its loss and derivative, what is trained, what is constrained, what it refuses."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from tests.compiling import compiled
from tests.outer.examples import (
    UNIT_ATOMS,
    coding_problem,
    coding_variables,
    dictionary_of,
    regression_loss,
    ridge_by_hand,
    ridge_problem,
    same,
    signals,
    split_of,
)
from tests.witnesses import central_difference


@compiled
def loss_and_gradient(problem, variables, batch):
    return eqx.filter_value_and_grad(lambda v: problem.loss(v, batch)[0])(variables)


@compiled
def loss_of(problem, variables, batch):
    return problem.loss(variables, batch)[0]


def test_the_gradient_of_the_loss_equals_the_closed_form():
    alpha = np.array([0.1, 0.4, 0.9])
    problem, batch = ridge_problem(alpha), split_of()
    loss, gradient = loss_and_gradient(problem, problem.variables, batch)
    expected, expected_gradient = ridge_by_hand(alpha, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(gradient.objective.alpha, expected_gradient, rtol=1e-10)


def test_the_gradient_of_the_loss_equals_finite_differences():
    problem, batch = coding_problem(), signals()
    _, gradient = loss_and_gradient(problem, problem.variables, batch)
    leaves, structure = jax.tree.flatten(problem.variables)
    rng = np.random.default_rng(0)
    for index, leaf in enumerate(leaves):
        directions = [np.zeros(x.shape) for x in leaves]
        directions[index] = rng.normal(size=leaf.shape)
        value = lambda *values: np.asarray(
            loss_of(problem, jax.tree.unflatten(structure, [jnp.asarray(v) for v in values]), batch)
        )
        expected = central_difference(value, [np.asarray(x) for x in leaves], directions, 1e-6)
        actual = np.sum(np.asarray(jax.tree.leaves(gradient)[index]) * directions[index])
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-9)


def test_the_loss_comes_with_the_inner_solution():
    problem, batch = coding_problem(), signals()
    _, solution = compiled(problem.loss)(problem.variables, batch)
    expected = compiled(bl.argmin)(problem.variables.objective, batch[0])
    np.testing.assert_array_equal(solution.params, expected.params)
    assert bool(solution.successful)


SELECTIONS = {
    "all": (None, {"dictionary", "l1", "l2", "task"}),
    "one": (dictionary_of, {"dictionary"}),
    "several": (lambda v: (v.objective.l1, v.task), {"l1", "task"}),
    "a node": (lambda v: v.objective, {"dictionary", "l1", "l2"}),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_what_is_selected_is_trained(name):
    train, names = SELECTIONS[name]
    problem = coding_problem(train=train)
    trained, rest = problem.split(problem.variables)
    fields = lambda v: {
        "dictionary": v.objective.dictionary, "l1": v.objective.l1, "l2": v.objective.l2, "task": v.task
    }  # fmt: skip
    assert {n for n, x in fields(trained).items() if x is not None} == names
    assert {n for n, x in fields(rest).items() if x is not None} == fields(rest).keys() - names
    assert same(eqx.combine(trained, rest), problem.variables)


def test_integers_and_functions_are_not_trained():
    task = {"layer": eqx.nn.MLP(2, 1, 3, 1, key=jax.random.key(0)), "count": jnp.arange(3), "name": "task"}
    problem = coding_problem(variables=coding_variables(task), train=lambda v: v.task)
    trained, rest = problem.split(problem.variables)
    assert len(jax.tree.leaves(trained)) == 4
    assert rest.task["layer"].activation is task["layer"].activation
    assert rest.task["name"] == "task"
    assert rest.task["layer"].layers[0].weight is None
    np.testing.assert_array_equal(rest.task["count"], task["count"])


@pytest.mark.parametrize(("constraint", "shortest"), [(bl.prox.UnitBall(), 0.1), (bl.prox.UnitSphere(), 1.0)])
def test_each_atom_is_projected_by_itself(constraint, shortest):
    norms = np.array([0.1, 0.5, 1.0, 2.0, 30.0])
    variables = coding_variables()
    variables = eqx.tree_at(dictionary_of, variables, dictionary_of(variables) * norms[:, None])
    problem = coding_problem(constraints=[bl.Constrained(dictionary_of, constraint)])
    projected = compiled(problem.project)(variables)
    after = np.linalg.norm(dictionary_of(projected), axis=1)
    np.testing.assert_allclose(after, np.clip(norms, shortest, 1), rtol=1e-14)
    directions = np.asarray(dictionary_of(projected)) / after[:, None]
    np.testing.assert_allclose(directions, dictionary_of(coding_variables()), rtol=1e-12)
    assert same(eqx.tree_at(dictionary_of, projected, dictionary_of(variables)), variables)


def test_numbers_of_the_task_become_arrays():
    variables = bl.Variables(coding_variables().objective, {"bias": 0.5, "head": np.ones(3), "count": 2})
    assert eqx.is_array(variables.task["bias"])
    assert eqx.is_array(variables.task["head"])
    assert variables.task["count"] == 2


BAD = {
    "objective": lambda: bl.Variables(lambda: None),
    "variables": lambda: bl.BilevelProblem(regression_loss, coding_variables().objective),
    "outer_loss": lambda: bl.BilevelProblem(None, coding_variables()),
    "inner_data": lambda: bl.BilevelProblem(regression_loss, coding_variables(), inner_data=0),
    "train` must select parts of the variables": lambda: coding_problem(train=lambda v: v.objective.dictionary[0]),
    "train` must select": lambda: coding_problem(train=lambda v: v.objective.dictoinary),
    "train` selects no floating array": lambda: coding_problem(train=lambda v: []),
    "constraints` must be bilevel.Constrained": lambda: coding_problem(constraints=[bl.prox.UnitBall()]),
    "constraints` must be bilevel.Constrained(where": lambda: coding_problem(constraints=UNIT_ATOMS),
    "constraints` must select": lambda: coding_problem(
        constraints=[bl.Constrained(lambda v: v.objective.atoms, bl.prox.UnitBall())]
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    with pytest.raises(ValueError, match=f"^`{name}".replace("(", r"\(")):
        BAD[name]()


def test_a_loss_that_is_no_number_is_refused():
    problem = coding_problem(lambda variables, codes, batch: codes[:, 0])
    with pytest.raises(ValueError, match="`outer_loss` must return a number, got shape"):
        compiled(problem.loss)(problem.variables, signals())
