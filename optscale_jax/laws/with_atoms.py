"""Point masses at 0 and 1 mixed with any law: for verifiers that saturate."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optscale_jax.distributions import WithAtoms
from optscale_jax.estimation import Prior
from optscale_jax.laws.base import Law, Params
from optscale_jax.typing import Array, ArrayLike

__all__ = ["AtomsInfo", "AtomsMemory", "WithAtomsLaw", "with_atoms"]


class AtomsMemory(NamedTuple):
    """What is remembered of one problem's scores; counts are scalars of the scores' type."""

    zeros: Array  # number of scores of exactly 0
    ones: Array  # number of scores of exactly 1
    between: Array  # number of the others
    inner: Any  # what the inner law remembers of those


class AtomsInfo(NamedTuple):
    """How a fit ended."""

    boundary: Array  # the inner fit's, if its info has one, else 0
    # Number of scores that are neither 0 nor 1, on which the inner law was fitted; where it is
    # below `scores_for_a_fit` the inner law is its start.
    between: Array
    inner: Any  # the inner fit's info


class WithAtomsLaw(Law):
    """A law with the probabilities of an exact 0 and an exact 1 beside it.

    Their maximum-likelihood estimates are the shares of such scores, and the law's that of the
    others alone: the likelihood is a product of the two. Where too few are left for the inner fit,
    the inner law is its start.

    Attributes:
      law: the law of the scores between 0 and 1.
    """

    law: Law

    @property
    def parameters(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The two masses, and the inner law's parameters."""
        return ("at_zero", "at_one", *self.law.parameters)

    @property
    def takes_prior(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the inner law, whose parameters the prior is about."""
        return self.law.takes_prior

    def init(self, max_samples: int, dtype) -> AtomsMemory:
        """No scores."""
        zero = jnp.zeros((), dtype)
        return AtomsMemory(zero, zero, zero, self.law.init(max_samples, dtype))

    def add(self, memory: AtomsMemory, score: ArrayLike) -> AtomsMemory:
        """Counts an exact 0 or 1; hands any other score to the inner law."""
        score = jnp.asarray(score)
        zero, one = score <= 0, score >= 1
        between = ~(zero | one)
        added = self.law.add(memory.inner, jnp.where(between, score, 0.5))
        return AtomsMemory(
            memory.zeros + zero,
            memory.ones + one,
            memory.between + between,
            jax.tree.map(lambda new, old: jnp.where(between, new, old), added, memory.inner),
        )

    def start(self, prior: Prior | None, dtype) -> Params:
        """The inner law's start, without atoms."""
        zero = jnp.zeros((), dtype)
        return {"at_zero": zero, "at_one": zero, **self.law.start(prior, dtype)}

    def fit(self, memory: AtomsMemory, prior: Prior | None = None) -> tuple[Params, AtomsInfo]:
        """Shares of exact zeros and ones; the inner law's fit to the others."""
        total = memory.zeros + memory.ones + memory.between
        start = self.law.start(prior, memory.zeros.dtype)
        fitted, info = self.law.fit(memory.inner, prior)
        enough = memory.between >= self.law.scores_for_a_fit(prior)
        inner = jax.tree.map(lambda new, old: jnp.where(enough, new, old), fitted, start)
        at_zero = memory.zeros / jnp.maximum(total, 1)
        # Their sum is exactly 1 where no other score was seen.
        at_one = jnp.where(
            (memory.between == 0) & (total > 0), 1 - at_zero, memory.ones / jnp.maximum(total, 1)
        )
        boundary = jnp.asarray(getattr(info, "boundary", 0), jnp.int32)
        params = {"at_zero": at_zero, "at_one": at_one, **inner}
        return params, AtomsInfo(boundary, memory.between, info)

    def distribution(self, params: Params) -> WithAtoms:
        """`WithAtoms` of the inner law's distribution."""
        inner = {name: params[name] for name in self.law.parameters}
        return WithAtoms(self.law.distribution(inner), params["at_zero"], params["at_one"])

    def scores_for_a_fit(self, prior: Prior | None) -> int:
        """As the inner law."""
        return self.law.scores_for_a_fit(prior)

    def memory_of(self, scores: ArrayLike, mask: ArrayLike | None = None) -> AtomsMemory:
        """Counts of each row, and what the inner law remembers of the scores between."""
        scores = jnp.asarray(scores)
        scores = scores.astype(jnp.result_type(scores.dtype, jnp.float32))
        present = jnp.asarray(True if mask is None else mask, bool)
        scores, present = jnp.broadcast_arrays(scores, present)
        zero, one = present & (scores <= 0), present & (scores >= 1)
        between = present & ~(zero | one)

        def count(which):
            return jnp.sum(which, axis=-1).astype(scores.dtype)

        inner = self.law.memory_of(scores, between)
        return AtomsMemory(count(zero), count(one), count(between), inner)


def with_atoms(law: Law) -> WithAtomsLaw:
    """A law of scores with point masses at 0 and 1; parameters at_zero, at_one, and the law's own.

    Args:
      law: the law of the scores between; one without atoms.

    Raises:
      ValueError: the law has atoms already, or is no `Law`.
    """
    if isinstance(law, WithAtomsLaw):
        raise ValueError("with_atoms: the law has atoms already")
    if not isinstance(law, Law):
        raise ValueError(f"with_atoms takes a Law, found {law!r}; laws.beta(), say")
    return WithAtomsLaw(law=law)
