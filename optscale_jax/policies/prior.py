"""What a rule knows of a problem before any completion: one value for all of them, or one each."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["of_each_problem", "of_problem"]


def of_each_problem(prior: Any, num_problems: int) -> Any:
    """A prior with an entry for each of P problems, from one for all of them or one for each.

    Args:
      prior: a dataclass and pytree of numbers or arrays, such as a `Prior`; None = none. A class
        whose fields are arrays even for one problem says so in `axes`, from the field to how many.
      num_problems: P.

    Returns:
      The same with NumPy arrays [P, ...], in JAX's own precision; None for None.

    Raises:
      ValueError: a field has neither the shape for one problem nor one more axis of P in front.
    """
    if prior is None:
        return None
    axes, dtype = getattr(prior, "axes", {}), np.dtype(jnp.result_type(float))

    def spread(name: str) -> np.ndarray:
        value = np.asarray(getattr(prior, name), dtype)
        own = axes.get(name, 0)
        if value.ndim == own:
            return np.broadcast_to(value, (num_problems, *value.shape))
        if value.ndim == own + 1 and len(value) == num_problems:
            return value
        raise ValueError(
            f"{type(prior).__name__}: {name} has shape {value.shape}; {num_problems} problems need "
            f"one for all, with {own} axes, or one for each, with an axis of {num_problems} in "
            "front"
        )

    fields = (field.name for field in dataclasses.fields(prior))
    return dataclasses.replace(prior, **{name: spread(name) for name in fields})


def of_problem(prior: Any, place: int) -> Any:
    """The entry of one problem of what `of_each_problem` gives."""
    return jax.tree.map(lambda values: values[place], prior)
