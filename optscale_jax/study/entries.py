"""A configured comparison: its policies checked against each other, against a pool, and replayed.

entries = entries_of([PolicyConfig("optscale", s_min=[.9, .95], ...), PolicyConfig(...)])
outcomes = replay_comparison(pool, entries, seed=0, num_permutations=20)
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from optscale_jax.derived_signals import VERIFIER_TOKENS
from optscale_jax.errors import InputError, bad_input
from optscale_jax.policies import Policy
from optscale_jax.policies.prior import of_each_problem
from optscale_jax.pool import BLOCK, Pool, PoolError
from optscale_jax.pool_directory import AnyPool
from optscale_jax.replay import (
    Block,
    ReplayResult,
    block_key,
    blocks_to_replay,
    permutations,
    refusal,
    replay,
)
from optscale_jax.study.blocks import (
    Gathering,
    groups,
    is_large,
    read_by_verifier,
    sample_of_folds,
)
from optscale_jax.study.goodness_of_fit import fitted_law
from optscale_jax.study.learning import learns, learnt_on_the_others
from optscale_jax.study.outcomes import Method, Outcomes
from optscale_jax.study.pools import PoolSource
from optscale_jax.study.priors import priors_of_entries
from optscale_jax.study.registry import Entry, describe, expand, words_of

__all__ = [
    "ORACLE",
    "LeftOut",
    "by_cap",
    "caps_of",
    "entries_of",
    "in_words",
    "leave_out",
    "lowered_to",
    "notes_on_blocks",
    "num_steps",
    "replay_comparison",
]

ORACLE = "known_law"
"""The policy that is told each problem's law of scores: the fit to all its scores in the pool."""
_BASELINES = ("best_of_n", "self_consistency")
# What differences are taken from: the first of them that a comparison has at an N.


def entries_of(configs: Sequence[Any], where: Sequence[str] | None = None) -> list[Entry]:
    """The policies of a comparison with their grids, one or more each, checked against each other.

    Args:
        configs: The policies, each a `PolicyConfig` or the same with one's own rules' arguments.
        where: Their fields in the configuration, for messages; default "policies[i]".

    Raises:
        InputError: If a policy cannot be made, or two cannot be told apart.
    """
    if where is None:
        where = [f"policies[{index}]" for index in range(len(configs))]
    pairs = zip(configs, where, strict=True)
    entries = [entry for config, place in pairs for entry in expand(config, place)]
    labels: dict[str, str] = {}
    seen: dict[tuple[str, str], str] = {}
    for entry in entries:
        if entry.label in labels:
            raise InputError(
                f"{entry.where}.label: {entry.label!r} is also {labels[entry.label]}; give each "
                "its own"
            )
        labels[entry.label] = entry.where
        for setting in entry.settings:
            key = (entry.name, describe(setting, entry.name))
            if key in seen:
                raise InputError(f"{entry.where}: {' '.join(key)} is also in {seen[key]}")
            seen[key] = entry.where
    return entries


def caps_of(entry: Entry) -> np.ndarray:
    """[S] the most that each setting of an entry can draw."""
    return np.array([policy.max_samples for policy in entry.policies])


def by_cap(label: str, caps: np.ndarray) -> dict[int, int]:
    """The index of a baseline's setting for each cap; refuses several for one."""
    found: dict[int, int] = {}
    for index, cap in enumerate(caps.tolist()):
        if cap in found:
            raise InputError(
                f"baseline: {label} has several settings that draw up to {cap}; name a policy that "
                "has one for each cap"
            )
        found[cap] = index
    return found


class LeftOut(NamedTuple):
    """Settings of an entry that a pool cannot serve: their N (() for all that it has), and why."""

    label: str
    caps: tuple[int, ...]
    reason: str

    def __str__(self) -> str:
        return f"{self._what} is left out: {self.reason}"

    @property
    def _what(self) -> str:
        return self.label + (f" at N = {', '.join(map(str, self.caps))}" if self.caps else "")


def in_words(left_out: Iterable[LeftOut]) -> list[str]:
    """What is left out, one sentence for each reason."""
    reasons: dict[str, list[LeftOut]] = {}
    for each in left_out:
        reasons.setdefault(each.reason, []).append(each)
    return [
        str(those[0])
        if len(those) == 1
        else f"{'; '.join(each._what for each in those)} are left out: {reason}"
        for reason, those in reasons.items()
    ]


