"""Runs policies over a pool of recorded completions, vectorised over everything.

The same pure functions that decide live run here under `lax.scan` over the completions of one
problem, vmapped over problems, permutations and settings. A policy's state goes on observing after
its stop (what it was at the stop is kept), so whatever does not depend on the settings, above all
the fit of the law of scores, is computed once for all of them.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as Spec

from optscale_jax.errors import InputError, PoolError
from optscale_jax.policies import Info, Observation, Policy, num_settings
from optscale_jax.policies.prior import of_each_problem
from optscale_jax.policies.stacking import as_arrays, axes
from optscale_jax.pool import BLOCK, Pool
from optscale_jax.pool_directory import AnyPool
from optscale_jax.typing import Array

__all__ = [
    "Block",
    "InLaunchOrder",
    "Refusal",
    "ReplayResult",
    "block_key",
    "blocks_to_replay",
    "collect",
    "compilations",
    "in_launch_order",
    "over_problems_and_orders",
    "permutations",
    "refusal",
    "replay",
]


class ReplayResult(NamedTuple):
    """What a policy did, NumPy arrays of shape [..., K, P]: settings, permutations, problems."""

    num_samples: np.ndarray  # int32, completions drawn
    tokens: np.ndarray  # int32, tokens of all completions drawn; -1 where one of them is unknown
    selected_index: np.ndarray  # int32, column of the completion returned; -1 = none is eligible
    score: np.ndarray  # float32, its score; NaN if there is none
    correct: np.ndarray | None  # bool, False if there is none; None if the pool does not know
    required: np.ndarray  # int32, samples that the policy wanted in all when it stopped
    params: dict[str, np.ndarray]  # the fitted law's at the stop; {} for policies that fit none
    stop_reason: np.ndarray  # int32 `StopReason`
    # int32, how many of those drawn a search over all problems drew (see `Policy.plan`): the first
    # ones, which `num_samples` counts; and their tokens, which `tokens` counts; -1 = unknown.
    presampled: np.ndarray
    presampled_tokens: np.ndarray
    # floating, P(the completion returned is right) as the policy claims it; NaN if it claims none
    confidence: np.ndarray


class _Stop(NamedTuple):
    """When a policy first asked for no more, and what it said then, each [..., K, P]."""

    count: Array
    selected: Array
    info: Info


def permutations(pool: Pool, key: Array | None, num_permutations: int) -> np.ndarray:
    """Orders in which to replay each problem's completions.

    Args:
      pool: P problems of N completions.
      key: a JAX random key; may be None if num_permutations is 0.
      num_permutations: K >= 1 independent uniform orders for each problem, or 0 for the stored one.

    Returns:
      int32 [max(K, 1), P, N], columns of the pool in launch order; columns that the mask excludes
      come last. Those of more than `BLOCK` problems are drawn block by block, from keys of their
      own (`blocks_to_replay`).

    Raises:
      ValueError: num_permutations < 0, or a key is missing.
    """
    if num_permutations < 0:
        raise ValueError(f"num_permutations must be >= 0, found {num_permutations}")
    shape = (max(num_permutations, 1), pool.num_problems, pool.num_samples)
    if num_permutations == 0:
        return np.broadcast_to(np.arange(pool.num_samples, dtype=np.int32), shape)
    if key is None:
        raise ValueError("replay in random order needs a key, such as jax.random.key(0)")
    if pool.num_problems > BLOCK:
        parts = [
            permutations(block.pool, block_key(key, block.index), num_permutations)
            for block in blocks_to_replay(pool)
        ]
        return np.concatenate(parts, axis=1)[:, : pool.num_problems]
    # Uniform draws are in [0, 1): 2 sorts after all of them.
    draws = np.where(pool.mask, np.asarray(jax.random.uniform(key, shape)), 2.0)
    return np.argsort(draws, axis=-1, kind="stable").astype(np.int32)


class Block(NamedTuple):
    """Some problems of a pool, which are replayed at once."""

    index: int  # of the block
    first: int  # place of its first problem in the whole pool
    num_problems: int
    pool: Pool  # the problems; of a pool of several blocks the last is filled up to their size

    @property
    def rows(self) -> np.ndarray:
        """Place in the whole pool of each problem of `pool`."""
        return self.first + np.minimum(np.arange(self.pool.num_problems), self.num_problems - 1)


def blocks_to_replay(pool: AnyPool) -> Iterator[Block]:
    """A pool in blocks of `BLOCK` problems, each replayed with the key that `block_key` gives.

    What a replay of the whole pool gives for a problem a replay of its block gives too, unless the
    policy looks at all problems first.
    """
    for index, part in enumerate(pool.blocks(BLOCK)):
        first = index * BLOCK
        whole = part.filled(BLOCK) if index else part
        yield Block(index, first, part.num_problems, whole)


def block_key(key: Array, index: int) -> Array:
    """The key of a block's orders."""
    return jax.random.fold_in(key, index) if index else key


