"""The contract of a stopping rule, shared by replay and by the live loop.

A policy is a value (`optscale_jax.values`) with pure methods over a state of fixed shapes. Whoever
drives it draws completions and feeds them in *launch order*: short completions finish first, so
deciding in completion order would make the first scores those of short answers.

The driver's loop, for one problem:

    state = policy.init(prior)
    while (more := policy.request(state).more) > 0:
        draw up to `more` completions at once; for each one, in launch order:
            state = policy.observe(state, observation)
            stop as soon as policy.request(state).more == 0
    return policy.select(state)

`request` is a function of the state alone and is asked again after every observation, so a driver
may draw one at a time or many at once and comes to the same decision.

A rule of one's own is a subclass with its numbers as fields and one method, `rule`, which says how
many more and why; `start` and `update` too if it remembers more than `State` does.
"""

import math
from collections.abc import Iterable
from enum import IntEnum
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optscale_jax.calibration import Origin
from optscale_jax.distributions.base import known
from optscale_jax.policies.seen import Best, Observation, State, Votes
from optscale_jax.policies.selection import BestScore, Selector, make_selector
from optscale_jax.typing import Array, Count
from optscale_jax.values import Value, static

__all__ = [
    "Info",
    "Outcome",
    "Policy",
    "PolicyKind",
    "Request",
    "StopReason",
    "check_count",
    "finish",
    "gain",
    "run",
    "start",
    "step",
    "until",
]


PolicyKind = Literal["parallel", "sequential"]
"""Whether a rule draws independent completions, or rounds that each see the answer before."""


class StopReason(IntEnum):
    """Why a policy stopped."""

    RUNNING = 0  # it has not
    FIXED_COUNT = 1  # the number of samples fixed beforehand is drawn
    BOUND_REACHED = 2  # as many samples are drawn as the bound requires
    SCORE_REACHED = 3  # a score reached s_min
    MAX_SAMPLES = 4  # the cap was reached before the rule was satisfied
    WINDOW_UNANIMOUS = 5  # a whole window of completions gave one answer
    LEAD_CERTAIN = 6  # the leading answer is the majority with the probability asked for
    EASY_PROBLEM = 7  # a search over all problems found this one easy enough for what is drawn
    SATISFIED = 8  # the rule is satisfied, for rules that have no reason of their own here
    DOUBT_SMALL = 9  # what is left in doubt is not worth the price of another completion
    GAIN_SMALL = 10  # the next completion is not expected to raise the best score enough
    BUDGET_SPENT = 11  # the budget of the whole run is; the rule was not asked


class Request(NamedTuple):
    """A policy's one decision, every field an int32 scalar."""

    more: Array  # how many more completions to draw now; 0 = stop
    reason: Array  # `StopReason`; RUNNING while `more` is above 0
    required: Array  # how many completions it now wants in all; -1 where unknown


def until(
    satisfied: Array,
    reason: StopReason | Array = StopReason.SATISFIED,
    *,
    more: Array | int = 1,
    required: Array | int = -1,
) -> Request:
    """The request of a rule that draws until something holds; `Policy.request` sees to the cap.

    Args:
      satisfied: bool scalar, whether to stop.
      reason: why, then.
      more: how many to draw at once otherwise, >= 1.
      required: how many it wants in all; -1 where unknown.
    """
    return Request(
        jnp.where(satisfied, 0, more).astype(jnp.int32),
        jnp.where(satisfied, reason, StopReason.RUNNING).astype(jnp.int32),
        jnp.asarray(required, jnp.int32),
    )


class Info(NamedTuple):
    """What a person would plot, every field a scalar."""

    required: Array  # int32, samples that the policy now wants in all; -1 where unknown
    params: dict[str, Array]  # the fitted law's parameters by name; {} for policies that fit none
    stop_reason: Array  # int32 `StopReason`
    # int32, how many of the completions a search over all problems drew before the rule was asked
    # (see `Policy.plan`); 0 for rules without one.
    presampled: Array | int = 0
    # floating, P(the completion to return is right); NaN for policies that claim none
    confidence: Array | float = math.nan


