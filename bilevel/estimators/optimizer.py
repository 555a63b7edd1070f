"""Adam with a rate that falls to zero, as a pytree."""

from typing import Any

import jax.numpy as jnp
import optax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, PyTree


def cosine_adam(learning_rate: float, num_steps: int, dtype: Any) -> optax.GradientTransformation:
    """Adam whose rate at step t is  learning_rate · ½ (1 + cos(π t / num_steps)).

    The same as `optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))`, whose functions close over the two
    numbers, so that other numbers are another program to compile. Here they are leaves.
    """
    numbers = jnp.asarray(learning_rate, dtype), jnp.asarray(num_steps, dtype)
    return optax.GradientTransformation(Partial(_init, *numbers), Partial(_update, *numbers))


def _adam(learning_rate: Float[Array, ""], num_steps: Float[Array, ""]) -> optax.GradientTransformation:
    def rate(count: ArrayLike) -> Array:
        return learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * jnp.asarray(count).astype(num_steps.dtype) / num_steps))

    return optax.adam(rate)


def _init(learning_rate: Float[Array, ""], num_steps: Float[Array, ""], params: PyTree) -> PyTree:
    return _adam(learning_rate, num_steps).init(params)


def _update(
    learning_rate: Float[Array, ""], num_steps: Float[Array, ""], updates: PyTree, state: PyTree, params: PyTree = None
) -> tuple[PyTree, PyTree]:
    return _adam(learning_rate, num_steps).update(updates, state, params)
