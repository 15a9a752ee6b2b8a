"""The head: a problem's frozen features to a prior on the law of its scores.

The features are pooled over the tokens that are there, and a small network gives four numbers,
which `to_prior` turns into loc, scale and the sd of each. They are deviations from a reference
prior, so that a head that knows nothing, all four 0, predicts the reference, and no value of them
leaves the domain.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from optscale_jax.distributions import TruncatedNormal
from optscale_jax.errors import InputError
from optscale_jax.estimation import Prior
from optscale_jax.predictor.features import Pooling

__all__ = ["HEADS", "OUTPUTS", "Head", "HeadConfig", "loc_of_mean", "to_prior", "with_widths"]

OUTPUTS = 4
"""Numbers that a head gives: of the law's mean, its scale, and how sure it is of each."""

_LARGEST = (6.0, 3.0, 4.0, 4.0)
# Bounds of the deviations: logit of the mean, and logs of scale and widths. A mean of 1 - 1e-5, or
# a scale 20 times the reference's, is further than scores in [0, 1] go.
_NEWTON_STEPS = 8
_SPREADING = nnx.initializers.he_normal()
_SMALL = nnx.initializers.variance_scaling(0.01, "fan_in", "normal")
# One object each: heads of equal shape then share a compilation.


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """Which head, and its shape.

    Attributes:
        name: mlp, or the name of one's own, module:name or ./file.py:name: a flax.nnx.Module, or a
            function that makes one, called with the features' width, rngs, and those of the fields
            below that its signature names. docs/predictor.md has an example.
        pooling: How a text's tokens become one vector: attention (learned, over all tokens), mean,
            or last. With mean and last the features are pooled before they are kept.
        hidden: Widths of the network's hidden layers, with GELU between them.
        dropout: Share of each hidden layer's units left out while training, in [0, 1); one number
            for each hidden layer.
        towers: 1: one network for all outputs; 2: one for what belongs to loc and one for what
            belongs to scale, as in the paper.
    """

    name: str = "mlp"
    pooling: Literal["attention", "mean", "last"] = "mean"
    hidden: list[int] = dataclasses.field(default_factory=lambda: [512, 256])
    dropout: list[float] = dataclasses.field(default_factory=lambda: [0.3, 0.3])
    towers: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        """Refuses what is outside its domain."""
        rates, widths = self.dropout, self.hidden
        if any(width < 1 for width in widths):
            raise InputError(f"head.hidden is {widths}; widths must be at least 1")
        if len(rates) != len(widths):
            raise InputError(
                f"head.dropout has {len(rates)} numbers; head.hidden has {len(widths)} layers"
            )
        if not all(0 <= rate < 1 for rate in rates):
            raise InputError(f"head.dropout is {rates}; rates must be in [0, 1)")

    @property
    def features(self) -> Pooling:
        """What the features keep of a text's tokens."""
        return "tokens" if self.pooling == "attention" else self.pooling


class Tower(nnx.Module):
    """Hidden layers with GELU and dropout, and a linear output that starts near 0."""

    def __init__(
        self, widths: Sequence[int], outputs: int, dropout: Sequence[float], rngs: nnx.Rngs
    ):
        self.rates = tuple(dropout)
        sizes = itertools.pairwise(widths)
        self.layers = nnx.List(
            [nnx.Linear(*size, kernel_init=_SPREADING, rngs=rngs) for size in sizes]
        )
        self.output = nnx.Linear(widths[-1], outputs, kernel_init=_SMALL, rngs=rngs)

    def __call__(self, x: Array, key: PRNGKeyArray | None) -> Array:
        for index, (layer, rate) in enumerate(zip(self.layers, self.rates, strict=True)):
            x = jax.nn.gelu(layer(x))
            if key is not None and rate > 0:
                keep = jax.random.bernoulli(jax.random.fold_in(key, index), 1 - rate, x.shape)
                x = jnp.where(keep, x / (1 - rate), 0.0)
        return self.output(x)


