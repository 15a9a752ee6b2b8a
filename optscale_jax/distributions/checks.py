"""Checks of parameters whose values are known, that is outside jit, vmap and grad."""

import numpy as np
from jax.core import Tracer

from optscale_jax.typing import ArrayLike

__all__ = ["known"]


def known(value: ArrayLike) -> np.ndarray | None:
    """The value as a NumPy array, or None while JAX is tracing it."""
    return None if isinstance(value, Tracer) else np.asarray(value)
