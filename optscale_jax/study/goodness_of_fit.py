"""Does the model fit? The fitted law of scores against the scores, and alpha against what happens.

The bound is only as good as the law that it is read from. Four checks of that law on a pool, and a
sentence in words for when it should not be trusted:

* the probability integral transform: F(score) is uniform if F is right;
* the Kolmogorov-Smirnov distance between F and the scores' own distribution, per problem, beside
  the distance that scores drawn from F itself would show;
* the share of scores on the boundary, and of fits that end at the edge of the domain;
* claimed alpha against realised: how often the best of N* completions really reaches s_min.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tensorflow_probability.substrates.jax.distributions import Distribution

from optscale_jax.bounds import bound, success_probability
from optscale_jax.distributions import TruncatedNormal
from optscale_jax.errors import PoolError
from optscale_jax.estimation import Boundary, Prior, ScoreStats, fit_mle
from optscale_jax.pool import Pool
from optscale_jax.typing import Array

__all__ = [
    "Calibration",
    "Realised",
    "Verdict",
    "calibrate",
    "fitted_law",
    "realised_alpha",
    "verdict",
]

BOUNDARY_MARGIN = 1e-3
"""Scores this close to 0 or 1 count as being on the boundary."""

KS_RATIO_TRUSTED = 1.5
"""Mean KS distance, relative to that of scores drawn from F, above which F is not trusted."""

BOUNDARY_SHARE_TRUSTED = 0.2
"""Share of scores on the boundary above which a law without atoms is not trusted."""


class Calibration(NamedTuple):
    """How well a truncated normal, fitted to all of them, describes each problem's scores."""

    loc: np.ndarray  # [P], by maximum likelihood
    scale: np.ndarray  # [P]
    pit: np.ndarray  # [P, N] F(score) under the problem's own fit; NaN where there is no completion
    ks: np.ndarray  # [P] Kolmogorov-Smirnov distance between F and the problem's scores
    ks_expected: float  # mean distance of as many scores drawn from F and fitted alike
    boundary_share: float  # share of all scores within `BOUNDARY_MARGIN` of 0 or 1
    fit_boundary: np.ndarray  # [P] int32 `Boundary`

    @property
    def ks_ratio(self) -> float:
        """Mean KS distance relative to that of scores that follow the model; 1 = it fits."""
        return float(self.ks.mean() / self.ks_expected)


class Realised(NamedTuple):
    """Claimed against realised probability of reaching s_min, over problems that can be checked."""

    claimed: float  # the alpha of the bound
    realised: float  # mean of P(best of N* scores >= s_min) under the scores themselves
    checked: int  # problems whose N* is at most the completions there are
    # Mean of 1 - F(s_min)^N*, what the law says of its N*: above the claimed alpha because N* is a
    # whole number, far above where one completion is enough.
    promised: float = float("nan")


def _scores(pool: Pool) -> np.ndarray:
    if pool.scores is None:
        raise PoolError("pool: it has no verifier scores, so there is no law of scores to check")
    return pool.scores