def _one(policy: Policy, prior: Any, observations: Observation) -> _Stop:
    """One problem, one order: the state of things when the policy first asked for no more."""

    def at(state, count):
        return _Stop(
            jnp.asarray(count, jnp.int32),
            jnp.asarray(policy.select(state), jnp.int32),
            jax.tree.map(jnp.asarray, policy.info(state)),
        )

    def note(state, count, stopped, stop):
        now = ~stopped & (policy.request(state).more <= 0)
        stop = jax.tree.map(lambda new, old: jnp.where(now, new, old), at(state, count), stop)
        return stopped | now, stop

    def step(carry, observation):
        state, stopped, stop = carry
        stopped, stop = note(state, observation.index, stopped, stop)
        return (policy.observe(state, observation), stopped, stop), None

    state = policy.init(prior)
    start = (state, jnp.zeros((), bool), at(state, 0))
    (state, stopped, stop), _ = jax.lax.scan(step, start, observations)
    # At its cap a policy asks for no more, so this one always stops.
    return note(state, observations.index.shape[0], stopped, stop)[1]


_PROBLEMS = "problems"  # the axis of the mesh of devices

# Launch orders are the same for all.
_OVER: Any = Observation(*cast(Any, (0, 0, 0, None, 0)))


def over_problems_and_orders(one: Callable[..., Any], prior: Any, observations: Observation) -> Any:
    """Maps a function of a problem's prior and observations [N] over those of [K, P, N]."""
    over_problems = jax.vmap(one, in_axes=(0, _OVER))
    return jax.vmap(over_problems, in_axes=(None, _OVER))(prior, observations)


@functools.partial(jax.jit, static_argnames="mesh")
def _run(policy: Policy, prior: Any, observations: Observation, mesh: Mesh | None = None) -> _Stop:
    """[K, P, N] in launch order; the policy single or stacked.

    Each device of the mesh takes its share of the problems, which must divide by their number.
    """
    if mesh is not None:
        each, settings = Spec(None, _PROBLEMS), [None] * (num_settings(policy) is not None)
        return jax.shard_map(
            _run,
            mesh=mesh,
            in_specs=(
                Spec(),
                Spec(_PROBLEMS),
                Observation(*cast(Any, (each, each, each, Spec(), each))),
            ),
            out_specs=Spec(*settings, None, _PROBLEMS),
            check_vma=False,  # a policy's constants are the same on every device
        )(policy, prior, observations)

    def one_setting(policy):
        one_order = functools.partial(_one, policy)
        if not policy.couples_problems:
            return over_problems_and_orders(one_order, prior, observations)

        def one_permutation(observations):
            launched = jnp.broadcast_to(observations.index, observations.score.shape)
            given = policy.plan(observations._replace(index=launched))
            return jax.vmap(one_order, in_axes=(0, _OVER))(given, observations)

        return jax.vmap(one_permutation, in_axes=(_OVER,))(observations)

    if num_settings(policy) is None:
        return one_setting(policy)
    return jax.vmap(one_setting, in_axes=(axes(policy),))(policy)


class Refusal(NamedTuple):
    """Why a policy cannot be replayed over a pool."""

    reason: str  # what the pool lacks
    remedy: str = ""  # what to do; "" where there is nothing


