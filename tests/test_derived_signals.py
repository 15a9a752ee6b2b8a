"""Signals beside the score: a rule reads the same numbers in replay, in a plain loop and live."""

import itertools

import jax
import numpy as np
import pytest

from optscale_jax import Pool, PoolError, replay
from optscale_jax.policies import Observation, Policy, StopReason, run, stack, until
from optscale_jax.replay import permutations
from optscale_jax.typing import Number

KEY = jax.random.key(11)
SHAPE = (6, 8)


class Doubtful(Policy):
    """Draws until the least steps of finished completions add up to `enough`."""

    enough: Number

    @property
    def signals(self):
        return ("min_step", "finished")

    def start(self, prior):
        del prior
        return jax.numpy.zeros((), jax.numpy.result_type(float))

    def update(self, state, observation):
        least, finished = observation.signals
        return state.own + jax.numpy.where(jax.numpy.isnan(least), 0, least * finished)

    def rule(self, state):
        return until(state.own >= self.enough)


@pytest.fixture(scope="module")
def pool():
    rng = np.random.default_rng(5)
    least = rng.random(SHAPE)
    least[rng.random(SHAPE) < 0.2] = np.nan
    return Pool.from_arrays(
        scores=rng.random(SHAPE),
        answers=rng.integers(0, 3, SHAPE),
        gold=np.zeros(SHAPE[0], int),
        tokens=rng.integers(1, 50, SHAPE),
        signals={"finished": rng.random(SHAPE) < 0.8, "min_step": least, "other": least},
    )


def test_replay_of_a_rule_that_reads_signals_is_the_plain_loop(pool):
    settings = [Doubtful(max_samples=cap, enough=enough) for cap, enough in ((8, 1.0), (6, 2.2))]
    result = replay(pool, stack(settings), key=KEY, num_permutations=2)
    orders = permutations(pool, KEY, 2)
    for s, k, p in itertools.product(range(2), range(2), range(SHAPE[0])):
        seen = [
            Observation(
                pool.scores[p, j],
                pool.answers[p, j],
                pool.tokens[p, j],
                np.int32(i),
                np.array([pool.signals["min_step"][p, j], pool.signals["finished"][p, j]]),
            )
            for i, j in enumerate(orders[k, p])
        ]
        want = run(settings[s], seen)
        assert result.num_samples[s, k, p] == want.num_samples
        assert result.selected_index[s, k, p] == orders[k, p, want.selected_index]
        # And the plain loop is the sum that the rule says it is.
        parts = [0.0 if np.isnan(o.signals[0]) else np.prod(o.signals) for o in seen]
        enough = np.flatnonzero(np.cumsum(parts) >= settings[s].enough)
        cap = int(settings[s].max_samples)
        assert want.num_samples == min(enough[0] + 1 if enough.size else cap, cap)
    assert {StopReason.SATISFIED, StopReason.MAX_SAMPLES} == set(result.stop_reason.flat)


def test_a_pool_without_a_signal_that_a_rule_reads_is_refused_by_name(pool):
    without = Pool.from_arrays(scores=pool.scores, signals={"finished": pool.scores})
    with pytest.raises(PoolError, match=r"no signal 'min_step', .* \(it has finished\)"):
        replay(without, Doubtful(max_samples=4, enough=1.0))
