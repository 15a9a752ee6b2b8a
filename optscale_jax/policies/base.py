"""The contract of a stopping rule, shared by replay and by the live loop.

A policy is a record of pure functions over a fixed-shape state, as an optax transformation is.
Whoever drives it draws completions and feeds them in *launch order*: short completions finish
first, so deciding in completion order would make the first scores those of short answers.

The driver's loop, for one problem:

    state = policy.init(prior)
    while (more := policy.request(state)) > 0:
        draw up to `more` completions at once; for each one, in launch order:
            state = policy.observe(state, observation)
            stop as soon as policy.request(state) == 0
    return policy.select(state)

`request` is a function of the state alone and is asked again after every observation, so a driver
may draw one at a time or many at once and comes to the same decision.
"""

from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from optscale_jax.estimation import Prior
from optscale_jax.typing import Array, ArrayLike

__all__ = [
    "Best",
    "Info",
    "Observation",
    "Outcome",
    "Policy",
    "PolicyKind",
    "StopReason",
    "capped",
    "is_eligible",
    "no_info",
    "run",
]


PolicyKind = Literal["parallel", "sequential"]
"""Whether a rule draws independent completions, or rounds that each see the answer before."""


class StopReason(IntEnum):
    """Why a policy stopped.

    Attributes:
      RUNNING: it has not.
      FIXED_COUNT: the number of samples fixed beforehand is drawn.
      BOUND_REACHED: as many samples are drawn as the bound requires.
      SCORE_REACHED: a score reached s_min.
      MAX_SAMPLES: the cap was reached before the rule was satisfied.
      WINDOW_UNANIMOUS: a whole window of completions gave one answer.
      LEAD_CERTAIN: the leading answer is the majority with the probability asked for.
      EASY_PROBLEM: a search over all problems found this one easy enough for what is drawn.
    """

    RUNNING = 0
    FIXED_COUNT = 1
    BOUND_REACHED = 2
    SCORE_REACHED = 3
    MAX_SAMPLES = 4
    WINDOW_UNANIMOUS = 5
    LEAD_CERTAIN = 6
    EASY_PROBLEM = 7


class Observation(NamedTuple):
    """One scored completion, every field a scalar.

    Attributes:
      score: verifier score in [0, 1], floating.
      answer: int32 id of its answer, equal for equal answers of the problem; -1 = no answer.
      tokens: int32 length of the completion; -1 = unknown, 0 = empty.
      index: int32 launch order within the problem, from 0.
    """

    score: Array
    answer: Array
    tokens: Array
    index: Array


class Info(NamedTuple):
    """What a person would plot, every field a scalar.

    Attributes:
      required: int32, the number of samples that the policy now wants in all; -1 where unknown.
      loc: fitted loc of the law of scores; NaN for policies that fit none.
      scale: fitted scale; NaN likewise.
      stop_reason: int32 `StopReason`.
      presampled: int32, how many of the completions a search over all problems drew before the
        rule was asked (see `Policy.plan`); 0 for rules without one.
    """

    required: Array
    loc: Array
    scale: Array
    stop_reason: Array
    presampled: Array | int = 0


class Policy(NamedTuple):
    """A stopping rule with its choice of the completion to return.

    Attributes:
      init: `init(prior) -> state`; prior is a scalar `Prior` or None, or what `plan` made for the
        problem.
      observe: `observe(state, observation) -> state`.
      request: `request(state) -> int32`, how many more to draw now; 0 = stop.
      select: `select(state) -> int32`, index of the completion to return; -1 = none is eligible.
      info: `info(state) -> Info`.
      max_samples: the most that `request` can ask for in all; a Python int.
      gain: optional `gain(state) -> float`, expected rise of the best score by one more sample per
        expected token, so that a budget shared by many problems can go where it pays.
      prior: default prior for `init`, fields scalar or with one entry a problem; or None.
      uses_scores: whether the rule reads scores at all.
      uses_answers: whether it compares answers, as every vote does.
      uses_tokens: whether it needs the length of every completion.
      kind: "parallel" for independent draws, "sequential" for rounds that see the answer before.
      plan: optional step over all problems of a run, for rules that couple them:
        `plan(observations [P, n]) -> inputs`, a pytree with one entry a problem, each of which
        goes to `init` in the prior's place. It may look only at completions that it reports as
        drawn, in `Info.presampled`.
    """

    init: Callable[[Any], Any]
    observe: Callable[[Any, Observation], Any]
    request: Callable[[Any], Array]
    select: Callable[[Any], Array]
    info: Callable[[Any], Info]
    max_samples: int
    gain: Callable[[Any], Array] | None = None
    prior: Prior | None = None
    uses_scores: bool = True
    uses_answers: bool = False
    uses_tokens: bool = False
    kind: PolicyKind = "parallel"
    plan: Callable[[Observation], Any] | None = None


def is_eligible(observation: Observation) -> Array:
    """Whether a completion may be returned: an empty or answerless one never is."""
    return (observation.answer != -1) & (observation.tokens != 0)


