"""Calibrated vote: P(the answer is right) by scores and repeats; spending as doubt lasts."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from optscale_jax.calibration import (
    Calibration,
    Evidence,
    Origin,
    check_origin,
    signal_names,
)
from optscale_jax.distributions.base import known
from optscale_jax.errors import InputError
from optscale_jax.policies.base import Policy, Request, StopReason, until
from optscale_jax.policies.seen import Observation, State, is_eligible
from optscale_jax.typing import Array, Count, Number
from optscale_jax.values import static

__all__ = ["CalibratedVote", "calibrated_vote"]


class Ballot(NamedTuple):
    """What the calibrated vote remembers of a problem; a slot for each answer, as `Votes` has."""

    evidence: Evidence
    total: Array  # [slots], sum over the answer's completions of their log-odds of being right
    best: Array  # [slots], the highest of these; -inf in a free slot
    index: Array  # int32 [slots], launch order of the completion with the highest score
    score: Array  # [slots], its score
    spent: Array  # floating, in the unit of the budget


class CalibratedVote(Policy):
    """See `calibrated_vote`."""

    rule_uses_answers = True

    budget: Number
    unit: str = static(default="completions")
    signals: tuple[str, ...] = static(default=())
    origin: Origin | None = static(default=None)
    force: bool = static(default=False)

    @property
    def rule_uses_tokens(self) -> bool:
        """A budget in tokens cannot do without the length of every completion."""
        return self.unit == "tokens"

    def check_origin(self, origin: Origin) -> None:
        """Refuses another verifier's scores than the calibration was learnt on."""
        if self.origin is not None:
            check_origin(self.origin, origin, force=self.force)

    def start(self, prior: Evidence | None) -> Ballot:
        """No vote yet."""
        if prior is None:
            raise InputError(
                "calibrated_vote: it needs a calibration; learn one (optscale train calibration)"
            )
        dtype = jnp.result_type(float)
        lowest = jnp.full((self.slots,), -jnp.inf, dtype)
        return Ballot(
            jax.tree.map(lambda v: jnp.asarray(v, dtype), prior),
            jnp.zeros((self.slots,), dtype),
            lowest,
            jnp.full((self.slots,), -1, jnp.int32),
            lowest,
            jnp.zeros((), dtype),
        )

    def update(self, state: State, observation: Observation) -> Ballot:
        """With one more completion, which votes if it is eligible."""
        own = state.own
        log_odds = _log_odds(own.evidence, observation)
        here = (state.votes.answers == observation.answer) & is_eligible(observation)
        better = here & (observation.score > own.score)
        if self.unit == "tokens":
            cost = observation.tokens
        else:
            mean = own.evidence.tokens
            is_known = (observation.tokens >= 0) & (mean > 0)
            cost = jnp.where(is_known, observation.tokens / jnp.where(mean > 0, mean, 1), 1)
        return Ballot(
            own.evidence,
            own.total + jnp.where(here, log_odds, 0),
            jnp.where(here, jnp.maximum(own.best, log_odds), own.best),
            jnp.where(better, observation.index, own.index).astype(jnp.int32),
            jnp.where(better, observation.score, own.score).astype(own.score.dtype),
            own.spent + jnp.asarray(cost, own.spent.dtype),
        )

    def _weigh(self, state: State) -> tuple[Array, Array]:
        """The weight u of each slot, -inf in a free one, and that of no answer seen."""
        own, counts = state.own, state.votes.counts
        best, repeats, repeats_by_mean, none = own.evidence.weights
        votes = jnp.maximum(counts, 1)
        strength = repeats + repeats_by_mean * own.total / votes
        # An answer that is there once has no repeats, whatever its score.
        voted = best * jnp.where(counts > 0, own.best, 0) + strength * jnp.log(votes)
        return jnp.where(counts > 0, voted, -jnp.inf), none

    def doubt(self, state: State) -> Array:
        """P(the leading answer is wrong), floating scalar in [0, 1]; 1 while there is none.

        Added up over the others: where it is small it keeps its digits, which 1 - p does not.
        """
        u, none = self._weigh(state)
        top = jnp.maximum(jnp.max(u), none)
        each = jnp.exp(u - top)
        lead = jnp.argmax(u)
        others = jnp.sum(jnp.where(jnp.arange(u.size) == lead, 0, each)) + jnp.exp(none - top)
        return jnp.where(state.votes.counts[0] > 0, others / (others + each[lead]), 1)

    def rule(self, state: State) -> Request:
        """One more, while it is worth its price."""
        # While nothing is drawn doubt is 1, and the budget above 0.
        return until(state.own.spent >= self.budget * self.doubt(state), StopReason.DOUBT_SMALL)

    def select(self, state: State) -> Array:
        """The leading answer's completion of the highest score."""
        u, _ = self._weigh(state)
        return state.own.index[jnp.argmax(u)]

    def confidence(self, state: State) -> Array:
        """P(the leading answer is right)."""
        return 1 - self.doubt(state)

    def gain(self, state: State) -> Array:
        """Expected rise of P(right) by one more completion, for each unit that it costs.

        (1 - p) / spent: after n draws that have not settled a problem the next one does with about
        1 / (n + 1). Infinite while nothing is spent.
        """
        return self.doubt(state) / state.own.spent


