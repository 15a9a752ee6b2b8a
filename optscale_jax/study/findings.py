"""All that a report says of the methods over one pool, computed; `report.comparison` draws it.

Tuned rows at each N, the curves, how accuracy depends on s_min and alpha, whether the law of scores
fits, and what no stopping rule enters: pass@k, best-of-k and maj@k.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from optscale_jax.calibration import Reliability, reliability
from optscale_jax.distributions import TruncatedNormal
from optscale_jax.errors import InputError
from optscale_jax.laws import make_law
from optscale_jax.pool import Pool
from optscale_jax.pool_directory import AnyPool
from optscale_jax.study.blocks import is_large, sample_of
from optscale_jax.study.comparison import (
    Frontier,
    Options,
    Row,
    Sensitivity,
    compare,
    frontiers,
    sensitivity,
)
from optscale_jax.study.estimates import best_at_k, majority_at_k, pass_at_k
from optscale_jax.study.goodness_of_fit import (
    Calibration,
    Realised,
    Verdict,
    calibrate,
    realised_alpha,
    verdict,
)
from optscale_jax.study.hindsight import with_hindsight
from optscale_jax.study.law_comparison import FEWEST_SCORES, LawComparison, compare_laws
from optscale_jax.study.outcomes import Outcomes
from optscale_jax.study.recommendation import Recommendation, recommend
from optscale_jax.study.verifier import Roc, roc_of, tokens_with_verifier

__all__ = ["PAPER_N", "Findings", "Fit", "find", "fit_of", "subset_accuracies"]

PAPER_N = (8, 16, 32, 64)
ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)
# Where the calibration is looked at, as quantiles of all scores.
S_MIN_QUANTILES = (0.5, 0.75, 0.9)
# An argument to vary, and where the other is held.
SENSITIVITIES = {"s_min": {"alpha": 0.95}, "alpha": {"s_min": 0.95}}


class Fit(NamedTuple):
    """Whether the law of scores fits a pool."""

    calibration: Calibration
    realised: Sequence[tuple[float, Sequence[Realised]]]  # for several s_min, and alpha at each
    verdict: Verdict
    laws: LawComparison | None = None  # None: no problem has enough scores, or no law was asked for


class Findings(NamedTuple):
    """What is found over one pool.

    Attributes:
        outcomes: What was replayed, and the hindsight oracle if the pool says what is right.
        pool: The pool, for what concerns its completions, or `BLOCK` problems of a larger one;
            None if it is no longer there.
        options: How settings are tuned and means estimated.
        rows: Every method at every N.
        frontiers: Every method, all its N together.
        sensitivities: Argument to what depends on it; only arguments that a method varies.
        fit: Whether the law of scores fits; None without the pool or its scores.
        subsets: "pass@8" and the like to accuracy.
        notes: What is left out, and why.
        with_verifier: [rows] mean tokens with the verifier's; NaN where they are not known.
        reliabilities: Of the methods that claim P(right), at their largest N: label to the claims
            at the stop beside what was right.
        roc: Of the verifier; None without scores or correctness.
        recommendation: The rule to use; None without a baseline.
    """

    outcomes: Outcomes
    pool: Pool | None
    options: Options
    rows: Sequence[Row]
    frontiers: Sequence[Frontier]
    sensitivities: Mapping[str, Sequence[Sensitivity]]
    fit: Fit | None
    subsets: Mapping[str, float]
    notes: Sequence[str]
    with_verifier: Sequence[float]
    reliabilities: Mapping[str, Reliability]
    roc: Roc | None
    recommendation: Recommendation | None

    @property
    def about(self) -> str:
        """How many problems, completions and orders."""
        outcomes = self.outcomes
        depth = max(outcomes.caps) if self.pool is None else self.pool.num_samples
        orders = f"{outcomes.num_permutations} random orders"
        order = "their stored order" if outcomes.stored_order else orders
        return f"{outcomes.num_problems:,} problems x {depth} completions, in {order}"


def find(
    outcomes: Outcomes,
    pool: AnyPool | None,
    options: Options,
    *,
    caps: Sequence[int] | None = None,
    notes: Sequence[str] = (),
    laws: Sequence[str] = (),
) -> Findings:
    """Tunes, compares and checks.

    Args:
        outcomes: What was replayed.
        pool: The pool, if it is still there.
        options: How to tune and how to estimate; the seed is taken for that of the orders too.
        caps: The N of the rows. None: those of 8, 16, 32 and 64 that there are, or else all.
        notes: What was left out, and why.
        laws: Laws of scores to compare, as `make_law` takes them.

    Raises:
        InputError: If no method has one of the N, or there is one problem only.
    """
    there = outcomes.caps
    some, notes = None, list(notes)
    if pool is not None:
        outcomes, some = with_hindsight(outcomes, pool, options.seed), sample_of(pool)
        if is_large(pool):
            notes.append(
                f"what the completions alone say (the law of scores, the verifier, pass@k) is said "
                f"of {some.num_problems:,} of the problems, drawn at random"
            )
    wanted = PAPER_N if caps is None else caps
    shown = [cap for cap in wanted if cap in there] or (there if caps is None else [])
    rows = compare(outcomes, shown, options)
    if not rows:
        raise InputError(f"{outcomes.name}: no method has an N of {caps}")
    varied = {name: sensitivity(outcomes, name, at, options) for name, at in SENSITIVITIES.items()}
    curves, base = frontiers(outcomes, options), outcomes.baseline()
    deepest = {row.method.label: row for row in sorted(rows, key=lambda row: row.cap)}
    return Findings(
        outcomes=outcomes,
        pool=some,
        options=options,
        rows=rows,
        frontiers=curves,
        sensitivities={name: parts for name, parts in varied.items() if parts},
        fit=None if some is None or not some.has_scores else fit_of(some, options, laws),
        subsets={} if some is None else subset_accuracies(some),
        notes=notes,
        with_verifier=tokens_with_verifier(outcomes, rows, some, options.seed),
        reliabilities={
            label: _reliability(claims, row.fit.correct)
            for label, row in deepest.items()
            if outcomes.value_kind == "accuracy"
            and (claims := row.confidence) is not None
            and not np.isnan(claims).all()
        },
        roc=None if some is None else roc_of(some, options),
        recommendation=None if base is None else recommend(curves, base[0], options),
    )


def _reliability(claims: np.ndarray, correct: np.ndarray) -> Reliability:
    known = ~np.isnan(claims)
    return reliability(claims[known], correct[known])


def fit_of(pool: Pool, options: Options, laws: Sequence[str] = ()) -> Fit:
    """Whether the truncated normal fits a pool's scores, with alpha checked at three s_min.

    The seed is that of the scores of the model that they are compared with; `laws` are those to
    compare, as `make_law` takes them.

    Raises:
        PoolError: The pool has no scores.
    """
    found = calibrate(pool, key=jax.random.key(options.seed + 2))
    assert pool.scores is not None  # calibrate refuses such a pool
    law = TruncatedNormal(found.loc, found.scale)
    targets = np.unique(np.quantile(pool.scores[pool.mask], S_MIN_QUANTILES).round(3))
    realised = [
        (float(s), [realised_alpha(pool, float(s), alpha, law) for alpha in ALPHAS])
        for s in targets
        if 0 < s < 1
    ]
    compared = None
    if laws and (pool.samples_per_problem >= FEWEST_SCORES).any():
        compared = compare_laws(
            pool,
            {name.replace("_", " "): make_law(name) for name in laws},
            key=jax.random.key(options.seed + 3),
            num_resamples=options.num_resamples,
            level=options.level,
        )
    return Fit(found, realised, verdict(found), compared)


def subset_accuracies(pool: Pool) -> dict[str, float]:
    """The pass@k, best@k and maj@k of a pool, as far as it knows them; no stopping rule enters."""
    if pool.correct is None or pool.kind == "sequential":
        return {}
    k = int(min(pool.samples_per_problem.min(), 64))
    found = {"pass@1": pass_at_k(pool, 1), f"pass@{k}": pass_at_k(pool, k)}
    if pool.has_scores:
        found[f"best@{k}"] = best_at_k(pool, k)
    if pool.has_answers and pool.gold is not None:
        found[f"maj@{k}"] = majority_at_k(pool, k)
    return {name: float(each.mean()) for name, each in found.items()}