class Head(nnx.Module):
    """Features [B, length, width] to the four numbers of `to_prior`; `HeadConfig` has the shape."""

    def __init__(
        self,
        width: int,
        *,
        pooling: Literal["attention", "mean", "last"],
        hidden: Sequence[int],
        dropout: Sequence[float],
        towers: int,
        rngs: nnx.Rngs,
    ):
        self.pooling = pooling
        if pooling == "attention":
            # Starts as the mean over tokens.
            zero = nnx.initializers.zeros
            self.query = nnx.Linear(width, 1, kernel_init=zero, use_bias=False, rngs=rngs)
        widths, outputs = (width, *hidden), OUTPUTS // towers
        self.towers = nnx.List([Tower(widths, outputs, dropout, rngs) for _ in range(towers)])

    def pool(
        self, x: Float[Array, "batch length width"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch width"]:
        """One vector for each text, of the tokens that are there."""
        if self.pooling == "last":
            last = jnp.maximum(jnp.sum(mask, axis=1) - 1, 0)
            return jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
        score = self.query(x)[..., 0] if self.pooling == "attention" else jnp.zeros(mask.shape)
        weight = jax.nn.softmax(jnp.where(mask, score, -jnp.inf), axis=1)
        return jnp.einsum("bt,btd->bd", weight, jnp.where(mask[..., None], x, 0.0))

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        mask: Bool[Array, "batch length"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "batch outputs"]:
        """The four numbers of each text.

        Args:
            x: Normalised features, a row a token; one row if they are pooled already.
            mask: Which of the rows there are.
            key: Key of the dropout; None: no dropout, as when predicting.
        """
        pooled = self.pool(x, mask)
        keys = [None if key is None else jax.random.fold_in(key, i) for i in range(2)]
        outputs = [tower(pooled, k) for tower, k in zip(self.towers, keys, strict=False)]
        if len(outputs) == 1:
            return outputs[0]
        # Each tower has the location and the width of one parameter.
        loc, scale = outputs
        return jnp.stack([loc[:, 0], scale[:, 0], loc[:, 1], scale[:, 1]], axis=1)


HEADS = {"mlp": Head}
"""The heads that are shipped, by name."""


def to_prior(outputs: Float[Array, "... outputs"], reference: Prior) -> Prior:
    """Reads a head's numbers as a prior.

    With m the mean of the law TruncatedNormal(loc, scale), and the reference's values marked 0,

        logit m = logit m_0 + o_0                       log scale = log scale_0 + o_1
        log(loc_sd dm/dloc) = log(loc_sd_0 dm/dloc|_0) + o_2
        log scale_sd = log scale_sd_0 + o_3.

    The first is the law's mean, not its loc, because that is what features and squared errors speak
    of: near an end of [0, 1], where good verifiers put their scores, laws with nearly the same
    scores have loc anywhere between 1 and infinity. loc_sd is taken in units of the mean for the
    same reason. Each o is bounded smoothly.

    Args:
        outputs: shape [..., 4].
        reference: the prior at outputs of 0, scalar fields.

    Returns:
        Prior of fields [...]: scale and both sds above 0, the law's mean inside (0, 1).
    """
    mean, scale, mean_width, scale_width = jnp.moveaxis(_bounded(outputs), -1, 0)
    law = TruncatedNormal(reference.loc, reference.scale)
    mean_0, slope_0 = law.mean(), law.variance() / reference.scale**2
    eps = 1e-4
    mean_0 = jnp.clip(mean_0, eps, 1 - eps)
    mean = jax.nn.sigmoid(jnp.log(mean_0) - jnp.log1p(-mean_0) + mean)
    mean = jnp.clip(mean, 1e-6, 1 - 1e-6)
    scale = reference.scale * jnp.exp(scale)
    loc = loc_of_mean(mean, scale)
    # The widths are free numbers: how they scale with the law is not something to learn from.
    slope = jax.lax.stop_gradient(TruncatedNormal(loc, scale).variance() / scale**2)
    return Prior(
        loc=loc,
        scale=scale,
        loc_sd=reference.loc_sd * slope_0 / slope * jnp.exp(mean_width),
        scale_sd=reference.scale_sd * jnp.exp(scale_width),
    )


def with_widths(
    prior: Prior, outputs: Float[Array, "... outputs"], added: Float[Array, " outputs"]
) -> Prior:
    """The prior at outputs with something added to those of the widths.

    The same as `to_prior` of the sum, without looking for loc again.

    Args:
        prior: that at `outputs`.
        outputs: shape [..., 4].
        added: what is added to mean and scale is not read.
    """
    factors = jnp.exp(_bounded(outputs + added) - _bounded(outputs))
    loc_sd, scale_sd = prior.loc_sd * factors[..., 2], prior.scale_sd * factors[..., 3]
    return Prior(prior.loc, prior.scale, loc_sd, scale_sd)


def _bounded(outputs: Array) -> Array:
    bound = jnp.asarray(_LARGEST, outputs.dtype)
    return bound * jnp.tanh(outputs / bound)


@jax.custom_jvp
def loc_of_mean(mean: Float[Array, "..."], scale: Float[Array, "..."]) -> Float[Array, "..."]:
    """The loc at which a truncated normal on [0, 1] has a given mean.

    The mean rises with loc from 0 to 1 at any scale, so there is exactly one. Differentiable in
    both (implicit function theorem).

    Args:
        mean: shape [...], inside (0, 1).
        scale: shape [...], above 0.
    """
    # Seen from the nearer end, at distance d of the mean: far outside, d = scale^2 / gap; at the
    # end, d = 0.8 scale; inside, d = -gap. Newton's method on 1/d, which is nearly linear in the
    # gap outside, starts within a few percent.
    upper = mean >= 0.5
    d = jnp.where(upper, 1 - mean, mean)
    half_normal = math.sqrt(2 / math.pi)
    start = jnp.maximum(scale**2 / d - d / half_normal**2, -d)

    def newton(_, gap):
        law = TruncatedNormal(-gap, scale)
        now = jnp.maximum(law.mean(), jnp.finfo(d.dtype).tiny)
        # d(1/m)/dgap = (variance / scale^2) / m^2.
        step = (1 / now - 1 / d) * now**2 * scale**2 / law.variance()
        inside = (d - now) * scale**2 / law.variance()
        return gap - jnp.where(gap > 0, step, inside)

    gap = jax.lax.fori_loop(0, _NEWTON_STEPS, newton, start)
    return jnp.where(upper, 1 + gap, -gap)


@loc_of_mean.defjvp
def _(primals, tangents):
    mean, scale = primals
    mean_dot, scale_dot = tangents
    loc = loc_of_mean(mean, scale)
    _, by_scale = jax.jvp(lambda s: TruncatedNormal(loc, s).mean(), (scale,), (scale_dot,))
    slope = TruncatedNormal(loc, scale).variance() / scale**2
    return loc, (mean_dot - by_scale) / slope
