"""Compilation for tests: the same programs, compiled in a fifth of the time; and counted."""

import collections
from collections.abc import Callable

import equinox as eqx
import jax


def _known(options: dict) -> dict:
    """Those of XLA's options that the XLA at hand knows."""
    known = {}
    for name, value in options.items():
        try:
            jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
        except jax.errors.JaxRuntimeError:
            continue
        known[name] = value
    return known


# Tiny problems take microseconds to run and seconds to compile.
_CHEAP = _known(
    {
        "xla_backend_optimization_level": 0,
        "xla_cpu_use_fusion_emitters": False,
        # Splitting the code among threads costs more than it saves where there is little of it.
        "xla_cpu_parallel_codegen_split_count": 1,
    }
)


def compiled(function: Callable) -> Callable:
    """`eqx.filter_jit(function)`, compiled cheaply; not to be called within another `jit`."""
    return eqx.filter_jit(function, compiler_options=_CHEAP)


_events: collections.Counter = collections.Counter()
jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: _events.update([event]))


def compilations() -> int:
    """How many programs XLA has compiled so far, single operations outside `jit` included."""
    return _events["/jax/core/compile/backend_compile_duration"]
