"""Pools of more problems than are worked on at once: their outcomes, gathered block by block.

Of a pool of at most `BLOCK` problems everything is kept, problem by problem. Of a larger one what
is kept are means over G groups of problems, as many in each as in any other and drawn at random.
The mean over the groups is the mean over the problems; a bootstrap over thousands of groups has the
intervals that one over the problems has, because both resample thousands of independent numbers
whose mean is the same. Tuning, comparison and report then go on as ever, in a memory that does not
grow with the pool.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from optscale_jax.derived_signals import VERIFIER_TOKENS
from optscale_jax.pool import BLOCK, Pool
from optscale_jax.pool_directory import AnyPool
from optscale_jax.replay import Block
from optscale_jax.study.outcomes import Method
from optscale_jax.study.tuning import folds

__all__ = ["Gathering", "groups", "is_large", "read_by_verifier", "sample_of", "sample_of_folds"]

_SUMMED = ("num_samples", "tokens", "score", "correct", "verifier_tokens")
_OF_PROBLEMS = ("selected_index", "stop_reason", "confidence")  # which no mean is taken of


def is_large(pool: AnyPool) -> bool:
    """Whether a pool has more problems than a block."""
    return pool.num_problems > BLOCK


def groups(num_problems: int) -> np.ndarray:
    """[P] the group of each problem: at random, of equal sizes, or nearly so.

    G is the number from `BLOCK` / 4 to `BLOCK` / 2 that divides P with the least remainder; so many
    groups have a problem more than the others.
    """
    counts = range(max(BLOCK // 4, 2), BLOCK // 2 + 1)
    return folds(num_problems, min(counts, key=lambda count: (num_problems % count, -count)))


def sample_of(pool: AnyPool, seed: int = 0) -> Pool:
    """`BLOCK` problems of a larger pool, at random and in its order; else the pool itself."""
    if isinstance(pool, Pool) and not is_large(pool):
        return pool
    count = min(BLOCK, pool.num_problems)
    drawn = np.random.default_rng(seed).choice(pool.num_problems, count, replace=False)
    return pool.subset(np.sort(drawn))


def sample_of_folds(pool: AnyPool, num_folds: int, seed: int) -> tuple[Pool, np.ndarray]:
    """Some problems of a large pool, to learn on, and where each of all problems finds its own.

    Args:
        pool: P problems.
        num_folds: Folds over the groups of problems, as in tuning; at most `BLOCK` / 4.
        seed: Of the folds.

    Returns:
        A pool of `BLOCK` / 2 of them, of which `folds` makes the folds that the groups are in, and
        [P] a place in it whose fold is that of the problem's group.
    """
    group = groups(pool.num_problems)
    of_problem = folds(int(group.max()) + 1, num_folds, seed=seed)[group]
    # Half as many as there are at least, so that no fold of groups has too few.
    of_slot = folds(BLOCK // 2, num_folds, seed=seed)
    chosen = np.empty(len(of_slot), int)
    shuffled = np.random.default_rng(seed).permutation(pool.num_problems)
    for fold in range(num_folds):
        slots = np.flatnonzero(of_slot == fold)
        chosen[slots] = shuffled[of_problem[shuffled] == fold][: len(slots)]
    place = np.argsort(np.argsort(chosen))
    return pool.subset(np.sort(chosen)).subset(place), (
        np.array([np.argmax(of_slot == fold) for fold in range(num_folds)])[of_problem]
    )


def read_by_verifier(pool: Pool, orders: np.ndarray, num_samples: np.ndarray) -> np.ndarray:
    """Tokens that the verifier read and wrote for the first completions in some orders.

    Args:
        pool: P problems, with the signal `VERIFIER_TOKENS`.
        orders: [K, P, N] as `permutations` gives.
        num_samples: [..., K, P] how many completions.

    Returns:
        [..., K, P]; NaN where it is not known.
    """
    read = pool.signals[VERIFIER_TOKENS][np.arange(pool.num_problems)[:, None], orders]
    spent = np.cumsum(read, axis=-1, dtype=float)
    order, problem = np.indices(orders.shape[:2])
    return spent[order, problem, np.maximum(num_samples - 1, 0)]


class Gathering:
    """Puts the outcomes of a pool's blocks together.

    Args:
        num_problems: P of the whole pool.
        in_groups: Whether as means over groups of problems, and not problem by problem.
    """

    def __init__(self, num_problems: int, *, in_groups: bool):
        self._num_problems = num_problems
        self._group = groups(num_problems) if in_groups else None
        self._blocks: list[list[Method]] = []  # problem by problem
        self._sums: list[_Sums] = []

    def add(self, block: Block, methods: Sequence[Method]) -> None:
        """Adds a block's outcomes; those of what fills it up are left out."""
        count = block.num_problems
        methods = [_mapped(method, lambda array: array[..., :count]) for method in methods]
        if self._group is None:
            self._blocks.append(methods)
            return
        self._sums = self._sums or [_Sums(method, int(self._group.max()) + 1) for method in methods]
        own = self._group[block.first : block.first + count]
        for total, method in zip(self._sums, methods, strict=True):
            total.add(method, own)

    def methods(self) -> list[Method]:
        """The outcomes of all problems."""
        if self._group is not None:
            return [total.method(self._num_problems) for total in self._sums]
        return [
            _mapped(parts[0], lambda *arrays: np.concatenate(arrays, axis=-1), *parts[1:])
            for parts in zip(*self._blocks, strict=True)
        ]


def _mapped(method: Method, change: Callable[..., np.ndarray], *others: Method) -> Method:
    """A method whose arrays over problems are made of its own and those of others."""
    changed: dict[str, Any] = {}
    for name in (*_SUMMED, *_OF_PROBLEMS):
        arrays = [getattr(one, name) for one in (method, *others)]
        changed[name] = None if any(a is None for a in arrays) else change(*arrays)
    return dataclasses.replace(method, **changed)


class _Sums:
    """Sums of one method's outcomes over each of G groups of problems."""

    def __init__(self, method: Method, num_groups: int):
        self._first = method
        settings, orders, _ = method.num_samples.shape
        self._known = [name for name in _SUMMED if getattr(method, name) is not None]
        self._sums = {n: np.zeros((settings, orders, num_groups)) for n in self._known}
        self._scored = np.zeros((settings, orders))
        self._without_length = np.zeros(settings, bool)

    def add(self, method: Method, group: np.ndarray) -> None:
        order = np.argsort(group, kind="stable")
        starts = np.flatnonzero(np.diff(group[order], prepend=-1))
        for name in self._known:
            values = np.asarray(getattr(method, name), float)
            values = np.nan_to_num(values) if name == "score" else values
            added = np.add.reduceat(values[..., order], starts, axis=-1)
            self._sums[name][..., group[order][starts]] += added
        self._scored += (~np.isnan(method.score)).sum(-1)
        self._without_length |= (method.tokens < 0).any((-2, -1))

    def method(self, num_problems: int) -> Method:
        """The means; of scores over the problems that have one, with the share that does."""
        # Multiplied so that the mean over groups is that over problems where sizes differ, too.
        scale = self._sums["score"].shape[-1] / num_problems
        means = {name: total * scale for name, total in self._sums.items()}
        means["tokens"][self._without_length] = -1
        share = self._scored / num_problems
        known = np.where(share > 0, share, np.nan)
        means["score"] /= known[..., None]
        none: dict[str, Any] = dict.fromkeys(("correct", "verifier_tokens", *_OF_PROBLEMS))
        return dataclasses.replace(self._first, **none | means, share_scored=share)
