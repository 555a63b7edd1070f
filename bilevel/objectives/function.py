"""An inner problem from a user's own function."""

from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import PyTree, Scalar

from bilevel.core import tree
from bilevel.core.requirements import Requirement, finite
from bilevel.objectives.base import AbstractObjective, hoisted
from bilevel.prox import AbstractPenalty


class FunctionObjective(AbstractObjective):
    """min over params of  function(hyperparams, params, data) + g(params).

    `hyperparams` and `params` are pytrees of any kind, Equinox modules with function leaves included; floating numbers
    in `hyperparams` become arrays, which the outer level may differentiate, and so are the leaves of `nonsmooth`, a
    penalty. `start` gives structure and start of `params`, unless `argmin` is given an `init`; its leaves that are not
    floating stay as they are.

    The function may close over traced values: `argmin` hoists them out, and derivatives reach them. Other values that
    it closes over are constants of its first call, as under `jit`: what may change belongs in `hyperparams` or `data`.

    ```python
    huber = lambda hyperparams, params, data: jnp.sum(optax.losses.huber_loss(data[0] @ params, data[1]))
    objective = bl.objectives.FunctionObjective(huber, start=jnp.zeros(5), nonsmooth=bl.prox.L1(0.1))
    ```
    """

    function: Callable[[PyTree, PyTree, PyTree], Scalar]
    hyperparams: PyTree
    nonsmooth: AbstractPenalty | None
    start: PyTree

    def __init__(
        self,
        function: Callable[[PyTree, PyTree, PyTree], Scalar],
        hyperparams: PyTree = None,
        *,
        start: PyTree = None,
        nonsmooth: AbstractPenalty | None = None,
    ):
        if not callable(function):
            raise ValueError(f"`function` must be a function of (hyperparams, params, data), got {function!r}.")
        if nonsmooth is not None and not isinstance(nonsmooth, AbstractPenalty):
            raise ValueError(
                f"`nonsmooth` must be a penalty such as bilevel.prox.L1(0.1), got {type(nonsmooth).__name__}."
            )
        self.function = function
        self.hyperparams = tree.to_arrays(hyperparams)
        self.nonsmooth = nonsmooth
        self.start = start

    def requirements(self) -> list[Requirement]:
        start = [finite("start", x) for x in jax.tree.leaves(self.start) if eqx.is_inexact_array(x)]
        return start + ([] if self.nonsmooth is None else self.nonsmooth.requirements())

    def smooth(self, params: PyTree, data: PyTree) -> Scalar:
        return self.function(self.hyperparams, params, data)

    def penalty(self) -> AbstractPenalty | None:
        return self.nonsmooth

    def init(self, data: PyTree) -> PyTree:
        if self.start is None:
            raise ValueError(
                "A FunctionObjective without `start` does not know the shape of `params`. Pass `start` to it, or "
                "`init` to argmin."
            )
        return tree.constant(tree.to_arrays(self.start))

    def hoist(self, params: PyTree, data: PyTree) -> "FunctionObjective":
        out = eqx.filter_eval_shape(self.function, self.hyperparams, params, data)
        if getattr(out, "shape", None) != ():
            raise ValueError(f"`function` must return a number, got {out}. Take a sum or a mean.")
        start = params if self.start is None else self.start
        function = hoisted(self.function, self.hyperparams, params, data)
        is_field = lambda x: x is None
        return eqx.tree_at(lambda o: (o.function, o.start), self, (function, start), is_leaf=is_field)