def refusal(pool: AnyPool, policy: Policy, num_permutations: int) -> Refusal | None:
    """Why a policy cannot be replayed over a pool, in K permutations, or None if it can."""
    if policy.kind != pool.kind:
        if pool.kind == "sequential":
            return Refusal(
                "it is sequential (each completion saw the answer before), but this policy is for "
                "independent draws",
                "use mr_thinking, or a parallel pool",
            )
        return Refusal(
            "its completions are independent draws, but this policy needs a sequential pool, where "
            "each completion saw the answer before"
        )
    if pool.kind == "sequential" and num_permutations > 0:
        return Refusal(
            "the rounds of a sequential pool happened in one order only",
            "replay them with 0 permutations",
        )
    try:
        policy.check_origin(pool.origin)
    except InputError as error:
        return Refusal(str(error))
    if policy.uses_scores and not pool.has_scores:
        return Refusal(
            "it has no verifier scores, which this policy needs (where another of its columns can "
            "stand for them, --scores names it)"
        )
    if policy.uses_answers and not pool.has_answers:
        return Refusal("it has no answers to compare, which this policy's votes need")
    if policy.rule_uses_tokens and not pool.has_tokens:
        return Refusal("it lacks the length of some completions, which this policy needs")
    for name in policy.signals:
        if name not in pool.signal_names:
            return Refusal(
                f"it has no signal {name!r}, which this policy reads (it has "
                f"{', '.join(pool.signal_names) or 'none'})"
            )
    deepest = int(np.max(policy.max_samples))
    short = pool.samples_per_problem < deepest
    if short.any():
        first = int(np.argmax(short))
        return Refusal(
            f"problem {str(pool.problem_ids[first])!r} has {pool.samples_per_problem[first]} "
            f"completions, fewer than the policy's maximum of {deepest}",
            "lower max_samples or use a deeper pool",
        )
    return None


class InLaunchOrder(NamedTuple):
    """What a replay computes with."""

    policy: Policy  # of arrays, without a prior
    prior: Any  # fields [P, ...], or None
    observations: Observation  # [K, P, N], index [N]
    orders: np.ndarray  # int32 [K, P, N], as `permutations` gives