def _ks(sorted_cdf: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Largest |F - empirical|, from F at the sorted scores [..., N], the first `count` valid."""
    rank = np.arange(sorted_cdf.shape[-1])
    valid = rank < count[..., None]
    above = (rank + 1) / count[..., None] - sorted_cdf
    below = sorted_cdf - rank / count[..., None]
    return np.where(valid, np.maximum(above, below), 0.0).max(-1)


def _fit_and_transform(scores: np.ndarray, mask: np.ndarray):
    stats = ScoreStats.from_scores(jnp.asarray(scores), jnp.asarray(mask))
    params, info = fit_mle(stats)
    law = TruncatedNormal(params.loc[:, None], params.scale[:, None])
    pit = np.where(mask, np.asarray(law.cdf(jnp.asarray(scores))), np.nan)
    # NaN sorts last, after the completions there are. A tie is one jump of the scores' own
    # distribution; ranks within it only make the distance larger, as they should.
    ks = _ks(np.sort(pit, axis=1), mask.sum(1))
    return params, info, pit, ks


def fitted_law(pool: Pool) -> Prior:
    """The fit to all scores of each problem, [P]: what an oracle knows (`policies.known_law`).

    Raises:
      PoolError: the pool has no scores.
    """
    params, _ = fit_mle(ScoreStats.from_scores(_scores(pool), pool.mask))
    return Prior(params.loc, params.scale)


def calibrate(pool: Pool, *, key: Array) -> Calibration:
    """Fits each problem's scores and measures how well the fit describes them.

    `key` is for the scores that follow the model, which `ks_expected` needs: with the parameters
    estimated, Kolmogorov's own distribution of the distance does not apply (Lilliefors 1967), so it
    is simulated.

    Raises:
      PoolError: the pool has no scores.
    """
    scores = _scores(pool)
    params, info, pit, ks = _fit_and_transform(scores, pool.mask)
    law = TruncatedNormal(params.loc[:, None], params.scale[:, None])
    uniform = jax.random.uniform(key, scores.shape, law.dtype, minval=1e-7)
    _, _, _, ks_model = _fit_and_transform(np.asarray(law.quantile(uniform)), pool.mask)
    edge = (scores <= BOUNDARY_MARGIN) | (scores >= 1 - BOUNDARY_MARGIN)
    return Calibration(
        loc=np.asarray(params.loc),
        scale=np.asarray(params.scale),
        pit=pit,
        ks=ks,
        ks_expected=float(ks_model.mean()),
        boundary_share=float(edge[pool.mask].mean()),
        fit_boundary=np.asarray(info.boundary),
    )


def realised_alpha(
    pool: Pool,
    s_min: float,
    alpha: float,
    law: Distribution,
    *,
    mask: np.ndarray | None = None,
) -> Realised:
    """How often the best of N* completions reaches s_min, against the alpha that N* promises.

    For each problem N* is read off the given law and P(best of N* >= s_min) off its scores, drawn
    without replacement: with m of n scores below s_min, 1 - C(m, N*) / C(n, N*). Problems whose N*
    exceeds their completions cannot be checked and are left out.

    Fitted to the same scores, a law has seen what it is checked on. Give the law of one half of
    each problem's completions and the other half as `mask` for a check that it has not.

    Args:
      pool: the pool.
      s_min: the score to reach, in [0, 1].
      alpha: the claimed probability, inside (0, 1).
      law: any distribution of batch shape [P] that the bound takes.
      mask: [P, N] the completions to check on, among those there are; None for all.

    Raises:
      PoolError: the pool has no scores.
      ValueError: s_min or alpha outside its domain.
    """
    scores = _scores(pool)
    there = pool.mask if mask is None else pool.mask & mask
    needed = np.asarray(bound(law, s_min, alpha).num_samples)
    total = there.sum(1)
    below = ((scores < s_min) & there).sum(1)
    can = needed <= total
    if not can.any():
        return Realised(alpha, float("nan"), 0, float("nan"))
    promised = np.asarray(success_probability(law, s_min, needed))
    draws = np.arange(scores.shape[1])
    # C(m, k) / C(n, k) is the product of (m - i) / (n - i) over i < k.
    ratio = np.clip(below[:, None] - draws, 0, None) / np.maximum(total[:, None] - draws, 1)
    miss = np.where(draws < needed[:, None], ratio, 1.0).prod(1)
    return Realised(
        alpha, float((1 - miss)[can].mean()), int(can.sum()), float(promised[can].mean())
    )


class Verdict(NamedTuple):
    """Whether the truncated normal may be trusted on a pool, in a sentence, and what is against."""

    trusted: bool
    sentence: str
    reasons: tuple[str, ...]


def verdict(calibration: Calibration) -> Verdict:
    """Whether the truncated normal may be trusted on this pool: where nothing speaks against it."""
    ratio, share = calibration.ks_ratio, calibration.boundary_share
    edge = float(np.mean(calibration.fit_boundary == Boundary.EXPONENTIAL_LIMIT))
    floor = float(np.mean(calibration.fit_boundary == Boundary.SCALE_FLOOR))
    far = (
        "as far from the law fitted to them as scores drawn from that law would be (1 is a perfect "
        f"fit, up to {KS_RATIO_TRUSTED:g} a good one)"
    )
    reasons = []
    if share > BOUNDARY_SHARE_TRUSTED:
        reasons.append(f"{share:.0%} of the scores are at 0 or 1, where the model has no mass")
    if ratio > KS_RATIO_TRUSTED:
        reasons.append(f"the scores are {ratio:.1f} times {far}")
    if edge + floor > 0.5:
        reasons.append(
            f"{edge + floor:.0%} of the fits end at an edge of the domain: spread too wide for a "
            "normal, or none"
        )
    sentence = f"Do not trust the bound here: {'; '.join(reasons)}."
    if not reasons:
        sentence = (
            f"The truncated normal fits: the scores are {ratio:.2f} times {far}, and {share:.0%} "
            "of them are at 0 or 1."
        )
    return Verdict(not reasons, sentence, tuple(reasons))
