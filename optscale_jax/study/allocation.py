"""One budget of tokens for all problems of a run: the next completion goes where it gains most.

    found = allocate(pool, policies.calibrated_vote(calibration), Budget(200_000))

`Queue` says who draws next. `allocate` asks it on a pool, `live.engine` on models, and what it says
depends on completions in the order of their launches alone: not on which of them ended first.
"""

import dataclasses
import heapq
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optscale_jax.checks import at_least
from optscale_jax.errors import InputError, PoolError
from optscale_jax.policies import Info, Observation, Policy, StopReason, num_settings
from optscale_jax.pool import Pool
from optscale_jax.replay import ReplayResult, collect, in_launch_order, over_problems_and_orders
from optscale_jax.typing import Array

__all__ = [
    "Allocation",
    "Budget",
    "Path",
    "Queue",
    "Turn",
    "allocate",
    "check_budget",
    "paths",
    "price",
]


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a whole run may spend.

    Attributes:
      tokens: at least 1; never exceeded, as long as no completion takes more than `most`.
      batch: most completions under way at once, at least 1: so many are launched before the
        first of them has been looked at.
      most: the most tokens that one completion can take, its verifier's included. None: of a pool,
        its longest completion; live, what sampler and verifier say.
      on_spent: called with all that is spent, whenever that is more.
    """

    tokens: float | int
    batch: int = 64
    most: float | int | None = None
    on_spent: Callable[[float | int], None] = lambda spent: None

    def __post_init__(self):
        at_least(self, 1, "tokens", "batch", "most", of="budget.")


class Turn(NamedTuple):
    """What to do next: launch a problem's completion, or look at one that is under way."""

    place: int  # the problem's, in the run
    index: int  # launch order of the completion within the problem
    launch: bool


class Queue:
    """Who draws next within a budget.

    Each problem draws one completion. Then, again and again, the one draws whose

        gain(state) n / (n + m)

    is highest, after n completions seen and m <= n more under way, which count as if they settled
    nothing; the one that has launched fewer wins a tie, then the one that comes first. Up to
    `batch` are under way, and the first launched is looked at first. A completion is launched only
    if the budget holds should it, and all that are under way, take `most`.

    Args:
      num_problems: P.
      max_samples: most completions of a problem.
      budget: with its `most`.
      spent: tokens spent beforehand.
      earlier: of completions that an earlier process launched, by place and index: what they cost
        at most, and whether they are there.
    """

    def __init__(
        self,
        num_problems: int,
        max_samples: int,
        budget: Budget,
        *,
        spent: float | int = 0,
        earlier: Mapping[tuple[int, int], tuple[float | int, bool]] | None = None,
    ):
        assert budget.most is not None
        self.spent = spent
        self._budget, self._most, self._max_samples = budget, budget.most, max_samples
        self._earlier = earlier or {}
        # Of what an earlier process launched, that which is not launched again yet.
        self._held = sum(cost for cost, _ in self._earlier.values())
        self._reserved = 0.0
        self._under_way: deque[tuple[int, int, float | int]] = deque()
        self._seen, self._launched = [0] * num_problems, [0] * num_problems
        self._gain = [np.inf] * num_problems
        # An entry holds as long as its problem has launched and seen as many.
        self._heap = [(-np.inf, 0, place, 0) for place in range(num_problems)]

    def turn(self) -> Turn | None:
        """What to do next; None = the budget, or max_samples of every problem, is reached.

        Raises:
          InputError: the budget is spent before every problem has a completion.
        """
        heap = self._heap
        while heap and not self._holds(heap[0]):
            heapq.heappop(heap)
        if heap and len(self._under_way) < self._budget.batch:
            place = heap[0][2]
            index = self._launched[place]
            cost, there = self._earlier.get((place, index), (0, False))
            reserve = self._most if there else self._most + cost
            # What is there costs nothing more, so that a run goes on as if it had not been cut off.
            others = self._reserved + (0 if there else self._held - cost)
            if self.spent + others + reserve <= self._budget.tokens:
                heapq.heappop(heap)
                self._held -= cost
                self._reserved += reserve
                self._launched[place] += 1
                self._under_way.append((place, index, reserve))
                self._wait(place)
                return Turn(place, index, launch=True)
        if self._under_way:
            return Turn(*self._under_way[0][:2], launch=False)
        if heap and not heap[0][1]:
            raise InputError(self._too_small())
        return None

    def add(self, gain: float | None, tokens: float | int) -> None:
        """Tells what came of the completion looked at.

        Args:
          gain: of one more, `Policy.gain`; None = the problem has failed and draws no more.
          tokens: what it took.
        """
        place, _, reserve = self._under_way.popleft()
        self._reserved -= reserve
        self.spent += tokens
        self._budget.on_spent(self.spent)
        if gain is None:
            self._launched[place] = self._max_samples
        else:
            self._seen[place] += 1
            self._gain[place] = gain if gain > 0 else 0.0  # NaN neither
        self._wait(place)

    def _wait(self, place: int) -> None:
        seen, launched = self._seen[place], self._launched[place]
        if launched < min(2 * seen, self._max_samples) or (launched == seen < self._max_samples):
            heapq.heappush(
                self._heap, (-self._gain[place] * seen / launched, launched, place, seen)
            )

    def _holds(self, entry: tuple[float, int, int, int]) -> bool:
        _, launched, place, seen = entry
        return launched == self._launched[place] and seen == self._seen[place]

    def _too_small(self) -> str:
        count, seen = len(self._seen), sum(self._seen)
        each = (self.spent / seen) if seen else self._most
        return (
            f"budget: {self._budget.tokens:,.0f} tokens are not enough for one completion of each "
            f"of {count} problems, which take about {each * count:,.0f}, and one of them up to "
            f"{self._most:,.0f}"
        )