def _log_odds(evidence: Evidence, observation: Observation) -> Array:
    """Log-odds that a completion is right, from its score and its signals."""
    dtype = evidence.knots.dtype
    x = jnp.asarray(observation.score, dtype)[None]
    if observation.signals is not None:
        x = jnp.concatenate([x, jnp.asarray(observation.signals, dtype)])
    found = jax.vmap(jnp.interp)(x, evidence.knots, evidence.log_odds)
    return jnp.sum(jnp.where(jnp.isnan(x), 0, found))


def calibrated_vote(
    calibration: Calibration | str | None = None,
    budget: Number = 32.0,
    max_samples: Count = 64,
    *,
    unit: Literal["completions", "tokens"] = "completions",
    signals: str | Sequence[str] = (),
    force: bool = False,
) -> Policy:
    """Votes by what scores and repeats are worth, and draws in proportion to what is in doubt.

    With g the calibration's log-odds that a completion is right, and of each answer a seen k_a
    completions, G_a the highest and m_a the mean of their g,

        u_a = w1 G_a + (w2 + w3 m_a) log k_a,    u_none = b,
        P(a is right) = softmax(u_1, ..., u_A, u_none)_a,    p = max_a P(a is right),
        stop as soon as spent >= budget (1 - p),    or at max_samples,

    and return the leading answer, by its completion of the highest score; a tie goes to the answer
    seen first. Best-of-N's choice is w = (1, 0, 0), the majority's is (0, 1, 0). Repeats count as
    log k because completions share their mistakes.

    The budget is the most that a hopeless problem costs, and 1 / budget the price of one unit, the
    same for all problems, so that it is spent where it raises the chance of a right answer most.

    Args:
      calibration: what scores are worth: a `Calibration`, or the path of one that
        train.calibration wrote, or "scores": they are probabilities of being right. None: it is
        learnt on the other problems of the pool, where policies are compared; elsewhere it must be
        given.
      budget: above 0, in mean completions or in tokens.
      max_samples: most completions to draw, >= 1.
      unit: of the budget. A mean completion is that of the problems that the calibration was learnt
        on; each completion counts as one where it or the mean has no known length.
      signals: what to learn from beside the score, where the calibration is learnt on the pool:
        names of its signals, or one text with commas between them. A calibration has its own.
      force: whether to use a calibration of another verifier, with a warning.

    Raises:
      ValueError: budget or max_samples outside its domain, or a calibration that cannot be used.
    """
    values = known(budget)
    if values is not None and not ((values > 0) & (values < float("inf"))).all():
        raise ValueError(f"budget must be above 0, found {budget}")
    if unit not in ("completions", "tokens"):
        raise ValueError(f"unit must be 'completions' or 'tokens', found {unit!r}")
    if calibration == "scores":
        found, origin = Calibration.default(verifier_is_calibrated=True), None
    else:
        is_path = isinstance(calibration, str)
        found = Calibration.load(calibration) if is_path else calibration
        origin = None if found is None else found.origin
    if isinstance(signals, str):
        signals = signal_names(signals)
    return CalibratedVote(
        prior=None if found is None else found.evidence,
        budget=budget,
        max_samples=max_samples,
        unit=unit,
        signals=tuple(signals) if found is None else found.signals,
        origin=origin,
        force=force,
    )
