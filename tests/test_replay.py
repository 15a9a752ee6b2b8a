"""Replay decides as a plain Python loop over the same policy does, and as the paper's rule says."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optscale_jax import (
    Pool,
    PoolError,
    Prior,
    ScoreStats,
    TruncatedNormal,
    fit_map,
    fit_mle,
    replay,
    required_samples,
    synthetic_pool,
)
from optscale_jax.policies import (
    PAPER_ALPHA,
    PAPER_S_MIN,
    Observation,
    Policy,
    StopReason,
    best_of_n,
    capped,
    first_hit,
    min_samples_for,
    optscale,
    run,
    stack,
    until,
)
from optscale_jax.policies.stacking import as_arrays
from optscale_jax.replay import _run, compilations, permutations
from tests import plainly
from tests.replayed import results

ROOT = Path(__file__).resolve().parents[1]

KEY = jax.random.key(7)
PROBLEMS, SAMPLES = 5, 12


@pytest.fixture(scope="module")
def pool():
    """Small, with everything that can go wrong in a completion: ties, no answer, empty, unknown."""
    rng = np.random.default_rng(3)
    scores = np.round(rng.beta(6, 2, (PROBLEMS, SAMPLES)), 1).astype(np.float32)
    scores[3] = rng.uniform(0.93, 0.99, SAMPLES)
    answers = rng.integers(-1, 3, scores.shape)
    answers[4] = -1  # nothing to return
    tokens = rng.integers(0, 50, scores.shape)
    tokens[1, 4] = -1
    return Pool.from_arrays(
        scores=scores, answers=answers, gold=np.zeros(PROBLEMS, int), tokens=tokens
    )


EACH = Prior(
    np.linspace(0.5, 0.9, PROBLEMS), np.linspace(0.1, 0.3, PROBLEMS), np.full(PROBLEMS, 0.2), 0.05
)
POLICIES = {
    "best of 5": best_of_n(5),
    "first hit": first_hit(0.9, SAMPLES),
    "every sample": optscale(0.95, 0.8, SAMPLES, 3),
    "once": optscale(0.95, 0.8, SAMPLES, 3, decide="once"),
    "prior for each": optscale(0.9, 0.9, SAMPLES, 1, prior=EACH),
    "stop at s_min": optscale(0.9, 0.95, SAMPLES, 1, stop_at_s_min=True),
}


def prior_of(policy, problem):
    if policy.prior is None:
        return None
    return Prior(
        *(
            np.broadcast_to(getattr(policy.prior, name), (PROBLEMS,))[problem]
            for name in ("loc", "scale", "loc_sd", "scale_sd")
        )
    )


ORDERS = 2


def replayed(name, pool):
    """A policy of the table over `ORDERS` orders: one compilation, whoever asks."""
    return replay(pool, POLICIES[name], key=KEY, num_permutations=ORDERS)


@pytest.fixture(scope="module")
def ordered_scores(pool):
    """[K, P, N] scores in the order in which `replayed` draws them."""
    return pool.scores[np.arange(PROBLEMS)[:, None], permutations(pool, KEY, ORDERS)]


def test_the_exits_that_optscale_lacks_work_together(pool):
    """The bound from the third score on, a score of s_min, the cap: whichever is first."""
    orders = {"key": KEY, "num_permutations": 9}
    s_min = (0.9, 0.98)
    bound, exits = (
        replay(
            pool, stack([optscale(s, 0.95, SAMPLES, 3, stop_at_s_min=e) for s in s_min]), **orders
        )
        for e in (False, True)
    )
    hit = replay(pool, stack([first_hit(s, SAMPLES) for s in s_min]), **orders)
    first = np.minimum(bound.num_samples, hit.num_samples)
    np.testing.assert_array_equal(exits.num_samples, first)
    reached = hit.stop_reason == StopReason.SCORE_REACHED
    wanted = np.where(reached & (hit.num_samples == first), hit.stop_reason, bound.stop_reason)
    np.testing.assert_array_equal(exits.stop_reason, wanted)
    assert len(np.unique(exits.stop_reason)) == 3


@pytest.mark.parametrize(
    ("name", "num_permutations"), [*((name, ORDERS) for name in POLICIES), ("first hit", 0)]
)
def test_replay_is_the_plain_loop(name, num_permutations, pool):
    policy = POLICIES[name]
    result = replay(pool, policy, key=KEY, num_permutations=num_permutations)
    orders = permutations(pool, KEY, num_permutations)
    assert result.num_samples.shape == (max(num_permutations, 1), PROBLEMS)
    for k, p in itertools.product(range(len(orders)), range(PROBLEMS)):
        order = orders[k, p]
        seen = [
            Observation(pool.scores[p, j], pool.answers[p, j], pool.tokens[p, j], np.int32(i))
            for i, j in enumerate(order)
        ]
        want = run(policy, seen, prior=prior_of(policy, p))
        assert result.num_samples[k, p] == want.num_samples
        chosen = -1 if want.selected_index < 0 else order[want.selected_index]
        assert result.selected_index[k, p] == chosen
        assert result.correct[k, p] == (chosen >= 0 and pool.correct[p, chosen])
        spent = pool.tokens[p, order[: want.num_samples]]
        assert result.tokens[k, p] == (-1 if (spent < 0).any() else spent.sum())
        assert result.stop_reason[k, p] == want.info.stop_reason != StopReason.RUNNING
        assert result.required[k, p] == want.info.required
        assert result.params.keys() == want.info.params.keys()
        for parameter, values in result.params.items():
            np.testing.assert_allclose(values[k, p], want.info.params[parameter], rtol=1e-4)


def test_nothing_eligible_wins_nothing(pool):
    result = replay(pool, best_of_n(SAMPLES))
    assert result.selected_index[0, 4] == -1
    assert not result.correct[0, 4]
    assert np.isnan(result.score[0, 4])


def test_best_of_n_takes_the_first_of_the_best_eligible(pool):
    result = replay(pool, best_of_n(SAMPLES))
    for p in range(4):
        masked = np.where(pool.eligible[p], pool.scores[p], -1)
        assert result.selected_index[0, p] == np.argmax(masked)


@pytest.mark.parametrize(
    ("name", "s_min", "alpha", "least"),
    [("every sample", 0.95, 0.8, 3), ("prior for each", 0.9, 0.9, 1)],
)
def test_the_rule_is_the_papers(name, s_min, alpha, least, pool, ordered_scores):
    """Every sample: the first n at which the fit of the first n scores asks for no more than n."""
    result = replayed(name, pool)
    counts = np.arange(1, SAMPLES + 1)
    seen = np.arange(SAMPLES) < counts[:, None]
    stats = ScoreStats.from_scores(ordered_scores[:, :, None], seen)
    if name == "prior for each":
        params, _ = fit_map(stats, Prior(*(np.reshape(v, (-1, 1)) for v in vars(EACH).values())))
    else:
        params, _ = fit_mle(stats)
    wanted = np.asarray(required_samples(TruncatedNormal(*params), s_min, alpha, SAMPLES))
    enough = (wanted <= counts) & (counts >= least)
    stop = counts[enough.argmax(-1)]
    assert len(np.unique(stop)) > 1  # not all stop at the same place
    np.testing.assert_array_equal(result.num_samples, stop)


def test_once_looks_once(pool, ordered_scores):
    result = replayed("once", pool)
    params, _ = fit_mle(ScoreStats.from_scores(ordered_scores[..., :3]))
    wanted = np.asarray(required_samples(TruncatedNormal(*params), 0.95, 0.8, SAMPLES))
    assert len(np.unique(wanted)) > 1
    np.testing.assert_array_equal(result.num_samples, np.maximum(wanted, 3))
    np.testing.assert_array_equal(result.required, wanted)


def test_one_score_is_judged_by_the_start(pool):
    start = int(required_samples(TruncatedNormal(0.8, 0.2), 0.5, 0.5, SAMPLES))
    assert start == 1
    result = replay(pool, optscale(0.5, 0.5, SAMPLES, 1), key=KEY, num_permutations=ORDERS)
    np.testing.assert_array_equal(result.num_samples, 1)


def grid_of(settings):
    return stack([optscale(s_min, alpha, SAMPLES, 3) for s_min, alpha in settings])


def test_a_stack_is_each_of_its_settings(pool):
    settings = [(0.85, 0.99), (0.95, 0.8)]
    grid = replay(pool, grid_of(settings), key=KEY, num_permutations=ORDERS)
    # The second is a policy of the table.
    one = replayed("every sample", pool)
    for name in ("num_samples", "tokens", "selected_index", "correct", "stop_reason"):
        np.testing.assert_array_equal(getattr(grid, name)[1], getattr(one, name), name)
    other = replay(pool, grid_of(settings[::-1]), key=KEY, num_permutations=ORDERS)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[::-1]), grid, other)


def test_a_stack_made_by_hand_may_share_its_numbers(pool):
    orders = {"key": KEY, "num_permutations": 9}  # as above
    want = replay(pool, grid_of([(0.85, 0.8), (0.95, 0.8)]), **orders)
    mapped = jax.vmap(lambda s_min: optscale(s_min, 0.8, SAMPLES, 3))(jnp.array([0.85, 0.95]))
    for policy in (optscale(np.array([0.85, 0.95]), 0.8, SAMPLES, 3), mapped):
        got = replay(pool, policy, **orders)
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_caps_stack_and_each_draws_as_if_made_alone(pool):
    caps = (4, 7, SAMPLES)
    grid = replay(
        pool, stack([optscale(0.95, 0.8, cap, 3) for cap in caps]), key=KEY, num_permutations=2
    )
    for index, cap in enumerate(caps):
        # Which is what the rule made with that cap draws: tests/test_voting_policies.py.
        alone = replay(pool, capped(POLICIES["every sample"], cap), key=KEY, num_permutations=2)
        jax.tree.map(lambda a, b, i=index: np.testing.assert_array_equal(a[i], b), grid, alone)
        assert alone.num_samples.max() <= cap


def test_policies_of_equal_structure_compile_once(pool):
    """The first thing that anybody writes: a loop over values, each a fresh object."""
    before = compilations()
    results = [
        replay(pool, optscale(s_min, 0.9, 9, 2), key=jax.random.key(1), num_permutations=1)
        for s_min in np.linspace(0.4, 0.95, 20)
    ]
    assert compilations() == before + 1
    means = [result.num_samples.mean() for result in results]
    assert means[0] < means[-1]


def test_settings_share_the_fits(pool):
    """The loop of the fit runs over problems and permutations, not over settings too."""
    grid = as_arrays(stack([optscale(0.9, 0.9, SAMPLES, least) for least in range(1, 12)]))
    shape = (3, PROBLEMS, SAMPLES)
    whole = jnp.zeros(shape, int)
    seen = Observation(jnp.zeros(shape), whole, whole, jnp.arange(SAMPLES))
    jaxpr = jax.make_jaxpr(_run.__wrapped__)(grid, None, seen)
    sizes = [
        v.aval.size
        for e in every_equation(jaxpr.jaxpr)
        if e.primitive.name == "exp"
        for v in e.outvars
    ]
    # The quadrature's exponentials are by far the most of all.
    assert np.median(sizes) == 3 * PROBLEMS


def every_equation(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from every_equation(inner)


def test_orders_are_permutations_of_what_there_is():
    mask = np.arange(6) < np.array([6, 3])[:, None]
    pool = Pool.from_arrays(scores=np.full((2, 6), 0.5), mask=mask)
    orders = permutations(pool, KEY, 50)
    assert np.all(np.sort(orders, axis=-1) == np.arange(6))
    assert np.all(orders[:, 1, 3:] == np.arange(3, 6))
    assert len(np.unique(orders[:, 0], axis=0)) > 40  # of 720; 50 draws collide rarely
    # Each place gets each column: five standard errors of a proportion of 50.
    assert abs((orders[:, 0, 0] == 0).mean() - 1 / 6) < 5 * np.sqrt(5 / 36 / 50)


def test_paired_policies_see_the_same_orders(pool):
    deep = replay(pool, best_of_n(SAMPLES), key=KEY, num_permutations=3)
    shallow = replay(pool, best_of_n(3), key=KEY, num_permutations=3)
    rows = permutations(pool, KEY, 3)
    for k, p in itertools.product(range(3), range(4)):
        if shallow.selected_index[k, p] >= 0:
            assert shallow.selected_index[k, p] in rows[k, p, :3]
    assert np.nanmean(deep.score[:, :4]) >= np.nanmean(shallow.score[:, :4])


def test_states_keep_their_shapes(pool):
    observation = Observation(jnp.float32(0.5), jnp.int32(0), jnp.int32(9), jnp.int32(0))
    for name, policy in POLICIES.items():
        state = policy.init(prior_of(policy, 0))
        after = jax.eval_shape(policy.observe, state, observation)
        before = jax.eval_shape(lambda s: s, state)
        assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(
            lambda a: (a.shape, a.dtype), before
        ), name


def test_gain_falls_as_the_best_rises():
    policy = optscale(0.9, 0.9, 8, 3)
    state = policy.init(None)
    for i, score in enumerate((0.5, 0.7, 0.6)):
        assert policy.gain(state) == np.inf  # the law is a guess
        state = policy.observe(state, Observation(*map(jnp.asarray, (score, 0, 10, i))))
    gains = [
        float(policy.gain(state._replace(best=state.best._replace(score=jnp.asarray(best)))))
        for best in (0.7, 0.8, 0.95)
    ]
    assert gains[0] > gains[1] > gains[2] > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: best_of_n(0), "n must be an integer >= 1"),
        (lambda: first_hit(1.2, 4), "s_min must be in"),
        (lambda: optscale(0.9, 1.0, 8, 3), "alpha must be inside"),
        (lambda: optscale(0.9, 0.9, 8, 9), "min_samples must be at most max_samples"),
        # Past the tests' type checker, which would refuse the word first.
        (
            lambda: getattr(optscale, "__wrapped__", optscale)(0.9, 0.9, 8, 3, decide="twice"),
            "decide must be",
        ),
    ],
)
def test_bad_arguments_are_one_clear_line(make, message):
    with pytest.raises(Exception, match=message) as caught:
        make()
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


class Worded(Policy):
    """A rule that forgot to say that its mode is a choice."""

    mode: str = "eager"

    def rule(self, state):
        return until(state.count >= 2)


def test_policies_that_cannot_be_replayed_are_refused_in_one_line(pool):
    uneven = optscale(np.array([0.8, 0.9]), np.array([0.8, 0.9, 0.95]), SAMPLES, 3)
    for policy, message in (
        (Worded(max_samples=3), "its field mode is 'eager', which is no number; declare"),
        (uneven, "its fields have s_min 2, alpha 3"),
        (optscale(np.full((2, 2), 0.9), 0.9, SAMPLES, 3), "s_min has shape"),
        (Policy(max_samples=3), "Policy gives no rule"),
    ):
        with pytest.raises((ValueError, NotImplementedError), match=message) as caught:
            replay(pool, policy)
        assert "\n" not in str(caught.value)
    for others, message in (
        ([], "none given"),
        ([best_of_n(3), first_hit(0.9, 3)], "differs from policies"),
        ([optscale(0.9, 0.9, 8), optscale(0.9, 0.9, 8, decide="once")], "more than numbers"),
        ([optscale(0.9, 0.9, 8), optscale(0.9, 0.9, 8, prior=EACH)], "another prior"),
    ):
        with pytest.raises(ValueError, match=message):
            stack(others)


def test_pools_that_cannot_be_replayed_are_refused(pool):
    with pytest.raises(PoolError, match="12 completions, fewer than the policy's maximum of 13"):
        replay(pool, best_of_n(13))
    with pytest.raises(PoolError, match="no verifier scores"):
        replay(Pool.from_arrays(answers=np.zeros((2, 3), int), gold=[0, 0]), first_hit(0.5, 3))
    with pytest.raises(ValueError, match="needs a key"):
        replay(pool, best_of_n(3), num_permutations=2)
    with pytest.raises(ValueError, match="loc has shape"):
        replay(pool, POLICIES["once"], prior=Prior(np.zeros(3), 0.1))


def test_the_papers_settings_are_the_papers():
    assert len(PAPER_S_MIN) * len(PAPER_ALPHA) == 48
    assert {n: min_samples_for(n) for n in (8, 16, 32, 64)} == {8: 3, 16: 5, 32: 10, 64: 20}
    assert optscale(0.9, 0.9, 32).min_samples == 10
    assert sorted(np.round(1 - np.array(PAPER_ALPHA), 3)) == [0.01, 0.02, 0.035, 0.05, 0.075, 0.1]


def test_optscale_saves_samples_on_a_pool_that_follows_the_model():
    pool = synthetic_pool(jax.random.key(0), num_problems=100, num_samples=32)
    saved = replay(pool, optscale(0.9, 0.9, 32, 5), key=KEY, num_permutations=3)
    whole = replay(pool, best_of_n(32), key=KEY, num_permutations=3)
    assert saved.num_samples.mean() < 0.8 * 32
    assert whole.score.mean() - saved.score.mean() < 0.05


def test_eight_devices_have_the_results_of_one(tmp_path):
    flags = f"--xla_force_host_platform_device_count=8 {plainly.FLAGS}"
    subprocess.run(
        [sys.executable, "-m", "tests.replayed", str(tmp_path / "found.npz")],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        check=True,
        capture_output=True,
    )
    expected = results()
    with np.load(tmp_path / "found.npz") as found:
        assert set(found) == set(expected)
        for name, values in expected.items():
            assert found[name].dtype == values.dtype
            if values.dtype == np.float32:
                # XLA vectorises by the number of problems: the last bits of what is computed may
                # differ. They do for a sum over answers, and on JAX 0.12 for fits.
                np.testing.assert_allclose(found[name], values, rtol=2e-6, err_msg=name)
            else:
                np.testing.assert_array_equal(found[name], values, err_msg=name)
