"""Solvers on meshes, in a process of their own, as the number of devices is fixed when JAX starts."""

import os
import subprocess
import sys

from tests.outer.processes import ROOT

CODES = """
import jax.numpy as jnp
import numpy as np

import bilevel as bl

rng = np.random.default_rng(0)
problem = bl.objectives.SparseCoding(jnp.asarray(rng.normal(size=(4, 3))), 0.2)
X = jnp.asarray(rng.normal(size=(7, 3)))
alone, shared = (bl.solvers.SparseCoder(mesh=mesh).run(problem, X, problem.init(X)) for mesh in (None, 3))
assert shared.result == bl.RESULTS.successful
np.testing.assert_allclose(shared.params, alone.params, rtol=1e-12)
"""


def test_codes_of_samples_that_devices_do_not_divide_outside_of_a_program():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=3", "JAX_ENABLE_X64": "1"}
    command = [sys.executable, "-c", CODES]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
