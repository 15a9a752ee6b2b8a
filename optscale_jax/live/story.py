"""What a finished run, or one still at it, tells of its problems, read off its directory alone.

`recount` shows a policy the completions again, one by one, and says what it then believed.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from optscale_jax.live.decider import Decider
from optscale_jax.live.engine import FAILED
from optscale_jax.policies import Policy
from optscale_jax.records import Decision, Sample

__all__ = ["Kind", "Look", "kind_of", "recount"]

Kind = Literal["failed", "misled", "stopped early", "never right", "cap", "plain", "undecided"]
"""What is interesting about a problem, the most interesting first: it failed; a right completion
was there and another was returned; it stopped before the cap and is wrong, where no completion was
right; likewise at the cap; it is right, and took all that the cap allows; nothing of these; it is
not decided yet."""


class Look(NamedTuple):
    """What a policy believed after one completion."""

    required: int  # completions that it then wanted in all; -1 where it does not say
    params: dict[str, float]  # of the law fitted by then; {} for policies that fit none
    confidence: float  # P(the completion to return is right); NaN for policies that claim none


def recount(
    policy: Policy, samples: Sequence[Sample], prior: Any = None, *, place: int = 0, count: int = 1
) -> list[Look]:
    """What a policy believed after each of a problem's completions, in launch order.

    Args:
        policy: The run's.
        samples: What its decision rests on, in launch order.
        prior: The problem's own; None: the policy's.
        place: The problem's place in the run, for a policy with a prior for each problem.
        count: How many problems the run has.
    """
    decider, looks = Decider(policy), []
    state, _ = decider.start(prior, place, count)
    for sample in samples:
        state, _ = decider.step_now(state, sample)
        info = decider.end(state)[1]
        params = {name: float(value) for name, value in info.params.items()}
        looks.append(Look(int(info.required), params, float(np.asarray(info.confidence))))
    return looks


def kind_of(decision: Decision | None, samples: Sequence[Sample], cap: int | None) -> Kind:
    """What is interesting about a problem.

    Args:
        decision: What was decided; None where nothing is yet.
        samples: What the decision rests on, in launch order.
        cap: The policy's max_samples; None where it is not known.
    """
    if decision is None:
        return "undecided"
    if decision.stop_reason == FAILED:
        return "failed"
    at = decision.selected_index
    right = at >= 0 and samples[at].correct
    if not right and any(sample.correct for sample in samples):
        return "misled"
    known = any(sample.correct is not None for sample in samples)
    if known and not right:
        return "never right" if decision.num_samples == cap else "stopped early"
    return "cap" if decision.num_samples == cap else "plain"