class Policy(Value):
    """A stopping rule with its choice of the completion to return.

    A subclass gives `rule`, and the class attributes where they differ from these.

    Attributes:
      max_samples: the most completions that it draws, an integer >= 1.
      selection: which completion to return; the best score by default.
      prior: what is known of a problem before any completion, such as a `Prior`, the
        default for `init`; for all problems, or with an axis of problems in front; or None.
      slots: the most completions that the state has room for, which decides shapes; max_samples
        by default. Policies that differ in max_samples alone share a compilation once they have
        the same slots (`stack` sees to it).
    """

    kind: ClassVar[PolicyKind] = "parallel"
    cap_reason: ClassVar[StopReason] = StopReason.MAX_SAMPLES  # why it stops at max_samples
    couples_problems: ClassVar[bool] = False  # whether `plan` looks at all problems of a run first
    rule_uses_scores: ClassVar[bool] = True  # whether the rule itself reads scores,
    rule_uses_answers: ClassVar[bool] = False  # compares answers,
    rule_uses_tokens: ClassVar[bool] = False  # needs the length of every completion

    max_samples: Count
    selection: Selector = BestScore()
    prior: Any = None
    slots: int = static(default=0)

    def __post_init__(self):
        """Checks max_samples and makes room for them; finds a selection given by name."""
        object.__setattr__(self, "max_samples", check_count("max_samples", self.max_samples))
        object.__setattr__(self, "selection", make_selector(self.selection))
        if self.slots == 0:
            object.__setattr__(self, "slots", int(np.max(self.max_samples)))

    # What a rule of one's own gives ---------------------------------------------------------------

    def rule(self, state: State) -> Request:
        """How many more completions the rule wants, and why it stops; the cap is seen to after it.

        `until` makes the request of a condition.
        """
        raise NotImplementedError(f"{type(self).__name__} gives no rule(state)")

    def start(self, prior: Any) -> Any:
        """What the rule itself remembers before any completion: a pytree of fixed shapes."""
        del prior

    def update(self, state: State, observation: Observation) -> Any:
        """The state's `own` with one more completion, which the rest of it counts already."""
        del observation
        return state.own

    def confidence(self, state: State) -> Array | float:
        """P(the completion to return is right), in [0, 1]; NaN for rules that claim none."""
        del state
        return math.nan

    def gain(self, state: State) -> Array:
        """What one more completion is expected to gain, for each token that it takes; optional.

        A floating scalar >= 0, of the same unit for all problems, by which those that share a
        budget are compared (`study.allocate`); infinite where the rule has seen too little to say.
        """
        raise NotImplementedError(f"{type(self).__name__} gives no gain(state)")

    def params(self, state: State) -> dict[str, Array]:
        """The fitted law's parameters by name; {} for rules that fit none."""
        del state
        return {}

    def check_origin(self, origin: Origin) -> None:
        """Raises an `InputError` if the rule was learnt for other scores than an origin's."""
        del origin

    def plan(self, observations: Observation) -> Any:
        """The step over all problems of a run, for rules that couple them (`couples_problems`).

        Of observations [P, N] it may look only at those that it reports as drawn, in
        `Info.presampled`. It returns a pytree with one entry a problem, which goes to `init` in the
        prior's place.
        """
        raise NotImplementedError(f"{type(self).__name__} couples no problems")

    # What a driver calls --------------------------------------------------------------------------

    @property
    def uses_scores(self) -> bool:
        """Whether scores are read at all."""
        return self.rule_uses_scores or self.selection.uses_scores

    @property
    def uses_answers(self) -> bool:
        """Whether answers are compared, as every vote does."""
        return self.rule_uses_answers or self.selection.uses_answers

    @property
    def signals(self) -> tuple[str, ...]:
        """Names of the signals that an observation has beside its score; none by default."""
        return ()

    def init(self, prior: Any = None) -> State:
        """The state before any completion.

        Args:
          prior: the problem's prior, or what `plan` made for it; None: `prior`.
        """
        return State(
            count=jnp.zeros((), jnp.int32),
            tokens=jnp.zeros((), jnp.result_type(float)),
            best=Best.none(),
            votes=Votes.none(self.slots) if self.uses_answers else None,
            own=self.start(self.prior if prior is None else prior),
            chosen=self.selection.init(self.slots),
        )

    def observe(self, state: State, observation: Observation) -> State:
        """The state with one more completion."""
        state = State(
            count=state.count + 1,
            tokens=state.tokens + jnp.maximum(observation.tokens, 0),
            best=state.best.add(observation),
            votes=None if state.votes is None else state.votes.add(observation),
            own=state.own,
            chosen=self.selection.update(state.chosen, observation),
        )
        return state._replace(own=self.update(state, observation))

    def request(self, state: State) -> Request:
        """The decision: the rule's, with its cap."""
        wanted = self.rule(state)
        more = jnp.clip(wanted.more, 0, jnp.maximum(self.max_samples - state.count, 0))
        cut_off = jnp.where(wanted.more > 0, self.cap_reason, wanted.reason)
        reason = jnp.where(more > 0, StopReason.RUNNING, cut_off)
        # -1, where a rule does not know, stays.
        required = jnp.minimum(wanted.required, self.max_samples)
        return Request(*(each.astype(jnp.int32) for each in (more, reason, required)))

    def select(self, state: State) -> Array:
        """int32, launch order of the completion to return; -1 = none is eligible."""
        return self.selection.index(state)

    def info(self, state: State) -> Info:
        """What a person would plot."""
        request = self.request(state)
        return Info(
            request.required,
            self.params(state),
            request.reason,
            confidence=self.confidence(state),
        )


