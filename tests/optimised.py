"""How much the compiler optimises while the tests run.

Most of what the suite compiles runs once, on few numbers: optimising it took half of the suite's
time. So it is compiled plainly, but for the tests that hold the numbers to an exact reference,
which compile as users do.
"""

import functools

import jax

# The flags of JAX 0.10, which pyproject.toml asks for: an unknown one would end the process.
PLAINLY = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1"
)
jit = functools.partial(
    jax.jit,
    compiler_options={"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True},
)
"""`jax.jit` with all of the compiler's optimisations, as outside the tests."""
