"""How much the compiler optimises while the tests run.

Most of what the suite compiles runs once, on few numbers: optimising it took half of the suite's
time. So it is compiled plainly, but for the tests that hold the numbers to an exact reference,
which compile as users do.
"""

import functools

import jax

_FULLY: dict[str, int | bool] = {"xla_backend_optimization_level": 3}
_PLAINLY: dict[str, int | bool] = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_parallel_codegen_split_count": 1,
}
# An unknown flag ends the process, and later versions of JAX have no choice of emitters.
if jax.__version_info__ < (0, 11):
    _FULLY["xla_cpu_use_fusion_emitters"] = True
    _PLAINLY["xla_cpu_use_fusion_emitters"] = False

PLAINLY = " ".join(f"--{flag}={str(value).lower()}" for flag, value in _PLAINLY.items())
"""For XLA_FLAGS."""

jit = functools.partial(jax.jit, compiler_options=_FULLY)
"""`jax.jit` with all of the compiler's optimisations, as outside the tests."""
