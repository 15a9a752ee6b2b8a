"""The members of an ensemble: heads of one shape, each with weights of its own.

Their parameters are stacked, [members, ...] each, and named by their path in the module, as in
towers.0.output.bias, wherever they are kept.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import jax
import numpy as np
from flax import nnx

from optscale_jax.predictor.parts import HeadMaker

__all__ = ["abstract", "flatten", "initial", "make_outputs", "once", "shapes", "unflatten"]

BuildT = TypeVar("BuildT", bound=Callable[..., Any])


def abstract(head: HeadMaker, width: int) -> tuple[Any, Any]:
    """(graph, parameters' shapes) of one member, for features of a width."""
    return nnx.split(nnx.eval_shape(lambda: head(width, rngs=nnx.Rngs(0))), nnx.Param)


def initial(head: HeadMaker, width: int, members: int, seed: int) -> Any:
    """The stacked parameters that training starts from."""

    def one(key):
        return nnx.split(head(width, rngs=nnx.Rngs(key)), nnx.Param)[1]

    return jax.vmap(one)(jax.random.split(jax.random.key(seed), members))


def once(build: BuildT) -> BuildT:
    """Keeps what a function built for the same arguments, so that it is compiled once a process."""
    kept = functools.lru_cache(maxsize=16)(build)

    @functools.wraps(build)
    def call(*arguments):
        try:
            hash(arguments)
        except TypeError:  # a module of one's own may hold lists, which have no hash
            return build(*arguments)
        return kept(*arguments)

    return cast(BuildT, call)


@once
def make_outputs(graph: Any, sharding: Any = None) -> Callable[[Any, Any, Any], jax.Array]:
    """What computes the outputs of all members, jitted, without dropout.

    Args:
        graph: Of one member.
        sharding: Of the outputs; None: as the inputs'.

    Returns:
        (stacked parameters, features [B, length, width], mask [B, length]) to [B, members, 4].
    """

    def outputs(params, x, mask):
        return jax.vmap(lambda member: nnx.merge(graph, member)(x, mask), out_axes=1)(params)

    return jax.jit(outputs, out_shardings=sharding)


def flatten(params: Any) -> dict[str, np.ndarray]:
    """Parameters by path."""
    return {name: np.asarray(leaf[...]) for name, _, leaf in _leaves(params)}


def shapes(params: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of parameters by path."""
    return {name: leaf.shape for name, _, leaf in _leaves(params)}


def unflatten(like: Any, flat: Mapping[str, Any]) -> Any:
    """Parameters of the structure of others, from those by path."""
    return nnx.from_flat_state(
        [(path, leaf.replace(np.asarray(flat[name]))) for name, path, leaf in _leaves(like)]
    )


def _leaves(params: Any) -> Iterator[tuple[str, tuple[Any, ...], Any]]:
    for path, leaf in nnx.to_flat_state(params):
        yield ".".join(map(str, path)), path, leaf
