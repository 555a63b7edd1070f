"""The prox and its derivatives on stacks of points, compiled once for each member and shared by all laws."""

import collections

import equinox as eqx
import jax
import jax.numpy as jnp

from tests.prox.members import STEPSIZE

traces: collections.Counter = collections.Counter()


def _prox(penalty, stack):
    return jax.vmap(lambda x: penalty.prox(x, STEPSIZE))(stack)


@eqx.filter_jit
def _prox_and_value(penalty, stack):
    traces["prox"] += 1
    return _prox(penalty, stack), jax.vmap(penalty.value)(stack)


def prox(penalty, stack):
    return _prox_and_value(penalty, stack)[0]


def value(penalty, stack):
    return _prox_and_value(penalty, stack)[1]


@eqx.filter_jit
def pull(penalty, stack, cotangents):
    """Backward: the prox, and the cotangents of the penalty and of the points."""
    out, pullback = jax.vjp(_prox, penalty, stack)
    return out, *pullback(cotangents)


@eqx.filter_jit
def push_and_pull(penalty, stack, cotangents, tangent, directions):
    """Forward, backward, and forward over backward.

    The derivative of the prox along `tangent` of the penalty's own numbers and `directions` of the points; the
    cotangents of the penalty and of the points; and the derivatives of these, with `directions` of the cotangents too.
    """
    pullback = lambda p, s, c: jax.vjp(_prox, p, s)[1](c)
    pushed = jax.jvp(_prox, (penalty, stack), (tangent, directions))[1]
    return pushed, *jax.jvp(pullback, (penalty, stack, cotangents), (tangent, directions, directions))


def push(penalty, stack, tangent, directions):
    return push_and_pull(penalty, stack, jnp.ones_like(stack), tangent, directions)[0]


@eqx.filter_jit
def restrict(penalty, stack, directions):
    return jax.vmap(penalty.restrict)(stack, directions)


def moved(tree, tangent, step):
    return jax.tree.map(lambda x, t: x + step * t, tree, tangent)


def still(penalty):
    return jax.tree.map(jnp.zeros_like, penalty)
