"""Array types of the public signatures (jaxtyping), checked by beartype in the tests."""

from typing import TypeAlias

import numpy.typing
from jaxtyping import Array, Bool, Float, Int

# NumPy's own counts on float being accepted as complex, which holds for type checkers only.
ArrayLike: TypeAlias = numpy.typing.ArrayLike | float | int
Scalar: TypeAlias = Float[Array, ""]
FloatArray: TypeAlias = Float[Array, "..."]
IntArray: TypeAlias = Int[Array, "..."]
BoolArray: TypeAlias = Bool[Array, "..."]

__all__ = ["Array", "ArrayLike", "BoolArray", "FloatArray", "IntArray", "Scalar"]