def leave_out(
    entries: Iterable[Entry], pool: AnyPool, num_permutations: int
) -> tuple[list[Entry], list[LeftOut]]:
    """Keeps the settings that a pool can serve; returns the entries, and what is left out."""
    kept, left_out = [], []
    for entry in entries:
        served, reasons = [], {}
        for index, policy in enumerate(entry.policies):
            found = refusal(pool, policy, num_permutations)
            if found is None:
                served.append(index)
            else:
                reasons.setdefault(found.reason, set()).add(policy.max_samples)
        for reason, caps in reasons.items():
            left_out.append(LeftOut(entry.label, tuple(sorted(caps)) if served else (), reason))
        if served:
            kept.append(entry.only(served))
    return kept, left_out


def lowered_to(pool: AnyPool, caps: Iterable[int]) -> list[str]:
    """A note on the N that are more than a pool has, and were lowered; none where none were."""
    if not (above := ", ".join(map(str, sorted(caps)))):
        return []
    first = int(pool.samples_per_problem.argmin())
    depth, name = int(pool.samples_per_problem[first]), str(pool.problem_ids[first])
    return [f"N = {above} is compared at N = {depth}: problem {name!r} has no more completions"]


def notes_on_blocks(pool: AnyPool, entries: Iterable[Entry]) -> list[str]:
    """What is other than usual of a pool that is replayed in blocks; nothing of others."""
    if not is_large(pool):
        return []
    count = int(groups(pool.num_problems).max()) + 1
    found = [
        f"intervals are over {count:,} groups of {pool.num_problems // count:,} problems each, "
        "and outcomes are kept of the groups alone"
    ]
    coupling = [e.label for e in entries if any(p.couples_problems for p in e.policies)]
    if coupling:
        found.append(f"{', '.join(coupling)}: problems are ranked among {BLOCK:,} at a time")
    return found


