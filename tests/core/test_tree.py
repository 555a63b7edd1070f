"""Pytree algebra."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.core import tree


def test_numbers_become_arrays_and_the_rest_stays():
    leaves = {"a": 0.5, "b": np.float32(2), "c": np.arange(3), "d": 3, "e": "text", "f": True, "g": None}
    arrays = tree.to_arrays(leaves)
    assert {k: v.dtype.name for k, v in arrays.items() if eqx.is_array(v)} == {
        "a": "float64",
        "b": "float32",
        "c": "int64",
    }
    assert not arrays["a"].weak_type
    assert [arrays[k] for k in "defg"] == [3, "text", True, None]


def test_new_numbers_do_not_recompile():
    traces = []
    count = eqx.filter_jit(lambda x: traces.append(x))
    for number in (0.5, np.float64(0.25), np.asarray(2.0), jnp.asarray(3.0, float)):
        count(tree.to_arrays(number))
        count(tree.float_arrays(number))
    count(tree.float_arrays(1))
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("leaf", "dtype"),
    [(1, "float64"), (0.5, "float64"), (np.arange(2), "float64"), (jnp.ones(2, "float32"), "float32")],
)
def test_float_arrays(leaf, dtype):
    (array,) = tree.float_arrays((leaf,))
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, leaf)


def test_what_is_no_number_is_no_float_array():
    assert tree.float_arrays(("text", None)) == ("text", None)


def test_dtype_is_the_widest():
    assert tree.dtype((jnp.ones(2, "float32"), jnp.arange(2), 1.0)) == "float32"
    assert tree.dtype({"a": jnp.ones(2, "float32"), "b": jnp.ones(())}) == "float64"
    assert tree.dtype(()) == "float64"


def test_broadcast():
    x = {"a": jnp.ones((2, 3)), "b": (jnp.ones(3, "float32"), jnp.ones(()))}
    full = tree.broadcast("it", {"a": jnp.arange(3.0), "b": 0.5}, x)
    assert eqx.filter_eval_shape(lambda: full) == eqx.filter_eval_shape(lambda: x)
    np.testing.assert_array_equal(full["a"], [[0, 1, 2], [0, 1, 2]])
    assert full["b"][0].tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("prefix", [{"a": 1.0}, (1.0, 2.0), np.ones(2)])
def test_what_does_not_broadcast_is_an_error(prefix):
    with pytest.raises(ValueError, match="`it`"):
        tree.broadcast("it", prefix, {"a": jnp.ones(3), "b": jnp.ones(3)})


def test_max_abs():
    assert tree.max_abs({"a": jnp.asarray([1.0, -3.0]), "b": jnp.asarray(2.0, "float32")}) == 3
    assert tree.max_abs({"a": jnp.zeros((0, 2)), "b": ()}) == 0
    assert jnp.isnan(tree.max_abs((jnp.ones(2), jnp.asarray(jnp.nan))))
    assert tree.max_abs(jnp.ones(2, "float32")).dtype == "float32"


def test_all_finite():
    finite = {"a": jnp.ones(2), "b": jnp.arange(2), "c": "text"}
    assert bool(tree.all_finite(finite))
    assert bool(tree.all_finite(()))
    assert not bool(tree.all_finite({**finite, "d": jnp.asarray([1.0, jnp.inf])}))


def test_where():
    a, b = {"x": jnp.ones(2), "name": "a"}, {"x": jnp.zeros(2), "name": "b"}
    for condition in (True, False):
        chosen = eqx.filter_jit(tree.where)(jnp.asarray(condition), a, b)
        np.testing.assert_array_equal(chosen["x"], float(condition))
        assert chosen["name"] == "a"
