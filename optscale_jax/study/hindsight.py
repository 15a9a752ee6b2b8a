"""The hindsight oracle: it knows which completions are right, and is the limit of every rule.

It is another than the oracle that knows each problem's law of scores (`known_law`), which is a
stopping rule still and can be beaten.
"""

import dataclasses

import jax
import numpy as np

from optscale_jax.policies import StopReason
from optscale_jax.pool import Pool
from optscale_jax.pool_directory import AnyPool
from optscale_jax.replay import block_key, blocks_to_replay, permutations
from optscale_jax.study.blocks import Gathering
from optscale_jax.study.outcomes import Method, Outcomes

__all__ = ["HINDSIGHT", "with_hindsight"]

HINDSIGHT = "hindsight"


def with_hindsight(outcomes: Outcomes, pool: AnyPool, seed: int) -> Outcomes:
    """Outcomes with the hindsight oracle as their last method, for each N that there is.

    It stops at the first right completion, and where none of the first N is right after one: a rule
    has to draw one to return anything. No rule of that N is right more often, and none that is as
    often right spends less.

    Args:
        outcomes: of the pool's problems.
        pool: the pool that they are of.
        seed: that of the replay's orders, which it then shares; with another one it has orders of
            its own.

    Returns:
        The outcomes as they are if the pool does not say what is right, or is sequential.
    """
    if outcomes.value_kind == "score" or pool.kind == "sequential":
        return outcomes
    caps = np.array(outcomes.caps)
    count = 0 if outcomes.stored_order else outcomes.num_permutations
    gathering = Gathering(pool.num_problems, in_groups=outcomes.num_grouped is not None)
    for block in blocks_to_replay(pool):
        if block.pool.correct is None:
            return outcomes
        orders = permutations(block.pool, block_key(jax.random.key(seed), block.index), count)
        gathering.add(block, [_method(block.pool, orders, caps)])
    return dataclasses.replace(outcomes, methods=[*outcomes.methods, *gathering.methods()])


def _method(pool: Pool, orders: np.ndarray, caps: np.ndarray) -> Method:
    """The oracle with each N [S] in orders [K, P, N] of a pool that says what is right."""
    assert pool.correct is not None
    problems = np.arange(pool.num_problems)[:, None]
    right = (pool.correct & pool.eligible)[problems, orders]
    tokens = pool.tokens[problems, orders]
    unknown = np.cumsum(tokens < 0, axis=-1) > 0
    spent = np.where(unknown, -1, np.cumsum(np.maximum(tokens, 0), axis=-1))
    first, some = right.argmax(-1), right.any(-1)
    correct = some & (first < caps[:, None, None])
    last = np.where(correct, first, 0)
    order, row = np.arange(len(orders))[:, None], problems[:, 0]
    column = orders[order, row, last]
    eligible = pool.eligible[row, column]
    scores = np.full(pool.mask.shape, np.nan) if pool.scores is None else pool.scores
    settings = [{"N": cap} for cap in caps.tolist()]
    return Method(
        name=HINDSIGHT,
        label="hindsight oracle",
        settings=settings,
        words=[{"N": f"N={setting['N']}"} for setting in settings],
        caps=caps,
        num_samples=last.astype(np.int32) + 1,
        tokens=spent[order, row, last].astype(np.int32),
        score=np.where(eligible, scores[row, column], np.nan).astype(np.float32),
        correct=correct,
        selected_index=np.where(eligible, column, -1).astype(np.int32),
        stop_reason=np.full(last.shape, int(StopReason.SATISFIED), np.int32),
        varying=["N"],
        oracle=True,
        reads_scores=False,
    )
