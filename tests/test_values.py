"""Values with behaviour: frozen, compared by their choices, and pytrees of their numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from optscale_jax.values import Value, static


class Line(Value):
    """A value that checks its numbers where it is made."""

    slope: float
    offset: float = 0.0
    kind: str = static(default="straight")

    def __post_init__(self):
        if isinstance(self.slope, float) and self.slope <= 0:
            raise ValueError("slope must be above 0")

    def __call__(self, x):
        return self.slope * x + self.offset


class Pair(Value):
    """A value of values."""

    first: Line
    second: Line


def test_numbers_are_leaves_and_choices_are_structure():
    line = Line(slope=2.0)
    assert jax.tree.leaves(line) == [2.0, 0.0]
    assert jax.tree.structure(line) == jax.tree.structure(Line(slope=3.0, offset=1.0))
    assert jax.tree.structure(line) != jax.tree.structure(Line(slope=2.0, kind="dashed"))
    paths = jax.tree_util.tree_flatten_with_path(Pair(first=line, second=line))[0]
    assert [jax.tree_util.keystr(path) for path, _ in paths] == [
        ".first.slope",
        ".first.offset",
        ".second.slope",
        ".second.offset",
    ]


def test_a_function_of_values_compiles_once_and_is_mapped_and_differentiated():
    traces = []

    @jax.jit
    def apply(line, x):
        traces.append(line)
        return line(x)

    assert apply(Line(slope=2.0), 3.0) == 6
    assert apply(Line(slope=5.0, offset=1.0), 3.0) == 16
    assert len(traces) == 1
    made = jax.vmap(lambda slope: Line(slope=slope))(jnp.array([1.0, 2.0]))
    assert jax.vmap(lambda line: line(10.0), in_axes=(Line(slope=0, offset=None),))(
        dataclasses.replace(made, offset=1.0)
    ).tolist() == [11, 21]
    assert jax.grad(lambda line: line(4.0))(Line(slope=2.0)).slope == 4


def test_what_jax_puts_in_the_place_of_numbers_is_not_checked():
    structure = jax.tree.structure(Line(slope=2.0))
    assert jax.tree.unflatten(structure, [-1.0, None]).slope == -1
    with pytest.raises(ValueError, match="slope must be above 0"):
        Line(slope=-1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Line(slope=1.0).slope = 3.0