def replay_comparison(
    pool: AnyPool,
    entries: Sequence[Entry],
    *,
    seed: int,
    num_permutations: int,
    num_folds: int = 5,
    source: PoolSource | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Outcomes:
    """Replays a comparison over a pool, all policies in the same orders.

    A pool of more than `BLOCK` problems is replayed block by block, and what is kept are means over
    groups of problems (`study.blocks`). A rule that looks at all problems first then looks at a
    block's.

    Args:
        pool: The pool.
        entries: The comparison.
        seed: Of the orders.
        num_permutations: K, or 0 for the stored order.
        num_folds: Folds over problems for rules that learn: what a rule knows of a problem is
            learnt on the other folds.
        source: Where the pool came from, for messages and for the record; names it in tables.
        advance: Called `num_steps` times in all.

    Raises:
        InputError: If the pool cannot serve a policy, or a policy's file of priors cannot be used.
    """
    called = "pool" if source is None else source.path
    knowledge = _Knowledge(entries, pool, num_folds, seed, called)

    def one(entry: Entry, policy: Policy, block: Block) -> ReplayResult:
        given, own = knowledge.of(entry, block), block_key(key, block.index)
        with bad_input(f"{called}: {entry.where}", (PoolError,)):
            return replay(
                block.pool, policy, key=own, num_permutations=num_permutations, prior=given
            )

    def method(entry: Entry, block: Block, parts: Sequence[tuple[list[int], Any]]) -> Method:
        order = np.argsort([index for at, _ in parts for index in at])
        results = [part.result() for _, part in parts]
        result = jax.tree.map(lambda *fields: np.concatenate(fields)[order], *results)
        if (read := knowledge.tokens_of(entry, block)) is not None:
            spent = np.where(result.tokens >= 0, result.tokens + read, -1)
            result = result._replace(tokens=spent.astype(np.int32))
        advance()
        made = Method.from_result(
            entry.label,
            result,
            caps=caps_of(entry).tolist(),
            name=entry.name,
            settings=entry.settings,
            words=[words_of(setting, entry.name) for setting in entry.settings],
            varying=entry.varying,
            oracle=entry.name == ORACLE,
            reads_scores=entry.policies[0].uses_scores,
        )
        if not (large and VERIFIER_TOKENS in pool.signal_names):
            return made
        orders = permutations(block.pool, block_key(key, block.index), num_permutations)
        read = read_by_verifier(block.pool, orders, made.num_samples)
        return dataclasses.replace(made, verifier_tokens=read)

    large, key = is_large(pool), jax.random.key(seed)
    gathering = Gathering(pool.num_problems, in_groups=large)
    stacks = [(entry, entry.stacks()) for entry in entries]

    def gather(block: Block, pending: list[Any]) -> None:
        made = []
        for (entry, _), parts in zip(stacks, pending, strict=True):
            made.append(method(entry, block, parts))
            parts.clear()
        gathering.add(block, made)

    # Compilation takes most of the time of a pool of one block; XLA does it without the
    # interpreter's lock, so a second core helps. More threads than two would only hold more results
    # in the making.
    with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as executor:
        try:
            before = None
            for block in blocks_to_replay(pool):
                pending = [
                    [(at, executor.submit(one, entry, policy, block)) for at, policy in own]
                    for entry, own in stacks
                ]
                # The next block is under way while this one's outcomes are gathered.
                if before is not None:
                    gather(*before)
                before = block, pending
            assert before is not None
            gather(*before)
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise
    methods = gathering.methods()
    return Outcomes(
        name="pool" if source is None else source.name,
        methods=methods,
        problem_ids=np.arange(methods[0].num_samples.shape[-1]).astype(str)
        if large
        else pool.problem_ids,
        stored_order=num_permutations == 0,
        baselines=[m.label for base in _BASELINES for m in methods if m.name == base],
        source=source,
        unanswered=pool.num_unanswered,
        num_grouped=pool.num_problems if large else None,
    )


def num_steps(entries: Sequence[Entry], pool: AnyPool) -> int:
    """How often `replay_comparison` says that it has advanced."""
    return len(entries) * -(-pool.num_problems // BLOCK)


class _Knowledge:
    """What the rules of a comparison are told of problems beforehand, as far as they are."""

    def __init__(
        self, entries: Sequence[Entry], pool: AnyPool, num_folds: int, seed: int, called: str
    ):
        self._priors, self._tokens = priors_of_entries(entries, pool)
        self._oracles: set[str] = set()
        # Where each problem has its prior, for rules that learnt on some of a large pool.
        self._places: dict[str, np.ndarray] = {}
        self._num_problems = pool.num_problems
        for entry in entries:
            told = entry.label in self._priors or any(
                s.get("prior") is not None for s in entry.settings
            )
            if entry.name == ORACLE and pool.has_scores and not told:
                self._oracles.add(entry.label)
            elif not told and all(policy.prior is None for policy in entry.policies):
                with bad_input(entry.where, (InputError,)):
                    self._learn(entry, pool, num_folds, seed, called)

    def _learn(self, entry: Entry, pool: AnyPool, num_folds: int, seed: int, called: str) -> None:
        policy, places = entry.policies[0], None
        if not learns(policy):
            return
        if is_large(pool):
            num_folds = min(num_folds, BLOCK // 4)
            pool, places = sample_of_folds(pool, num_folds, seed)
        assert isinstance(pool, Pool)
        found = learnt_on_the_others(policy, pool, num_folds=num_folds, seed=seed, where=called)
        if found is not None:
            self._priors[entry.label] = found
            if places is not None:
                self._places[entry.label] = places

    def of(self, entry: Entry, block: Block) -> Any:
        """The priors of a block's problems; None where nothing is told."""
        if entry.label in self._oracles:
            return fitted_law(block.pool)
        if (prior := self._priors.get(entry.label)) is None:
            return None
        rows = block.rows
        if (places := self._places.get(entry.label)) is not None:
            return jax.tree.map(lambda field: field[places[rows]], prior)
        whole = of_each_problem(prior, self._num_problems)
        return jax.tree.map(lambda field: field[rows], whole)

    def tokens_of(self, entry: Entry, block: Block) -> np.ndarray | None:
        """What predicting the priors of a block's problems took; None where nothing was."""
        tokens = self._tokens.get(entry.label)
        return None if tokens is None else tokens[block.rows]
