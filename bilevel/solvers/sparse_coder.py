"""The batched specialist for elastic-net sparse codes with squared error."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar, ScalarLike

from bilevel.core import Solution
from bilevel.core.requirements import is_traced
from bilevel.kernels import code_samples, on_cpu
from bilevel.objectives import AbstractObjective, SparseCoding
from bilevel.objectives.base import row_norms
from bilevel.objectives.sample_hessian import SampleHessian
from bilevel.scale import DeviceMesh
from bilevel.solvers.base import AbstractSolver, check_options, refuse
from bilevel.solvers.loop import Unroll, default_tol, iterate, verdict

#: Accelerated steps between two attempts to finish by Newton's method.
STEPS_PER_ROUND = 40

#: How many rounds may pass, once all samples meet the tolerance, until the last of them is exact to rounding.
PATIENCE = 5

#: The most codes that one call of the compiled loop sees: 2²³ numbers are 64 MiB in 64 bits.
BLOCK_SIZE = 2**23

Codes = Float[Array, "samples atoms"]


class SparseCoder(AbstractSolver):
    """Finds each sample's support, and solves on it: codes that are exact to rounding.

    On the right support S with signs σ the codes are one small linear solve,

        (D_S D_Sᵀ + l2 I) c_S = D_S x − l1 σ,

    whose answer is taken for a sample only where it meets the optimality conditions of the whole problem. Samples are
    independent: each has its own steps and its own verdict, and its codes do not depend on its batch mates.

    On CPUs a compiled loop (`bilevel.kernels.active_set`) lets atoms join and leave the support one sample at a time,
    and turns to coordinate descent where that does not end. Elsewhere, accelerated proximal gradient steps on the Gram
    matrix, with a momentum for each sample that restarts when it points uphill, find all supports at once. Both
    converge where the system is singular (duplicated atoms with l2 = 0), to a solution that is not unique.

    **Attributes:**

    - `tol`: the bound on the relative optimality error of the worst sample; None is 1e-5 in 32 bits, 1e-8 in 64.
    - `max_steps`: the most steps to take (rounds and sweeps of the compiled loop; gradient steps).
    - `kernel`: whether to use the compiled loop. None: where the program runs on a CPU.
    - `polish`: whether to go on, once the tolerance is met, to codes exact to rounding, which costs little where
      tolerances are small, and is what derivatives need. If not, the compiled loop stops at the tolerance.
    - `mesh`: the devices of a `jax.sharding.Mesh` among which the samples lie; each codes its own, and they tell each
      other how it went when they are done.

    !!! cite
        A. Beck, M. Teboulle: A fast iterative shrinkage-thresholding algorithm for linear inverse problems. 2009.
        B. O'Donoghue, E. Candès: Adaptive restart for accelerated gradient schemes. 2015.
        X. Li, D. Sun, K.-C. Toh: A highly efficient semismooth Newton augmented Lagrangian method for solving Lasso
        problems. 2018.
    """

    tol: ScalarLike | None = None
    max_steps: int = 10_000
    kernel: bool | None = None
    polish: bool = True
    mesh: DeviceMesh | None = eqx.field(converter=DeviceMesh.of, default=None, kw_only=True)

    def __check_init__(self):
        check_options(self)
        if not (self.kernel is None or isinstance(self.kernel, bool)):
            raise ValueError(f"`kernel` must be True, False or None, got {self.kernel!r}.")

    def check(self, objective: AbstractObjective) -> None:
        if not isinstance(objective, SparseCoding):
            raise refuse(self, objective, "it is not SparseCoding", "ProximalGradient()")
        if objective.loss is not None:
            raise refuse(self, objective, "its loss is not the squared error", "ProximalGradient()")

    def run(
        self, objective: AbstractObjective, data: PyTree, init: PyTree, *, unroll: Unroll | None = None
    ) -> Solution:
        assert isinstance(objective, SparseCoding)
        tol = jnp.asarray(default_tol(init) if self.tol is None else self.tol).astype(init.dtype)
        by_kernel = lambda *args: _by_kernel(*args, max_steps=self.max_steps, polish=self.polish)
        by_steps = lambda *args: _by_steps(*args, max_steps=self.max_steps, unroll=unroll)
        if unroll is not None or self.kernel is False:
            code = by_steps
        else:
            code = by_kernel if self.kernel else lambda *args: on_cpu(by_kernel, by_steps, *args)
        if self.mesh is not None:
            code = _shard_by_shard(self.mesh, code)
        codes, error, steps, limit = code(objective, data, init, tol)
        # The error of a sample whose code is not finite is NaN.
        return verdict(codes, error, tol, steps, limit, finite=~jnp.isnan(error))


#: Codes, the error of the worst of them, the steps taken and how many there could have been.
_Outcome = tuple[Codes, Scalar, Int[Array, ""], Int[Array, ""]]
_Code = Callable[[SparseCoding, Float[Array, "samples features"], Codes, Scalar], _Outcome]


# Left to the compiler, the devices would agree in each gradient step on whether to go on, and the compiled loop, which
# it can't divide, would run on all samples everywhere.
def _shard_by_shard(mesh: DeviceMesh, code: _Code) -> _Code:
    """`code`, by each device for its own samples."""

    def on_mesh(objective: SparseCoding, data: Array, init: Codes, tol: Scalar) -> _Outcome:
        arrays, static = eqx.partition(objective, eqx.is_array)
        # Samples of zero, whose codes are zero, make all parts equal.
        fill = lambda x: jnp.pad(x, mesh.widths(x.shape, 0))

        def on_device(arrays: PyTree, tol: Scalar, data: Array, init: Codes) -> tuple[Codes, Array, Array, Array]:
            codes, *found = code(eqx.combine(arrays, static), data, init, tol)
            return codes, *(jax.lax.all_gather(x, mesh.axes) for x in found)

        everywhere, sharded = mesh.everywhere, mesh.over_samples
        in_specs, out_specs = (everywhere, everywhere, sharded, sharded), (sharded, everywhere, everywhere, everywhere)
        run = mesh.by_device(on_device, in_specs, out_specs)
        codes, *found = run(arrays, tol, fill(data), fill(init))
        # A maximum over devices, unlike that over an array, need not see NaN.
        error, steps, limit = map(jnp.max, found)
        codes = codes[: len(init)]
        # Outside of a program there are no parts but equal ones.
        if is_traced(codes):
            codes = jax.lax.with_sharding_constraint(codes, mesh.along(0))
        return codes, error, steps, limit

    return on_mesh


def _by_kernel(
    objective: SparseCoding,
    data: Float[Array, "samples features"],
    init: Codes,
    tol: Scalar,
    max_steps: int,
    polish: bool,
) -> _Outcome:
    gram, (samples, atoms) = objective.gram(), init.shape
    size = min(samples, max(1, BLOCK_SIZE // atoms))

    def code(block: Float[Array, "size features"], start: Codes) -> tuple[Codes, Scalar, Int[Array, ""]]:
        options = (objective.l1, objective.l2, start, tol, max_steps, polish)
        codes, errors, steps = code_samples(gram, objective.correlations(block), *options)
        return codes, jnp.max(errors), jnp.max(steps)

    def code_block(i: Array, carry: tuple[Codes, Scalar, Int[Array, ""]]) -> tuple[Codes, Scalar, Int[Array, ""]]:
        codes, error, steps = carry
        # The last block overlaps the one before.
        at = jnp.minimum(i * size, samples - size)
        rows = lambda x: jax.lax.dynamic_slice_in_dim(x, at, size)
        block, worst, more = code(rows(data), rows(codes))
        codes = jax.lax.dynamic_update_slice_in_dim(codes, block, at, 0)
        return codes, jnp.maximum(error, worst), jnp.maximum(steps, more)

    if size == samples:
        codes, error, steps = code(data, init)
    else:
        start = (init, jnp.zeros((), init.dtype), jnp.zeros((), jnp.int32))
        codes, error, steps = jax.lax.fori_loop(0, -(-samples // size), code_block, start)
    return codes, error, steps, jnp.asarray(max_steps, jnp.int32)


def _by_steps(
    objective: SparseCoding,
    data: Float[Array, "samples features"],
    init: Codes,
    tol: Scalar,
    max_steps: int,
    unroll: Unroll | None,
) -> _Outcome:
    problem = _Problem.of(objective, data)
    state = _State(init, init, jnp.ones_like(init[:, :1]), problem.errors(init), jnp.asarray(PATIENCE))
    # Within the tolerance a support may still be wrong by a coordinate that is about to enter, which a derivative
    # does not forgive. So the tolerance is what must be met, and exactness what is tried for.
    exact = jnp.asarray(4 * jnp.finfo(init.dtype).eps, init.dtype)
    if unroll is None:
        # A warm start may have the right support already.
        state = _finish(problem, state, tol)
    # What is unrolled stops at the very step that meets the tolerance.
    length = STEPS_PER_ROUND if unroll is None else 1

    def round_of_steps(state: _State) -> _State:
        state, _ = jax.lax.scan(lambda s, _: (_accelerated_step(problem, s), None), state, length=length)
        state = state._replace(errors=problem.errors(state.codes))
        met = jnp.all(state.errors <= tol)
        state = state._replace(patience=state.patience - met.astype(state.patience.dtype))
        # The Newton step has no derivative where its system is singular, so it stays out of what is unrolled.
        return _finish(problem, state, tol) if unroll is None else state

    def done(state: _State) -> Bool[Array, ""]:
        met = jnp.all(state.errors <= tol)
        return met if unroll is not None else met & (jnp.all(state.errors <= exact) | (state.patience <= 0))

    rounds = -(-max_steps // length)
    state, count = iterate(round_of_steps, done, state, rounds, unroll)
    steps, limit = (jnp.asarray(length * n).astype(jnp.int32) for n in (count, rounds))
    return state.codes, jnp.max(state.errors), steps, limit


class _Problem(NamedTuple):
    """½ cᵀ(G + l2 I)c − bᵀc + l1‖c‖₁ for each sample."""

    objective: SparseCoding
    data: Float[Array, "samples features"]
    gram: Float[Array, "atoms atoms"]
    correlations: Codes
    lipschitz: Scalar

    @classmethod
    def of(cls, objective: SparseCoding, data: Float[Array, "samples features"]) -> "_Problem":
        lipschitz = objective.local_lipschitz(objective.init(data), data)
        return cls(objective, data, objective.gram(), objective.correlations(data), lipschitz)

    def prox_gradient(self, codes: Codes) -> Codes:
        gradient = codes @ self.gram + self.objective.l2 * codes - self.correlations
        return self.objective.penalty().prox(codes - gradient / self.lipschitz, 1 / self.lipschitz)

    def errors(self, codes: Codes) -> Float[Array, " samples"]:
        """`SparseCoding.optimality_error` of each sample, on the Gram matrix."""
        residual = self.lipschitz * row_norms(codes - self.prox_gradient(codes))
        scale = row_norms(self.correlations) + self.lipschitz * row_norms(codes)
        relative = jnp.where(scale == 0, 0, residual / jnp.where(scale == 0, 1, scale))
        return jnp.where(jnp.isfinite(scale), relative, jnp.nan)


class _State(NamedTuple):
    """`ahead` is the extrapolated point and `momentum` FISTA's t, one for each sample.

    `patience` counts down from when the worst sample meets the tolerance.
    """

    codes: Codes
    ahead: Codes
    momentum: Float[Array, "samples 1"]
    errors: Float[Array, " samples"]
    patience: Int[Array, ""]


def _accelerated_step(problem: _Problem, state: _State) -> _State:
    codes = problem.prox_gradient(state.ahead)
    moved = codes - state.codes
    uphill = jnp.sum((state.ahead - codes) * moved, axis=1, keepdims=True) > 0
    momentum = jnp.where(uphill, 1, state.momentum)
    following = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
    return state._replace(codes=codes, ahead=codes + (momentum - 1) / following * moved, momentum=following)


def _finish(problem: _Problem, state: _State, tol: ScalarLike) -> _State:
    """The Newton step on the present support and signs, for those samples that it brings within `tol`, and nearer."""
    objective = problem.objective
    signs = jnp.sign(state.codes)
    hessian = SampleHessian(objective.dictionary, objective.l2, signs != 0, problem.data, None, None)
    right = jnp.where(signs != 0, problem.correlations - objective.l1 * signs, 0)
    finished = hessian.solve(right)
    errors = problem.errors(finished)
    # A singular system gives NaN, which compares as false.
    good = (errors <= tol) & (errors < state.errors)
    keep = lambda new, old: jnp.where(good[:, None], new, old)
    return _State(
        keep(finished, state.codes),
        keep(finished, state.ahead),
        keep(jnp.ones_like(state.momentum), state.momentum),
        jnp.where(good, errors, state.errors),
        state.patience,
    )