class Best(NamedTuple):
    """The best eligible completion so far; the earlier one wins a tie.

    Attributes:
      score: its score, -inf if there is none.
      index: int32 launch order, -1 if there is none.
    """

    score: Array
    index: Array

    @classmethod
    def none(cls) -> "Best":
        """Before any observation."""
        return cls(jnp.asarray(-jnp.inf, jnp.result_type(float)), jnp.asarray(-1, jnp.int32))

    def update(self, observation: Observation) -> "Best":
        """With one more observation."""
        better = is_eligible(observation) & (observation.score > self.score)
        return Best(
            jnp.where(better, observation.score, self.score).astype(self.score.dtype),
            jnp.where(better, observation.index, self.index).astype(jnp.int32),
        )


def no_info(required: Array, stop_reason: Array) -> Info:
    """`Info` of a policy that fits no law of scores."""
    nan = jnp.asarray(jnp.nan, jnp.result_type(float))
    return Info(jnp.asarray(required, jnp.int32), nan, nan, jnp.asarray(stop_reason, jnp.int32))


class Outcome(NamedTuple):
    """Result of `run`.

    Attributes:
      num_samples: how many completions were drawn.
      selected_index: launch order of the one to return; -1 = none is eligible.
      info: the policy's `Info` at the stop.
    """

    num_samples: int
    selected_index: int
    info: Info


def run(policy: Policy, observations: Iterable[Observation], *, prior: Any = None) -> Outcome:
    """Drives a policy over one problem's completions, one at a time, in plain Python.

    The reference that replay and the live loop are held to; replay is the fast way.

    Args:
      policy: the rule.
      observations: completions in launch order, drawn from only while the policy asks for more.
      prior: the problem's prior, or what `policy.plan` made for it; default `policy.prior`, which
        must then be scalar.

    Returns:
      `Outcome`.

    Raises:
      ValueError: the completions ran out while the policy still asked for more.
    """
    # Compiled once a policy: the same functions come back from JAX's cache at the next problem.
    observe, request = jax.jit(policy.observe), jax.jit(policy.request)
    state = jax.tree.map(jnp.asarray, policy.init(policy.prior if prior is None else prior))
    source = iter(observations)
    count = 0
    while int(request(state)) > 0:
        try:
            observation = next(source)
        except StopIteration:
            raise ValueError(
                f"the policy asks for more than the {count} completions given; it may draw up to "
                f"{policy.max_samples}"
            ) from None
        state = observe(state, Observation(*map(jnp.asarray, observation)))
        count += 1
    return Outcome(count, int(policy.select(state)), policy.info(state))


def capped(
    policy: Policy, cap: ArrayLike, *, reason: StopReason = StopReason.MAX_SAMPLES
) -> Policy:
    """The same rule with a lower cap on its samples.

        request'(state) = min(request(state), cap - completions seen)

    The cap may be traced, so that replay runs one rule under several caps in one compilation; every
    rule of this package, capped, decides as the rule made with that cap does.

    Args:
      policy: the rule.
      cap: the most completions to draw, an integer in [1, policy.max_samples]; may be traced.
      reason: why it stops there, if it is not satisfied: FIXED_COUNT for a rule whose cap is its
        whole point.

    Returns:
      The policy. Where the cap is traced, its `max_samples` is that of the rule given.

    Raises:
      ValueError: the cap (where its value is known) is outside its domain.
    """
    gain = policy.gain
    known = not isinstance(cap, Tracer)
    if known:
        cap = check_count("cap", np.asarray(cap).item())
        if cap > policy.max_samples:
            raise ValueError(f"cap must be at most {policy.max_samples}, found {cap}")

    def init(prior=None):
        return CappedState(jnp.zeros((), jnp.int32), policy.init(prior))

    def observe(state, observation):
        return CappedState(state.count + 1, policy.observe(state.rule, observation))

    def request(state):
        return jnp.clip(policy.request(state.rule), 0, jnp.maximum(cap - state.count, 0))

    def info(state):
        of_rule = policy.info(state.rule)
        cut_off = (state.count >= cap) & (of_rule.stop_reason == StopReason.RUNNING)
        return of_rule._replace(
            # -1, where a rule does not know, stays.
            required=jnp.minimum(of_rule.required, jnp.asarray(cap)).astype(jnp.int32),
            stop_reason=jnp.where(cut_off, reason, of_rule.stop_reason).astype(jnp.int32),
        )

    return policy._replace(
        init=init,
        observe=observe,
        request=request,
        select=lambda state: policy.select(state.rule),
        info=info,
        gain=None if gain is None else lambda state: gain(state.rule),
        max_samples=cap if known else policy.max_samples,
    )


class CappedState(NamedTuple):
    """Completions seen (a scalar), and the rule's own state."""

    count: Array
    rule: Any


def check_count(name: str, value: Any, least: int = 1) -> int:
    """A Python int >= least, or a ValueError that names the argument."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, found {value!r}")
    return int(value)
