"""Array types of the public signatures (jaxtyping), checked by beartype in the tests."""

from typing import Any, TypeAlias

import numpy.typing
from jaxtyping import Array, Float

# NumPy's own counts on float being accepted as complex, which holds for type checkers only.
ArrayLike: TypeAlias = numpy.typing.ArrayLike | float | int
FloatArray: TypeAlias = Float[Array, "..."]

# Leaves of a pytree: of many settings they are arrays, under a transformation tracers, and JAX puts
# placeholders in their place; so the name says what one setting holds, and nothing is checked.
Number: TypeAlias = float | Any
Count: TypeAlias = int | Any

__all__ = ["Array", "ArrayLike", "Count", "FloatArray", "Number"]
