"""Policies made of policies: one with a lower cap, and many settings of one as a stack.

A grid of settings is one policy whose numbers have a leading axis [S]. Replay maps over it, in one
compilation; what does not depend on the settings, above all the fit of the law of scores, is
computed once for all of them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from optscale_jax.distributions.base import known
from optscale_jax.policies.base import Policy, check_count, check_not_above
from optscale_jax.typing import Array

__all__ = ["any_setting", "as_arrays", "axes", "capped", "num_settings", "stack", "unstack"]


def capped(policy: Policy, cap: Any) -> Policy:
    """The same rule with a lower cap on its samples, and the same structure and compilation.

    Args:
      policy: the rule.
      cap: the most completions to draw, an integer in [1, policy.max_samples], a ValueError
        otherwise; may be traced.
    """
    cap = check_count("cap", cap)
    check_not_above("cap", cap, f"the policy's max_samples, {policy.max_samples}", policy.slots)
    return dataclasses.replace(policy, max_samples=cap)


def stack(policies: Sequence[Policy]) -> Policy:
    """Several settings of one rule as one policy, its numbers with a leading axis [S].

    Numbers that are the same in all of them stay as they are. There is room for the largest cap.

    Args:
      policies: S >= 1 policies that differ in numbers alone; their caps may differ too. Their
        priors must be the same, and stay as they are.

    Raises:
      ValueError: they differ in a choice, in the shape of a number, or in their priors.
    """
    if not policies:
        raise ValueError("policies: none given; a stack has at least one")
    slots = max(policy.slots for policy in policies)
    prior = policies[0].prior
    for index, policy in enumerate(policies):
        if not _same_prior(policy.prior, prior):
            raise ValueError(f"policies[{index}] has another prior than policies[0]")
    bare = [dataclasses.replace(policy, slots=slots, prior=None) for policy in policies]
    expected = jax.tree.structure(bare[0])
    for index, policy in enumerate(bare):
        if jax.tree.structure(policy) != expected:
            raise ValueError(
                f"policies[{index}] is {policy}, which differs from policies[0] in more than "
                f"numbers: {bare[0]}"
            )
    try:
        stacked = jax.tree.map(_together, *bare)
    except ValueError as error:
        raise ValueError(f"policies: numbers of different shapes do not stack: {error}") from error
    if num_settings(stacked) is None:
        caps = np.stack([policy.max_samples for policy in bare])
        stacked = dataclasses.replace(stacked, max_samples=caps)
    return dataclasses.replace(stacked, prior=prior)


def _together(*numbers: Any) -> Any:
    """The numbers stacked; one of them if all are equal, so that what hangs on it is done once."""
    whole = np.stack(numbers)
    return numbers[0] if (whole == whole[0]).all() else whole


def unstack(policy: Policy) -> list[Policy]:
    """The settings of a stacked policy one by one; [policy] if it is not stacked."""
    size = num_settings(policy)
    if size is None:
        return [policy]
    bare = dataclasses.replace(policy, prior=None)

    def setting(index: int) -> Policy:
        one = jax.tree.map(lambda v: np.asarray(v)[index] if np.ndim(v) else v, bare)
        return dataclasses.replace(one, prior=policy.prior)

    return [setting(index) for index in range(size)]


def num_settings(policy: Policy) -> int | None:
    """How many settings a policy stacks; None for a single one.

    Raises:
      ValueError: a field is no number, or numbers have leading axes that do not match.
    """
    sizes = {}
    # A prior's own leading axis is that of the problems.
    for name, number in _numbers(dataclasses.replace(policy, prior=None)):
        shape = np.shape(number)
        if len(shape) == 1:
            sizes[name] = shape[0]
        elif shape:
            raise ValueError(
                f"policy: {name} has shape {shape}; one setting has 0 axes, and a stacked policy "
                "one more, in front"
            )
    if len(set(sizes.values())) > 1:
        each = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(
            f"policy: a stacked policy has one number of settings, but its fields have {each}"
        )
    return next(iter(sizes.values()), None)


def axes(policy: Policy) -> Policy:
    """For vmap, of a policy without a prior: 0 for each stacked number, None for the others."""
    return jax.tree.map(lambda number: 0 if np.ndim(number) else None, policy)


def as_arrays(policy: Policy) -> Policy:
    """The policy with arrays for its numbers, floating ones in JAX's own precision.

    Raises:
      ValueError: a field is no number.
    """
    numbers = [_as_array(name, number) for name, number in _numbers(policy)]
    return jax.tree.unflatten(jax.tree.structure(policy), numbers)


@custom_vmap
def any_setting(condition: Array) -> Array:
    """Whether a condition holds for at least one of the settings mapped over; bool scalar.

    As the predicate of `jax.lax.cond` it keeps a real branch where settings are mapped over: a
    predicate that differs between settings would run both branches, once for each setting.
    """
    return condition


@any_setting.def_vmap
def _(axis_size, in_batched, condition):
    del axis_size
    (batched,) = in_batched
    return any_setting(jnp.any(condition, axis=0) if batched else condition), False


# The numbers of a policy --------------------------------------------------------------------------


def _numbers(policy: Policy) -> list[tuple[str, Any]]:
    """The name and the number of each leaf, in JAX's order."""
    leaves = jax.tree_util.tree_leaves_with_path(policy)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in leaves]


def _as_array(name: str, number: Any) -> Any:
    array = known(number)
    if array is None:
        return number
    if array.dtype == bool:
        return array
    if np.issubdtype(array.dtype, np.floating):
        return array.astype(jnp.result_type(float))
    if np.issubdtype(array.dtype, np.integer):
        return array.astype(np.int32)
    raise ValueError(
        f"policy: its field {name} is {number!r}, which is no number; declare a choice as "
        f"`{name.rpartition('.')[2]}: {type(number).__name__} = static()` (optscale_jax.values)"
    )


def _same_prior(a: Any, b: Any) -> bool:
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))
