"""Conditions on values: `ValueError` where they are known, an error at run time where they are traced."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.core.requirements import (
    Requirement,
    all_hold,
    as_float_array,
    eagerly,
    finite,
    guard,
    is_traced,
    nonnegative,
    ordered,
    positive,
    raise_where_violated,
)

GOOD = [
    (finite, ("x", [0.0, -1.0])),
    (finite, ("x", np.arange(3))),
    (nonnegative, ("x", 0)),
    (nonnegative, ("x", np.array([0.0, 2.0], np.float32))),
    (positive, ("x", 1e-300)),
    (ordered, ("low", [-np.inf, 1.0], "high", np.float32(1))),
]
BAD = [
    (finite, ("x", [0.0, np.nan, np.inf]), "`x` has 2 entries that are NaN or infinite"),
    (finite, ("x", "text"), "`x` must be an array of numbers, got str"),
    (nonnegative, ("x", -0.5), "`x` must be finite and not negative, got -0.5"),
    (nonnegative, ("x", [[0.0, 1.0], [np.nan, -1.0]]), r"`x` .* got nan at index \(1, 0\)"),
    (nonnegative, ("x", 1j), "`x` must be real, got dtype complex128"),
    (positive, ("x", 0), "`x` must be finite and positive, got 0"),
    (positive, ("x", [1.0, np.inf]), r"`x` .* got inf at index \(1,\)"),
    (ordered, ("low", 1.0, "high", 0.5), "`low` must not be above `high`, got 1.0 and 0.5"),
    (ordered, ("low", [0.0, 2.0], "high", 1.0), r"`low` .* got 2.0 and 1.0 at index \(1,\)"),
    (ordered, ("low", np.nan, "high", 1.0), "`low` must not be above `high`"),
    (ordered, ("low", 0.0, "high", None), "`high` must be an array of numbers, got NoneType"),
]


@pytest.mark.parametrize(("make", "arguments"), GOOD)
def test_what_holds_passes(make, arguments):
    raise_where_violated([make(*arguments)])
    assert bool(all_hold([make(*arguments)]))


@pytest.mark.parametrize(("make", "arguments", "message"), BAD)
def test_a_known_violation_is_a_value_error(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        raise_where_violated([make(*arguments)])
    # A constant is known while `jit` traces, too.
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda: raise_where_violated([make(*arguments)]))()


@pytest.mark.parametrize(
    ("make", "good", "bad"), [(finite, 1.0, np.nan), (nonnegative, 0.0, -1.0), (positive, 1.0, 0.0)]
)
def test_a_traced_violation_is_an_error_at_run_time(make, good, bad):
    @eqx.filter_jit
    def guarded(x):
        requirements = [make("x", x)]
        raise_where_violated(requirements)
        return guard({"y": 2 * x}, requirements), all_hold(requirements)

    value, holds = guarded(jnp.asarray(good))
    assert value["y"] == 2 * good
    assert holds
    with pytest.raises(RuntimeError, match="`x`"):
        guarded(jnp.asarray(bad))


def test_all_hold_is_a_value():
    count = eqx.filter_jit(eqx.filter_vmap(lambda x: all_hold([positive("x", x), finite("y", 1.0)])))
    np.testing.assert_array_equal(count(jnp.asarray([1.0, 0.0, jnp.nan])), [True, False, False])
    assert bool(all_hold([]))
    assert not bool(all_hold([Requirement(jnp.asarray(False), ""), positive("x", 1.0)]))


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (0.5, "float64"),
        (1, "float64"),
        (np.float32(2), "float32"),
        ([1.0, 2.0], "float64"),
        (jnp.ones(2, "bfloat16"), "bfloat16"),
    ],
)
def test_numbers_become_float_arrays(value, dtype):
    array = as_float_array("x", value)
    assert array.dtype == dtype
    assert not array.weak_type
    np.testing.assert_array_equal(array.astype(float), np.asarray(value, float))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.arange(3), r"`x` must have a floating dtype, got int64. Try `x.astype\(float\)`"),
        (np.ones(3, bool), "`x` must have a floating dtype, got bool"),
        (np.ones(2, complex), "`x` must be real, got dtype complex128"),
        ("text", "`x` must be an array of numbers, got str"),
        (None, "`x` must be an array of numbers, got NoneType"),
        ([[1.0], [1.0, 2.0]], "`x` must be an array of numbers, got list"),
        (np.ones((2, 2)), r"`x` must have 1 axes, got shape \(2, 2\)"),
        (1.0, r"`x` must have 1 axes, got shape \(\)"),
    ],
)
def test_what_is_no_float_array_is_named(value, message):
    with pytest.raises(ValueError, match=message):
        as_float_array("x", value, ndim=1)


def test_a_list_may_hold_traced_numbers():
    assert jax.jit(lambda x: as_float_array("x", [x, 1.0], ndim=1))(0.5).tolist() == [0.5, 1.0]


def test_what_is_computed_eagerly_is_known():
    def known(x):
        with eagerly(x):
            from_traced = is_traced(jnp.asarray(1.0) + x)
        with eagerly(2.0):
            from_known = is_traced(jnp.asarray(1.0) + 2.0)
        assert (from_traced, from_known, is_traced(1.0)) == (True, False, False)
        return x

    jax.jit(known)(1.0)