# Drivers ------------------------------------------------------------------------------------------


@jax.jit
def start(policy: Policy, prior: Any = None) -> tuple[State, Array]:
    """The first state, and how many completions to draw; compiled once for equal structures."""
    state = jax.tree.map(jnp.asarray, policy.init(prior))
    return state, policy.request(state).more


@jax.jit
def step(policy: Policy, state: State, observation: Observation) -> tuple[State, Array]:
    """The state with one more completion, and how many more to draw."""
    state = policy.observe(state, observation)
    return state, policy.request(state).more


@jax.jit
def finish(policy: Policy, state: State) -> tuple[Array, Info]:
    """The completion to return, and what a person would plot."""
    return policy.select(state), policy.info(state)


@jax.jit
def gain(policy: Policy, state: State) -> Array:
    """What one more completion is expected to gain, for each token."""
    return policy.gain(state)


class Outcome(NamedTuple):
    """Result of `run`."""

    num_samples: int  # how many completions were drawn
    selected_index: int  # launch order of the one to return; -1 = none is eligible
    info: Info  # at the stop


def run(policy: Policy, observations: Iterable[Observation], *, prior: Any = None) -> Outcome:
    """Drives a policy over one problem's completions, one at a time, in plain Python.

    The reference that replay and the live loop are held to; replay is the fast way.

    Args:
      policy: the rule.
      observations: completions in launch order, drawn from only while the policy asks for more.
      prior: the problem's prior, or what `policy.plan` made for it; default `policy.prior`, which
        must then be for all problems.

    Raises:
      ValueError: the completions ran out while the policy still asked for more.
    """
    state, more = start(policy, prior)
    source = iter(observations)
    count = 0
    while int(more) > 0:
        try:
            observation = next(source)
        except StopIteration:
            raise ValueError(
                f"the policy asks for more than the {count} completions given; it may draw up to "
                f"{policy.max_samples}"
            ) from None
        observation = jax.tree.map(jnp.asarray, Observation(*observation))
        state, more = step(policy, state, observation)
        count += 1
    selected, info = finish(policy, state)
    return Outcome(count, int(selected), info)


# Checks of a factory's arguments ------------------------------------------------------------------


def check_count(name: str, value: Any) -> Any:
    """An integer >= 1, or several, or a ValueError that names the argument."""
    array = known(value)
    if array is None:
        return value
    if not np.issubdtype(array.dtype, np.integer) or (array < 1).any():
        raise ValueError(f"{name} must be an integer >= 1, found {value!r}")
    return value if array.ndim else int(array)


def check_not_above(name: str, value: Any, limit: str, largest: Any) -> None:
    """A ValueError that names the arguments, where a value is known to be above another."""
    values, limits = known(value), known(largest)
    if values is not None and limits is not None and np.any(values > limits):
        raise ValueError(f"{name} must be at most {limit}, found {value} > {largest}")
