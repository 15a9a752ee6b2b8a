"""Values with behaviour: frozen dataclasses that are pytrees, numbers as leaves, choices static.

Policies, selectors and laws are such values. Two of equal choices have one structure, so whatever
their numbers JAX compiles a function of them once; their numbers can be stacked, mapped over and
differentiated, as an optimistix solver's or a flowjax bijection's can.
"""

import dataclasses
from typing import Any, cast, dataclass_transform

import jax

__all__ = ["Value", "static"]


def static(**options: Any) -> Any:
    """A field that is a choice: text, a switch, or a number that decides shapes.

    Its value is hashed and compared, and is no leaf.

    Args:
      **options: of `dataclasses.field`, such as `default=`.
    """
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(static,))
class Value:
    """Makes each class below it a frozen dataclass, with fields by keyword, and a pytree.

    A field is a leaf (a number, an array, or another value) unless it is declared with `static()`.
    """

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)
        fields = dataclasses.fields(cast(Any, cls))
        choices = [field.name for field in fields if field.metadata.get("static")]
        numbers = [field.name for field in fields if field.name not in choices]
        keys = [jax.tree_util.GetAttrKey(name) for name in numbers]

        def flatten(value):
            return [getattr(value, n) for n in numbers], tuple(getattr(value, n) for n in choices)

        def flatten_with_keys(value):
            children, held = flatten(value)
            return list(zip(keys, children, strict=True)), held

        def unflatten(held, children):
            # Not by __init__, whose checks are of numbers: JAX puts placeholders in their place.
            value = object.__new__(cls)
            for name, part in zip((*numbers, *choices), (*children, *held), strict=True):
                object.__setattr__(value, name, part)
            return value

        jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
