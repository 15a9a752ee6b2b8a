"""Flags with which XLA hardly optimises.

Most of what the suite compiles runs once, on few numbers, and optimising it took half of the
suite's time. Tests marked `exact`, which hold numbers to an exact reference, need what users'
compilation makes of them: `test_as_users_compile.py` runs them in a process without the flags.
"""

import jax

# Those of JAX 0.10, which is what set-up installs; an unknown flag would end the process, and
# without optimisations JAX 0.12 rearranges what the bound's exactness rests on.
FLAGS = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1"
    if jax.__version_info__ < (0, 11)
    else ""
)

AS_USERS_COMPILE = "test_numbers_are_exact_as_users_compile"
"""The test that runs the exact ones; where it is among those that run, they run only there."""
