"""What a prior is worth: OptScale with each kind of prior, and without, and what a prediction says.

Rules that differ in the prior alone are replayed over one pool, and each is held against the rule
without a prior, problem by problem and order by order.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from optscale_jax.pool import Pool, PoolError
from optscale_jax.study.comparison import Options, Row
from optscale_jax.study.entries import ORACLE
from optscale_jax.study.metrics import Interval
from optscale_jax.study.registry import Entry, PolicyConfig, PriorConfig, expand

__all__ = ["Against", "Worth", "against", "prior_entries", "worth_of_predictions"]


def prior_entries(
    priors: Mapping[str, str | None], grid: Mapping[str, Sequence[Any]], *, known: str
) -> list[Entry]:
    """OptScale with each prior and the whole grid, the law known, and best-of-N.

    Args:
        priors: Label to a file of priors, or None for none.
        grid: Values of n (the caps N), s_min, alpha and min_samples (those above an N are left out
            there).
        known: Label of the rule that is told each problem's law.

    Returns:
        The entries, in this order.

    Raises:
        InputError: If a setting is outside its domain.
    """
    bound = {"s_min": grid["s_min"], "alpha": grid["alpha"]}
    entries = []
    for label, file in priors.items():
        parts = []
        for cap in grid["n"]:
            first = [count for count in grid["min_samples"] if count <= cap]
            own = bound | {"max_samples": cap, "min_samples": first}
            prior = PriorConfig(file=file)
            parts += expand(PolicyConfig("optscale", label=label, prior=prior, **own), label)
        settings = [setting for part in parts for setting in part.settings]
        policies = [policy for part in parts for policy in part.policies]
        entries.append(dataclasses.replace(parts[0], settings=settings, policies=policies))
    told = PolicyConfig(ORACLE, label=known, max_samples=grid["n"], **bound)
    best = PolicyConfig("best_of_n", label="best-of-N", n=grid["n"])
    return entries + expand(told, known) + expand(best, "n")


class Against(NamedTuple):
    """A row beside that of the rule without a prior at the same N."""

    cost: Interval  # share of its tokens (or completions) spent more
    value: Interval  # accuracy (or score) above its


def against(rows: Sequence[Row], label: str, options: Options) -> list[Against | None]:
    """Each row beside the row of one method (`label`) at the same N, paired; None for its own."""
    bases = {row.cap: row for row in rows if row.method.label == label}
    found: list[Against | None] = []
    for row in rows:
        base = bases.get(row.cap)
        if base is None or base is row:
            found.append(None)
            continue
        spent = float(base.cost.mean)
        more = options.interval_of(
            (row.cost.mean - spent) / spent, (row.means[1] - base.means[1]) / spent
        )
        won = options.interval_of(row.value.mean - base.value.mean, row.means[0] - base.means[0])
        found.append(Against(more, won))
    return found


class Worth(NamedTuple):
    """What a prediction of a problem's mean score says, beside what one score says."""

    explained: float  # share of the variance of problems' mean scores that the prediction explains
    one: float  # share that one score explains
    completions: float  # scores that explain as much as the prediction
    cost: float  # of the prediction, in completions; NaN where lengths are not known


def worth_of_predictions(pool: Pool, mean: np.ndarray, tokens: np.ndarray) -> Worth | None:
    """How many completions predictions are worth.

    Args:
        pool: P problems with scores.
        mean: [P] predicted mean scores.
        tokens: [P] tokens that predicting each took.

    Returns:
        The worth; None where the prediction explains nothing of the variance, or all.

    Raises:
        PoolError: If the pool has no scores.
    """
    if pool.scores is None:
        raise PoolError("pool: it has no scores; have a verifier score it first")
    n = pool.mask.sum(axis=1)
    scores = np.where(pool.mask, np.float64(pool.scores), 0)
    found = scores.sum(axis=1) / n
    m2 = np.where(pool.mask, (scores - found[:, None]) ** 2, 0).sum(axis=1)
    within = float(np.sum(m2) / max(np.sum(n - 1), 1))
    # Means of n scores differ by more than the laws' means do, and from predictions likewise.
    noise = within * float(np.mean(1 / n))
    between = float(np.var(found)) - noise
    error = float(np.mean((mean - found) ** 2)) - noise
    if not (within > 0 and between > 0 and 0 < error < between):
        return None
    explained = 1 - error / between
    cost = np.nan
    if pool.has_tokens:
        cost = float(np.mean(tokens)) / max(float(np.mean(pool.tokens[pool.mask])), 1e-9)
    completions = explained / (1 - explained) * within / between
    return Worth(explained, between / (between + within), completions, cost)
