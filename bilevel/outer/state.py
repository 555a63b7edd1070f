"""The state of training: one pytree, so that it can be scanned, saved and resumed."""

import equinox as eqx
import numpy as np
from jaxtyping import Array, Bool, Int, Key, PyTree, Scalar

from bilevel.outer.problem import Variables


class TrainingState(eqx.Module):
    """Everything that a training step reads and writes.

    **Attributes:**

    - `variables`: the outer variables.
    - `optimizer`: the Optax state.
    - `warm_start`: the last inner solution: of each sample of the data where samples are independent, else the whole;
      None without warm starts. On several processes, each has the solutions of its own samples.
    - `order`: the order of the samples in this epoch; empty for full batches. On several processes, each has that of
      its own samples.
    - `step`: how many steps were taken.
    - `key`: the source of all randomness to come.
    """

    variables: Variables
    optimizer: PyTree
    warm_start: PyTree
    order: Int[Array | np.ndarray, " samples"]
    step: Int[Array, ""]
    key: Key[Array, ""]


class StepMetrics(eqx.Module):
    """What a human wants to know of one step.

    **Attributes:** the outer `loss` before the step; `gradient_norm`; the inner solve's relative `optimality`, its
    `inner_steps` and whether it met its tolerance (`inner_success`); `refused`, whether the step was not taken because
    loss or gradient was not finite; `suspect`, the number of the first sample in the batch with an entry that is not
    finite, or -1.
    """

    loss: Scalar
    gradient_norm: Scalar
    optimality: Scalar
    inner_steps: Int[Array, ""]
    inner_success: Bool[Array, ""]
    refused: Bool[Array, ""]
    suspect: Int[Array, ""]