def check_budget(policy: Policy, pool: Pool | None = None) -> None:
    """Raises an `InputError` if a policy, or a pool, cannot share a budget over problems."""
    name = type(policy).__name__
    if policy.kind != "parallel":
        raise InputError(
            f"budget: {name} asks in rounds, each with the answer before in view, and cannot be "
            "left and gone back to; leave the budget out"
        )
    if policy.couples_problems:
        raise InputError(f"budget: {name} couples the problems of a run by itself; use another")
    if type(policy).gain is Policy.gain:
        raise InputError(
            f"budget: {name} does not say what one more completion gains (Policy.gain); use "
            "calibrated_vote, or another that does"
        )
    if pool is not None and not pool.has_tokens:
        raise PoolError(
            "pool: it lacks the length of some completions, which a budget in tokens counts"
        )


class Allocation(NamedTuple):
    """How a budget was spent, in K orders of each problem's completions."""

    result: ReplayResult  # fields [K, P]
    spent: np.ndarray  # int64 [K], tokens
    price: np.ndarray  # floating [K], as `price` says


def price(gain: Any, num_samples: Any, max_samples: int) -> np.ndarray:
    """What the next completion would have gained for each token: the price that a run came to.

    Args:
      gain: [..., P] `Policy.gain` at the stop.
      num_samples: [..., P].
      max_samples: a problem that has reached it draws no more at any price.

    Returns:
      [...] the highest gain; 0 if no problem could draw more.
    """
    more = np.asarray(num_samples) < max_samples
    gains = np.where(more, np.nan_to_num(gain, nan=0.0), 0.0)
    return np.asarray(np.max(gains, axis=-1, initial=0.0))


class Path(NamedTuple):
    """What a policy says after each completion, [K, P, N]."""

    selected: Array
    info: Info
    gain: Array


@jax.jit
def paths(policy: Policy, prior: Any, observations: Observation) -> Path:
    """What a policy says after each completion, whether or not it would have stopped before.

    Args:
      policy: as `in_launch_order` gives it, and so are the others.
      prior: likewise.
      observations: likewise.
    """

    def step(state, observation):
        state = policy.observe(state, observation)
        path = Path(policy.select(state), policy.info(state), policy.gain(state))
        return state, jax.tree.map(jnp.asarray, path)

    def one(prior, observations):
        return jax.lax.scan(step, policy.init(prior), observations)[1]

    return over_problems_and_orders(one, prior, observations)


def allocate(
    pool: Pool,
    policy: Policy,
    budget: Budget | float | int,
    *,
    key: Array | None = None,
    num_permutations: int = 0,
    prior: Any = None,
) -> Allocation:
    """Spends one budget over all problems of a pool, by `Queue`, where completions gain most.

    The policy says what a completion gains and which one to return; its own rule to stop is not
    asked, only its max_samples. A live run with the same budget, batch and most, over the same
    completions in the same order, draws the same.

    Args:
      pool: P problems of at least `policy.max_samples` completions, of known lengths.
      policy: one setting of a rule that has `gain`.
      budget: in tokens, or a `Budget`.
      key: as for `replay`, and so are the others.
      num_permutations: likewise.
      prior: likewise.

    Raises:
      InputError: the policy has no `gain`, is sequential or couples problems; the budget is spent
        before every problem has a completion.
      PoolError: unknown lengths, or as `replay`.
      ValueError: as `replay`, or a stack of settings.
    """
    check_budget(policy, pool)
    if num_settings(policy) is not None:
        raise ValueError("policy: a budget is spent by one setting, found a stack of them")
    if not isinstance(budget, Budget):
        budget = Budget(budget)
    if budget.most is None:
        budget = dataclasses.replace(budget, most=int(pool.tokens[pool.mask].max()))
    asked = in_launch_order(pool, policy, key, num_permutations, prior)
    path = jax.tree.map(np.asarray, paths(*asked[:3]))
    tokens = np.asarray(asked.observations.tokens)
    counts, spent = [], []
    for gains, costs in zip(path.gain.tolist(), tokens.tolist(), strict=True):
        queue = Queue(pool.num_problems, int(policy.max_samples), budget)
        drawn = np.zeros(pool.num_problems, np.int32)
        while (turn := queue.turn()) is not None:
            if not turn.launch:
                drawn[turn.place] += 1
                queue.add(gains[turn.place][turn.index], costs[turn.place][turn.index])
        counts.append(drawn)
        spent.append(queue.spent)
    count = np.stack(counts)
    stop = jax.tree.map(
        lambda each: np.take_along_axis(each, count[..., None] - 1, axis=-1)[..., 0], path
    )
    reason = np.where(count < policy.max_samples, StopReason.BUDGET_SPENT, StopReason.MAX_SAMPLES)
    info = stop.info._replace(stop_reason=reason.astype(np.int32))
    result = collect(pool, asked, (count, stop.selected, info))
    return Allocation(result, np.array(spent), price(stop.gain, count, policy.max_samples))
