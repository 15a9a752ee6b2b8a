"""Synthetic pools from a documented model: known truth to test against, and a demo without data.

The model is one of problems (difficulty decides accuracy, score law and length) and of completions
(score and correctness drawn together, then length and answer).
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Float, PRNGKeyArray, UInt32

from optscale_jax.checks import at_least, finite, one_of, positive, within
from optscale_jax.pool import BLOCK, Pool

__all__ = [
    "SyntheticConfig",
    "SyntheticProblems",
    "synthetic_blocks",
    "synthetic_pool",
    "synthetic_problems",
]

Key = PRNGKeyArray | UInt32[Array, "2"]
ScoreLaw = Literal["truncated_normal", "mixture"]


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """Parameters of the synthetic model; `synthetic_pool` has the equations.

    Attributes:
        accuracy_logit: Log-odds that a completion of a problem of average difficulty is correct.
        accuracy_slope: Fall of those log-odds per standard deviation of difficulty, at least 0.
        score_law: "truncated_normal": the scores of a problem are i.i.d. truncated normal, as
            OptScale assumes, and correctness is tied to them by a Gaussian copula. "mixture": right
            and wrong completions have truncated normals of different loc, so that the law of a
            problem's scores has two modes and OptScale's assumption is wrong.
        verifier_quality: Correlation of score and correctness within a problem before truncation
            (at P(correct) = 1/2 for "mixture"), in [0, 1): 0 = the scores say nothing.
        score_logit: Log-odds of the score law's loc at average difficulty.
        score_slope: Fall of those log-odds per standard deviation of difficulty.
        score_scale: Median over problems of the score law's scale, in units of score, above 0.
        score_scale_spread: Standard deviation over problems of the scale's logarithm, at least 0.
        tokens_median: Median length of a right completion at average difficulty, in tokens,
            above 0.
        tokens_spread: Standard deviation of a completion's log length, at least 0.
        tokens_slope: Rise of the log length per standard deviation of difficulty.
        tokens_wrong: Rise of the log length when the completion is wrong.
        max_tokens: The sampler's limit, in tokens, at least 1.
        answerless: Share of completions that run into that limit without an answer, in [0, 1).
        num_distractors: Number of different wrong answers of a problem, at least 1.
        distractor_skew: Exponent of the wrong answers' Zipf law, at least 0; the larger, the more
            they agree on one, and 0 makes them equally frequent.
    """

    accuracy_logit: float = 0.5
    accuracy_slope: float = 1.8
    score_law: ScoreLaw = "truncated_normal"
    verifier_quality: float = 0.4
    score_logit: float = 1.2
    score_slope: float = 0.7
    score_scale: float = 0.12
    score_scale_spread: float = 0.3
    tokens_median: float = 400.0
    tokens_spread: float = 0.35
    tokens_slope: float = 0.3
    tokens_wrong: float = 0.2
    max_tokens: int = 4096
    answerless: float = 0.02
    num_distractors: int = 6
    distractor_skew: float = 1.5

    def __post_init__(self) -> None:
        """Raises an InputError of the first parameter that is outside its domain."""
        finite(self, "accuracy_logit", "score_logit", "score_slope", "tokens_slope", "tokens_wrong")
        at_least(self, 0, "accuracy_slope", "score_scale_spread", "tokens_spread")
        at_least(self, 0, "distractor_skew")
        positive(self, "score_scale", "tokens_median")
        within(self, "[0, 1)", "verifier_quality", "answerless")
        at_least(self, 1, "max_tokens", "num_distractors")
        one_of(self, get_args(ScoreLaw), "score_law")


class SyntheticProblems(NamedTuple):
    """The truth behind a synthetic pool, one entry a problem."""

    difficulty: Float[np.ndarray, " problems"]  # standard normal over problems
    accuracy: Float[np.ndarray, " problems"]  # P(correct) of a completion that has an answer
    loc: Float[np.ndarray, " problems"]  # of the score law, in (0, 1)
    scale: Float[np.ndarray, " problems"]  # of the score law, above 0


def synthetic_problems(
    key: Key, *, num_problems: int = 500, config: SyntheticConfig | None = None
) -> SyntheticProblems:
    """Draws the problems that `synthetic_pool` uses with the same arguments, and raises as it."""
    if num_problems < 1:
        raise ValueError(f"num_problems is {num_problems}; it must be at least 1")
    config = config or SyntheticConfig()
    difficulty, spread = _generator(key, 0).standard_normal((2, num_problems))
    return SyntheticProblems(
        difficulty=difficulty,
        accuracy=_sigmoid(config.accuracy_logit - config.accuracy_slope * difficulty),
        loc=_sigmoid(config.score_logit - config.score_slope * difficulty),
        scale=config.score_scale * np.exp(config.score_scale_spread * spread),
    )


def synthetic_pool(
    key: Key,
    *,
    num_problems: int = 500,
    num_samples: int = 64,
    config: SyntheticConfig | None = None,
) -> Pool:
    r"""Draws a pool from the synthetic model.

    With c the config, sigmoid(x) = 1 / (1 + exp(-x)), and all normals independent, problem p has

        d_p     ~ Normal(0, 1)                                            difficulty
        a_p     = sigmoid(c.accuracy_logit - c.accuracy_slope d_p)        P(correct)
        mu_p    = sigmoid(c.score_logit - c.score_slope d_p)              loc of its score law
        sigma_p = c.score_scale exp(c.score_scale_spread Normal(0, 1))    scale of its score law

    and its completion i, with q = c.verifier_quality and z_pi ~ Normal(0, 1), under
    `score_law="truncated_normal"`

        score_pi   = F_p^-1(Phi(z_pi)),  F_p = TruncatedNormal(mu_p, sigma_p; 0, 1)
        correct_pi = [ q z_pi + sqrt(1 - q^2) Normal(0, 1) > Phi^-1(1 - a_p) ],

    so that scores are exactly i.i.d. F_p and P(correct) is exactly a_p, whatever q; and under
    `score_law="mixture"`

        correct_pi ~ Bernoulli(a_p)
        score_pi   ~ TruncatedNormal(mu_p + delta sigma_p (correct_pi - a_p), sigma_p; 0, 1),
        delta      = 2 q / sqrt(1 - q^2),

    whose point-biserial correlation before truncation is q where a_p = 1/2. Then

        log tokens_pi = log c.tokens_median + c.tokens_slope d_p + c.tokens_wrong (1 - correct_pi)
                        + c.tokens_spread Normal(0, 1),   rounded, at least 1, at most c.max_tokens
        answer_pi     = 0 (the gold answer) if correct_pi, else k in 1..c.num_distractors with
                        probability proportional to k^-c.distractor_skew,

    and a share c.answerless of the completions, chosen at random, has answer -1, is not correct and
    is c.max_tokens long; its score keeps its law.

    Args:
        key: JAX random key; the same key gives the same pool.
        num_problems: P, at least 1.
        num_samples: N, at least 1.
        config: The model's parameters; None for the defaults.

    Returns:
        The pool [P, N], with problem ids "synthetic/0", "synthetic/1", ...

    Raises:
        ValueError: If `num_problems` or `num_samples` is below 1.
    """
    parts = synthetic_blocks(key, num_problems=num_problems, num_samples=num_samples, config=config)
    first, *others = parts
    if not others:
        return first
    names = ("scores", "correct", "tokens", "answers", "gold", "problem_ids")
    whole: dict[str, Any] = {
        n: np.concatenate([getattr(p, n) for p in (first, *others)]) for n in names
    }
    return Pool.from_arrays(**whole, source="synthetic pool")


def synthetic_blocks(
    key: Key, *, num_problems: int, num_samples: int, config: SyntheticConfig | None = None
) -> Iterator[Pool]:
    """The pool that `synthetic_pool` draws, and raises as it, in blocks of `BLOCK` problems."""
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; it must be at least 1")
    c = config or SyntheticConfig()
    problems = synthetic_problems(key, num_problems=num_problems, config=c)
    for index, first in enumerate(range(0, num_problems, BLOCK)):
        own = SyntheticProblems(*(field[first : first + BLOCK] for field in problems))
        yield _drawn(_generator(key, 1, *([index] if index else [])), own, first, num_samples, c)


def _drawn(
    generator: np.random.Generator,
    problems: SyntheticProblems,
    first: int,
    num_samples: int,
    c: SyntheticConfig,
) -> Pool:
    """Completions of some problems, the first of which has the number `first`."""
    difficulty, accuracy, loc, scale = (field[:, None] for field in problems)
    num_problems = len(difficulty)
    shape = (num_problems, num_samples)
    latent, noise, length_noise = generator.standard_normal((3, *shape))
    answerless = generator.random(shape) < c.answerless

    quality = c.verifier_quality
    rest = np.sqrt(1 - quality**2)
    threshold = -np.asarray(ndtri(accuracy))
    if c.score_law == "truncated_normal":
        correct = quality * latent + rest * noise > threshold
    else:
        correct = noise > threshold
        loc = loc + 2 * quality / rest * (correct - accuracy) * scale
    scores = _truncated_normal(latent, *np.broadcast_arrays(loc, scale, latent)[:2])

    log_tokens = (
        np.log(c.tokens_median)
        + c.tokens_slope * difficulty
        + c.tokens_wrong * ~correct
        + c.tokens_spread * length_noise
    )
    tokens = np.clip(np.round(np.exp(log_tokens)), 1, c.max_tokens)

    weights = np.arange(1.0, c.num_distractors + 1) ** -c.distractor_skew
    distractor = 1 + generator.choice(c.num_distractors, shape, p=weights / weights.sum())
    return Pool.from_arrays(
        scores=scores,
        correct=correct & ~answerless,
        tokens=np.where(answerless, c.max_tokens, tokens),
        answers=np.where(answerless, -1, np.where(correct, 0, distractor)),
        gold=np.zeros(num_problems, np.int32),
        problem_ids=[f"synthetic/{first + index}" for index in range(num_problems)],
        source="synthetic pool",
    )


def _generator(key: Key, *stream: int) -> np.random.Generator:
    # The key seeds NumPy, whose generators start at once: jax.random takes seconds to compile.
    return np.random.default_rng([*np.ravel(jax.random.key_data(key)), *stream])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    # tanh saturates where exp would overflow.
    return 0.5 * (1 + np.tanh(0.5 * x))


@jax.jit
def _truncated_normal(
    latent: Float[Array, "problems samples"],
    loc: Float[Array, "problems samples"],
    scale: Float[Array, "problems samples"],
) -> Float[Array, "problems samples"]:
    """Maps standard normals to TruncatedNormal(loc, scale; 0, 1), increasing in each."""
    # Reflected so that loc is in the upper half: both ends then have their mass in the normal's
    # lower tail or centre, where float32 resolves it; near F = 1 it would not.
    mirrored = loc < 0.5
    sign = jnp.where(mirrored, -1.0, 1.0)
    loc = jnp.where(mirrored, 1 - loc, loc)
    below, above = ndtr(-loc / scale), ndtr((1 - loc) / scale)
    # Kept inside (0, 1), where ndtri is finite.
    limits = jnp.finfo(loc.dtype)
    mass = jnp.clip(below + ndtr(sign * latent) * (above - below), limits.tiny, 1 - limits.epsneg)
    score = jnp.clip(loc + scale * ndtri(mass), 0, 1)
    return jnp.where(mirrored, 1 - score, score)
