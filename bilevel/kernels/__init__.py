"""Compiled loops for the CPU, called from within JAX programs. Elsewhere, and as the reference, plain JAX serves."""

from bilevel.kernels.host import (
    code_samples as code_samples,
    eigenvalue_bounds as eigenvalue_bounds,
    on_cpu as on_cpu,
    pull_samples as pull_samples,
    solve_samples as solve_samples,
    threads as threads,
)
