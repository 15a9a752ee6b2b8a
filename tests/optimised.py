"""Functions compiled as users' are, where the suite's other programs are not optimised."""

from collections.abc import Callable
from typing import Any

import jax


def optimised(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit` of a function, at XLA's own level of optimisation whatever the suite's is."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 3})