def _on_every_device(policy: Policy, prior: Any, observations: Observation) -> _Stop:
    """`_run`, the problems shared out over the devices of this process.

    A rule that looks at all problems first runs on one device, and so does all that is asked for
    within `jax.default_device`.
    """
    devices, named = jax.local_devices(), cast(Any, jax.config).jax_default_device
    if len(devices) == 1 or policy.couples_problems or named is not None:
        return _run(policy, prior, observations)
    num_problems = observations.score.shape[1]
    rows = np.minimum(np.arange(-(-num_problems // len(devices)) * len(devices)), num_problems - 1)
    prior = jax.tree.map(lambda field: field[rows], prior)
    filled = jax.tree.map(lambda field: field[:, rows], observations._replace(index=None))
    observations = filled._replace(index=observations.index)
    stop = _run(policy, prior, observations, Mesh(np.array(devices), (_PROBLEMS,)))
    return jax.tree.map(lambda field: np.asarray(field)[..., :num_problems], stop)


def collect(pool: Pool, asked: InLaunchOrder, stop: Any) -> ReplayResult:
    """Reads off the pool what the policy returned and spent, of a `_Stop` of [..., K, P]."""
    count, selected, info = stop
    orders, tokens = asked.orders, np.asarray(asked.observations.tokens)
    permutation = np.arange(orders.shape[0])[:, None]
    problem = np.arange(orders.shape[1])[None, :]
    none = selected < 0
    column = orders[permutation, problem, np.maximum(selected, 0)]
    spent = np.cumsum(np.maximum(tokens, 0), axis=-1, dtype=np.int64)
    unknown = np.cumsum(tokens < 0, axis=-1)

    def tokens_of_first(count):
        last = np.maximum(count - 1, 0)
        missing, total = (
            np.where(count > 0, prefix[permutation, problem, last], 0)
            for prefix in (unknown, spent)
        )
        return np.where(missing > 0, -1, total).astype(np.int32)

    def returned(values, if_none):
        return np.where(none, if_none, values[problem, column])

    return ReplayResult(
        num_samples=count,
        tokens=tokens_of_first(count),
        selected_index=np.where(none, -1, column).astype(np.int32),
        score=(
            np.full(count.shape, np.nan, np.float32)
            if pool.scores is None
            else returned(pool.scores, np.float32(np.nan))
        ),
        correct=None if pool.correct is None else returned(pool.correct, False),
        required=info.required,
        params=info.params,
        stop_reason=info.stop_reason,
        presampled=info.presampled,
        presampled_tokens=tokens_of_first(info.presampled),
        confidence=info.confidence,
    )


def replay(
    pool: Pool,
    policy: Policy,
    *,
    key: Array | None = None,
    num_permutations: int = 0,
    prior: Any = None,
) -> ReplayResult:
    """Replays a policy, or a stack of its settings, over a pool.

    Compiles once for policies of equal structure (the same rule, choices and room for samples) over
    pools of equal shape: a loop over values of s_min compiles at its first turn only. A stack
    (`policies.stack`) takes one call and fits each prefix of the scores once for all settings. The
    problems are shared out over the local devices, with the same results as on one (on some
    versions of JAX but for the last bits of fitted numbers).

    Args:
      pool: P problems, of at least `policy.max_samples` completions each.
      policy: the rule; or S settings of it, every number with a leading axis [S].
      key: JAX random key for the orders; the same key gives every policy the same orders, so that
        comparisons are paired.
      num_permutations: K random orders for each problem; 0 = the stored order, once.
      prior: a prior for each problem, its fields with an axis [P] in front, or one for all;
        default `policy.prior`.

    Returns:
      `ReplayResult`, fields of shape [K, P], or [S, K, P] for a stack; K = 1 for the stored order.
      A tie in score goes to the completion drawn first; an empty or answerless completion is never
      returned.

    Raises:
      PoolError: the pool lacks scores, answers or lengths that the policy needs, has too few
        completions for its cap, or is sequential and the policy parallel or the reverse.
      ValueError: a field of the policy is no number, a stack's axes do not match, a prior of a
        wrong shape, a missing key.
    """
    asked = in_launch_order(pool, policy, key, num_permutations, prior)
    stop = _on_every_device(*asked[:3])
    return collect(pool, asked, jax.tree.map(np.asarray, stop))


def in_launch_order(
    pool: Pool, policy: Policy, key: Array | None, num_permutations: int, prior: Any
) -> InLaunchOrder:
    """Checks and prepares what `replay` takes; raises as it says."""
    if not isinstance(policy, Policy):
        raise ValueError(f"policy must be a policies.Policy, found {policy!r}")
    num_settings(policy)
    if refused := refusal(pool, policy, num_permutations):
        raise PoolError(f"pool: {'; '.join(part for part in refused if part)}")
    given = policy.prior if prior is None else prior
    policy = as_arrays(dataclasses.replace(policy, prior=None))
    orders = permutations(pool, key, num_permutations)[..., : policy.slots]
    problems = np.arange(pool.num_problems)[:, None]
    dtype = jnp.result_type(float)
    scores = np.zeros(pool.mask.shape, np.float32) if pool.scores is None else pool.scores
    answers = np.zeros(pool.mask.shape, np.int32) if pool.answers is None else pool.answers
    signals = [pool.signals[name][problems, orders] for name in policy.signals]
    observations = Observation(
        jnp.asarray(scores[problems, orders], dtype),
        jnp.asarray(answers[problems, orders]),
        jnp.asarray(pool.tokens[problems, orders]),
        jnp.arange(orders.shape[-1], dtype=jnp.int32),
        jnp.asarray(np.stack(signals, axis=-1), dtype) if signals else None,
    )
    prior = jax.tree.map(jnp.asarray, of_each_problem(given, pool.num_problems))
    return InLaunchOrder(policy, prior, observations, orders)


def compilations() -> int:
    """How many programs replay has compiled in this process: one for each structure and shape."""
    return cast(Any, _run)._cache_size()
