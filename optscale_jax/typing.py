"""Array types of the public signatures (jaxtyping), checked by beartype in the tests."""

from typing import TypeAlias

from jaxtyping import Array, Bool, Float, Int
from numpy.typing import ArrayLike

Scalar: TypeAlias = Float[Array, ""]
FloatArray: TypeAlias = Float[Array, "..."]
IntArray: TypeAlias = Int[Array, "..."]
BoolArray: TypeAlias = Bool[Array, "..."]

__all__ = ["Array", "ArrayLike", "BoolArray", "FloatArray", "IntArray", "Scalar"]
