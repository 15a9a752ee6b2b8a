"""A configured comparison: its policies checked against each other, against a pool, and replayed.

entries = entries_of([PolicyConfig("optscale", s_min=[.9, .95], ...), PolicyConfig(...)])
outcomes = replay_comparison(pool, entries, seed=0, num_permutations=20)
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from optscale_jax.errors import InputError, bad_input
from optscale_jax.policies import Policy
from optscale_jax.pool import Pool, PoolError
from optscale_jax.replay import ReplayResult, refusal, replay
from optscale_jax.study.goodness_of_fit import fitted_law
from optscale_jax.study.learning import learnt_on_the_others
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
    entries: Iterable[Entry], pool: Pool, num_permutations: int
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


def lowered_to(pool: Pool, caps: Iterable[int]) -> list[str]:
    """A note on the N that are more than a pool has, and were lowered; none where none were."""
    if not (above := ", ".join(map(str, sorted(caps)))):
        return []
    first = int(pool.samples_per_problem.argmin())
    depth, name = int(pool.samples_per_problem[first]), str(pool.problem_ids[first])
    return [f"N = {above} is compared at N = {depth}: problem {name!r} has no more completions"]


def replay_comparison(
    pool: Pool,
    entries: Sequence[Entry],
    *,
    seed: int,
    num_permutations: int,
    num_folds: int = 5,
    source: PoolSource | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Outcomes:
    """Replays a comparison over a pool, all policies in the same orders.

    Args:
        pool: The pool.
        entries: The comparison.
        seed: Of the orders.
        num_permutations: K, or 0 for the stored order.
        num_folds: Folds over problems for rules that learn: what a rule knows of a problem is
            learnt on the other folds.
        source: Where the pool came from, for messages and for the record; names it in tables.
        advance: Called after each entry.

    Raises:
        InputError: If the pool cannot serve a policy, or a policy's file of priors cannot be used.
    """
    called = "pool" if source is None else source.path
    priors, predictor_tokens = priors_of_entries(entries, pool)
    for entry in entries:
        told = entry.label in priors or any(s.get("prior") is not None for s in entry.settings)
        if entry.name == ORACLE and pool.has_scores and not told:
            priors[entry.label] = fitted_law(pool)
        if entry.label not in priors and all(policy.prior is None for policy in entry.policies):
            with bad_input(entry.where, (InputError,)):
                found = learnt_on_the_others(
                    entry.policies[0], pool, num_folds=num_folds, seed=seed, where=called
                )
            if found is not None:
                priors[entry.label] = found

    def one(entry: Entry, policy: Policy) -> ReplayResult:
        given, key = priors.get(entry.label), jax.random.key(seed)
        return replay(pool, policy, key=key, num_permutations=num_permutations, prior=given)

    def method(entry: Entry, parts: Sequence[tuple[list[int], ReplayResult]]) -> Method:
        order = np.argsort([index for at, _ in parts for index in at])
        results = [part for _, part in parts]
        result = jax.tree.map(lambda *fields: np.concatenate(fields)[order], *results)
        if (read := predictor_tokens.get(entry.label)) is not None:
            spent = np.where(result.tokens >= 0, result.tokens + read, -1)
            result = result._replace(tokens=spent.astype(np.int32))
        return Method.from_result(
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

    # Compilation takes most of the time; XLA does it without the interpreter's lock, so a second
    # core helps. More threads than two would only hold more results in the making.
    methods = []
    with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as executor:
        pending = [
            [(at, executor.submit(one, entry, policy)) for at, policy in entry.stacks()]
            for entry in entries
        ]
        try:
            for entry, futures in zip(entries, pending, strict=True):
                with bad_input(f"{called}: {entry.where}", (PoolError,)):
                    parts = [(at, future.result()) for at, future in futures]
                methods.append(method(entry, parts))
                futures.clear()
                advance()
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise
    return Outcomes(
        name="pool" if source is None else source.name,
        methods=methods,
        problem_ids=pool.problem_ids,
        stored_order=num_permutations == 0,
        baselines=[m.label for base in _BASELINES for m in methods if m.name == base],
        source=source,
        unanswered=pool.num_unanswered,
    )
