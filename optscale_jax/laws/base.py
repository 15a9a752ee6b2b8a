"""The contract of a law of scores: what a policy believes of them, and how it learns it.

A law is a value (`optscale_jax.values`), as a policy is. Its methods are pure and written for one
problem; replay and calibration map them over problems. A policy runs it so:

    memory, params = law.init(max_samples, dtype), law.start(prior, dtype)
    after each score:
        memory = law.add(memory, score)
        with at least law.scores_for_a_fit(prior) scores:
            params, info = law.fit(memory, prior)
        F = law.distribution(params)
"""

import abc
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from tensorflow_probability.substrates.jax.distributions import Distribution

from optscale_jax.estimation import Prior, ScoreStats
from optscale_jax.typing import Array, ArrayLike
from optscale_jax.values import Value

__all__ = ["Law", "Params", "fit_rows"]

_NODES = 32  # of the quadrature: a step between two nodes is off by at most 2% of 1 - best

Params = dict[str, Any]
"""Parameters of a law by name: arrays, each a scalar for one problem, [P] for P of them."""


class Law(Value, abc.ABC):
    """What a policy believes of one problem's scores: what it remembers, its fit, its distribution.

    A law of one's own names its `parameters` and defines `start`, `fit` and `distribution`. What it
    remembers is by default `ScoreStats` (count, mean and centred sum of squares), which is enough
    for a fit by moments; a law that needs more defines `init` and `add` too.
    """

    parameters: ClassVar[tuple[str, ...]]  # names, in order: the keys of `Params`
    takes_prior: ClassVar[bool] = False  # whether `start` and `fit` use a `Prior`, or refuse one

    def init(self, max_samples: int, dtype) -> Any:
        """What is remembered before the first score: a pytree of arrays whose shapes `add` keeps.

        Args:
          max_samples: the most scores that `add` will be given; a Python int >= 1.
          dtype: floating type of the scores.
        """
        del max_samples
        return ScoreStats.empty(dtype)

    def add(self, memory: Any, score: ArrayLike) -> Any:
        """One problem's memory with one more score, of the same shapes and types."""
        return memory.add(score)

    @abc.abstractmethod
    def start(self, prior: Prior | None, dtype) -> Params:
        """The parameters before there are enough scores for a fit, scalars of a dtype.

        The prior's mean, or without one the law's stated start.

        Raises:
          ValueError: a prior is given and the law takes none.
        """

    @abc.abstractmethod
    def fit(self, memory: Any, prior: Prior | None = None) -> tuple[Params, Any]:
        """The law of the scores remembered: maximum likelihood, or MAP with a prior.

        Args:
          memory: of one problem.
          prior: the problem's prior, scalar fields, or None.

        Returns:
          (params, info): scalars, finite however few or equal the scores are; `info` is a
          NamedTuple of scalars that says how the fit ended, such as `estimation.FitInfo`.

        Raises:
          ValueError: a prior is given and the law takes none.
        """

    @abc.abstractmethod
    def distribution(self, params: Params) -> Distribution:
        """The law with parameters [...], as a TFP distribution on [0, 1] of batch shape [...].

        The bound reads its `log_cdf` (or `log_cdf_below`, where it has atoms), and
        `bounds.marginal_gain` its `log_survival_function` as well.
        """

    def expected_rise(self, params: Params, best: Array) -> Array:
        """How much one more score raises the best in expectation: E[max(X - best, 0)].

            E[max(X - best, 0)] = int_best^1 P(X > x) dx,

        by Gauss-Legendre quadrature; a scalar in [0, 1 - best].
        """
        nodes, weights = np.polynomial.legendre.leggauss(_NODES)
        half = (1.0 - best) / 2
        x = best + half * (1.0 + jnp.asarray(nodes, half.dtype))
        above = jnp.exp(self.distribution(params).log_survival_function(x))
        return half * jnp.sum(jnp.asarray(weights, half.dtype) * above)

    def scores_for_a_fit(self, prior: Prior | None) -> int:
        """How many scores a fit takes at least, a Python int: 1 with a prior, 2 without.

        One score has no spread, and every law through it is as likely as it is narrow.
        """
        return 2 if prior is None else 1

    def memory_of(self, scores: ArrayLike, mask: ArrayLike | None = None) -> Any:
        """What is remembered of rows of scores [..., N], for fits to recorded ones.

        Args:
          scores: shape [..., N].
          mask: True where there is a score, broadcastable against the scores, or None for all.

        Returns:
          The memory with leading axes [...] on every leaf, as `jax.vmap(law.fit)` takes it.
        """
        scores = jnp.asarray(scores)
        scores = scores.astype(jnp.result_type(scores.dtype, jnp.float32))
        present = jnp.asarray(True if mask is None else mask, bool)
        scores, present = jnp.broadcast_arrays(scores, present)
        empty = self.init(scores.shape[-1], scores.dtype)

        def step(memory, observation):
            score, there = observation
            added = self.add(memory, score)
            return jax.tree.map(lambda new, old: jnp.where(there, new, old), added, memory), None

        def one(row, there):
            return jax.lax.scan(step, empty, (row, there))[0]

        for _ in range(scores.ndim - 1):
            one = jax.vmap(one)
        return one(scores, present)

    def refuse_prior(self, prior: Prior | None) -> None:
        """Raises a ValueError of one line if there is a prior: for laws that take none."""
        if prior is not None:
            raise ValueError(
                f"{type(self).__name__} takes no prior (a Prior is a belief about a truncated "
                "normal's loc and scale): leave it out, or use the truncated normal"
            )


def fit_rows(
    law: Law, scores: ArrayLike, mask: ArrayLike | None = None, prior: Prior | None = None
) -> tuple[Params, Any]:
    """Fits a law to each row of scores: the public edge of `Law.fit`.

    Args:
      law: the law.
      scores: shape [P, N].
      mask: True where there is a score, or None for all.
      prior: scalar fields, or [P]; None for maximum likelihood.

    Returns:
      (params, info) of `Law.fit`, every leaf of shape [P].
    """
    params, info = _fit_rows(law, law.memory_of(scores, mask), prior)
    # A compiled function hands a dictionary back in the order of the alphabet.
    return {name: params[name] for name in law.parameters}, info


@jax.jit
def _fit_rows(law, memory, prior):
    num_rows = jax.tree.leaves(memory)[0].shape[0]
    prior = jax.tree.map(lambda v: jnp.broadcast_to(jnp.asarray(v), (num_rows,)), prior)
    return jax.vmap(law.fit)(memory, prior)
