"""Votes and the rules that count them, against plain Python that counts with Counter."""

import dataclasses
import itertools
from collections import Counter
from fractions import Fraction
from math import comb

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from optscale_jax import (
    Pool,
    PoolError,
    Prior,
    TruncatedNormal,
    replay,
    required_samples,
)
from optscale_jax.policies import (
    Allotment,
    MajorityOfTheBests,
    Observation,
    StopReason,
    Votes,
    adaptive_self_consistency,
    best_of_n,
    capped,
    difficulty_adaptive_self_consistency,
    early_stopping_self_consistency,
    first_hit,
    known_law,
    make_selector,
    mr_thinking,
    optscale,
    run,
    self_consistency,
    stack,
    weighted_self_consistency,
)
from optscale_jax.policies.adaptive_self_consistency import certain_lead, doubt
from optscale_jax.policies.difficulty_adaptive_self_consistency import (
    DifficultyAdaptiveSelfConsistency,
)

N = 12
KEY = jax.random.key(3)


# The rules in plain Python. A row is a list of (answer, tokens, score), in launch order. ----------


def votes_of(row):
    return [
        (i, answer, score)
        for i, (answer, tokens, score) in enumerate(row)
        if answer != -1 and tokens != 0
    ]


def plain_vote(row, weigh=lambda score: 1):
    tally, first = {}, {}
    for i, answer, score in votes_of(row):
        tally[answer] = tally.get(answer, 0) + weigh(score)
        first.setdefault(answer, i)
    return min((first[a] for a in tally if tally[a] == max(tally.values())), default=-1)


def plain_best(row):
    return min(((-score, i) for i, _, score in votes_of(row)), default=(0, -1))[1]


def plain_bests(row):
    """The majority of the bests of sqrt(n)."""
    ranked = sorted(votes_of(row), key=lambda vote: (-vote[2], vote[0]))
    n, tally = len(ranked), Counter()
    for r, (_, answer, _) in enumerate(ranked):
        tally[answer] += ((n - r) / n) ** n**0.5 - ((n - r - 1) / n) ** n**0.5
    most = [a for a in tally if tally[a] > max(tally.values()) - 1e-5]
    answer = next((a for _, a, _ in votes_of(row) if a in most), None)
    return next((i for i, a, _ in ranked if a == answer), -1)


def plain_esc(row, window, cap):
    for start in range(0, cap, window):
        end = min(start + window, cap)
        answers = {a if t != 0 else -1 for a, t, _ in row[start:end]}
        if end - start == window and len(answers) == 1 and answers != {-1}:
            return end
    return cap


def exact_majority(a, b):
    return Fraction(sum(comb(a + b + 1, k) for k in range(a + 1)), 2 ** (a + b + 1))


def plain_certain(row, threshold):
    counts = Counter(answer for _, answer, _ in votes_of(row)).most_common(2)
    a, b = [c for _, c in counts] + [0] * (2 - len(counts))
    return exact_majority(a, b) >= Fraction(str(threshold))


def plain_asc(row, threshold, cap, first=1, step=1):
    looks = range(first, cap, step)
    return next((n for n in looks if plain_certain(row[:n], threshold)), cap)


def plain_dsc(rows, hardness, threshold, cap, window, judge_window, step):
    """Counts, and how many problems the search drew from, over all problems of a run."""
    ranked = sorted(range(len(rows)), key=lambda p: hardness[p])
    left, right, judged = 0, len(rows), set()
    while left < right:
        middle = (left + right) // 2
        members = range(middle - judge_window // 2, middle - judge_window // 2 + judge_window)
        members = [ranked[r] for r in members if 0 <= r < len(rows)]
        judged.update(members)
        if all(plain_certain(rows[p][:window], threshold) for p in members):
            left = middle + 1
        else:
            right = middle
    counts = []
    for p, row in enumerate(rows):
        drawn = window if p in judged else 1
        if ranked.index(p) < left:
            counts.append(drawn)
        else:
            first = window if p in judged else min(step, cap)
            counts.append(max(plain_asc(row, threshold, cap, max(first, min(step, cap)), step), 1))
    return counts, judged


# Pools --------------------------------------------------------------------------------------------


def vote_pool(seed=0, num_problems=60, num_samples=N, masked=False):
    """Few answers of unequal odds, so that ties, early stops and late ones are all common."""
    rng = np.random.default_rng(seed)
    concentration = rng.choice([0.15, 0.6, 3.0], num_problems)
    odds = np.array([rng.dirichlet([c] * 4) for c in concentration])
    answers = np.array([rng.choice(4, num_samples, p=p) for p in odds])
    answers = np.where(rng.random(answers.shape) < 0.12, -1, 3 * answers)
    answers[0] = -1
    tokens = rng.integers(1, 50, answers.shape)
    tokens = np.where(rng.random(answers.shape) < 0.05, 0, tokens)
    # Sums of sixteenths are exact in float32, so that a tie of weights is one here and there.
    scores = rng.integers(0, 17, answers.shape) / 16
    mask = None
    if masked:
        mask = np.arange(num_samples) < rng.integers(8, num_samples + 1, num_problems)[:, None]
    return Pool.from_arrays(
        scores=scores, answers=answers, tokens=tokens, gold=np.zeros(num_problems, int), mask=mask
    )


def rows_of(pool, order):
    """Plain rows of one permutation; order [P, n]."""
    return [
        [
            (int(pool.answers[p, i]), int(pool.tokens[p, i]), float(pool.scores[p, i]))
            for i in columns
        ]
        for p, columns in enumerate(order)
    ]


def orders_of(pool, cap, num_permutations):
    from optscale_jax.replay import permutations

    return permutations(pool, KEY, num_permutations)[..., :cap]


def expect(pool, policy, rule, num_permutations=3):
    """Holds a replay to `rule(row) -> (count, position of the completion)`."""
    result = replay(pool, policy, key=KEY, num_permutations=num_permutations)
    orders = orders_of(pool, policy.max_samples, num_permutations)
    for k, order in enumerate(orders):
        wanted = [rule(row) for row in rows_of(pool, order)]
        counts = [count for count, _ in wanted]
        columns = [-1 if i == -1 else order[p][i] for p, (_, i) in enumerate(wanted)]
        np.testing.assert_array_equal(result.num_samples[k], counts)
        np.testing.assert_array_equal(result.selected_index[k], columns)
        spent = [pool.tokens[p, order[p][:n]].sum() for p, n in enumerate(counts)]
        np.testing.assert_array_equal(result.tokens[k], spent)
    return result


def stopped(count, rule):
    return lambda row: (count(row), rule(row[: count(row)]))


class WithoutPlan(DifficultyAdaptiveSelfConsistency):
    """The rule as a driver runs it that cannot look at all problems first."""

    couples_problems = False


def fields_of(policy):
    return {field.name: getattr(policy, field.name) for field in dataclasses.fields(policy)}


RULES = {
    "self_consistency": (self_consistency(N), stopped(lambda row: N, plain_vote)),
    "weighted_self_consistency": (
        weighted_self_consistency(N),
        stopped(lambda row: N, lambda row: plain_vote(row, lambda score: score)),
    ),
    "best_of_n": (best_of_n(N), stopped(lambda row: N, plain_best)),
    "majority of the bests": (
        first_hit(1, N, selection="majority_of_the_bests"),
        stopped(lambda row: next((i + 1 for i, _, s in votes_of(row) if s >= 1), N), plain_bests),
    ),
    "esc 3": (
        early_stopping_self_consistency(3, N),
        stopped(lambda row: plain_esc(row, 3, N), plain_vote),
    ),
    "esc 5, cut off": (
        early_stopping_self_consistency(5, N, selection="weighted_vote"),
        stopped(lambda row: plain_esc(row, 5, N), lambda row: plain_vote(row, lambda s: s)),
    ),
    "esc 1": (
        early_stopping_self_consistency(1, N, selection="best_score"),
        stopped(lambda row: plain_esc(row, 1, N), plain_best),
    ),
    "asc": (
        adaptive_self_consistency(0.9, N),
        stopped(lambda row: plain_asc(row, 0.9, N), plain_vote),
    ),
    # 1 - 2^-4, which three equal answers reach exactly.
    "asc, threshold met exactly": (
        adaptive_self_consistency(0.9375, N, selection="best_score"),
        stopped(lambda row: plain_asc(row, 0.9375, N), plain_best),
    ),
    "dsc without a plan": (
        WithoutPlan(**fields_of(difficulty_adaptive_self_consistency(0.9, N, extension=4))),
        stopped(lambda row: plain_asc(row, 0.9, N, 4, 4), plain_vote),
    ),
    "first_hit, majority": (
        first_hit(0.8, N, selection="majority"),
        stopped(
            lambda row: next((i + 1 for i, _, s in votes_of(row) if s >= np.float32(0.8)), N),
            plain_vote,
        ),
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_rule_is_that_of_plain_python(name):
    policy, rule = RULES[name]
    expect(vote_pool(), policy, rule)


def test_masked_pools_and_their_permutations():
    policy = adaptive_self_consistency(0.9, 8)
    rule = stopped(lambda row: plain_asc(row, 0.9, 8), plain_vote)
    expect(vote_pool(5, masked=True), policy, rule)


@pytest.mark.parametrize(
    "name", ["esc 3", "asc", "weighted_self_consistency", "majority of the bests"]
)
def test_replay_is_the_policy_driven_one_at_a_time(name):
    policy, _ = RULES[name]
    pool = vote_pool(7)
    # As many orders as above, so that replay compiles once.
    result = replay(pool, policy, key=KEY, num_permutations=3)
    rows = rows_of(pool, orders := orders_of(pool, N, 3)[0])
    for p, row in enumerate(rows[:8]):
        outcome = run(policy, [observed(i, *one) for i, one in enumerate(row)])
        assert outcome.num_samples == result.num_samples[0, p]
        chosen = outcome.selected_index
        assert (-1 if chosen < 0 else orders[p, chosen]) == result.selected_index[0, p]
        assert int(outcome.info.stop_reason) == result.stop_reason[0, p]
        assert int(outcome.info.required) == result.required[0, p] in (-1, outcome.num_samples)


def observed(i, answer, tokens, score):
    return Observation(jnp.float32(score), jnp.int32(answer), jnp.int32(tokens), jnp.int32(i))


# Votes --------------------------------------------------------------------------------------------


@jax.jit
def tally(answers, tokens, scores):
    observations = Observation(scores, answers, tokens, jnp.arange(answers.size))
    votes, _ = jax.lax.scan(lambda v, o: (v.add(o), None), Votes.none(N), observations)
    return votes, votes.leaders(), votes.first_with_most(votes.counts)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(-1, 5), st.sampled_from([-1, 0, 7])), min_size=N, max_size=N))
def test_votes_count_like_counter(completions):
    answers, tokens = np.array(completions, np.int32).T
    votes, leaders, winner = tally(answers, tokens, np.ones(N, np.float32))
    # Counter keeps the order of first appearance, and most_common goes by it among equals.
    counter = Counter(a for a, t in completions if a != -1 and t != 0)
    assert votes.answers.tolist() == [*counter, *[-1] * (N - len(counter))]
    assert votes.counts.tolist() == [*counter.values(), *[0] * (N - len(counter))]
    ranked = [count for _, count in counter.most_common()]
    assert [int(c) for c in leaders] == [*ranked, 0, 0][:2]
    first = {a: i for i, (a, t) in reversed([*enumerate(completions)]) if a != -1 and t != 0}
    assert int(winner) == (first[counter.most_common(1)[0][0]] if counter else -1)


def test_ties_go_to_the_answer_seen_first_and_weight_zero_still_votes():
    pool = Pool.from_arrays(
        scores=[[0, 0, 0, 0], [0.5, 0.25, 0.5, 0.25], [0.25, 0.5, 0, 0.25]],
        answers=[[-1, 7, 3, 3], [9, 2, 2, 9], [-1, 4, 4, 1]],
        tokens=np.ones((3, 4), int),
    )
    weighted = replay(pool, weighted_self_consistency(4))
    # All weights 0: the answer seen first. Equal sums: likewise.
    assert weighted.selected_index.tolist() == [[1, 0, 1]]
    assert replay(pool, self_consistency(4)).selected_index.tolist() == [[2, 0, 1]]


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(-1, 3), st.sampled_from([-1, 0, 7]), st.sampled_from([0, 0.5, 1])),
        min_size=5,
        max_size=5,
    ),
    st.sampled_from([1, 2, 3]),
)
def test_majority_of_the_bests_is_the_answer_of_most_draws(row, m):
    ranked = sorted(votes_of(row), key=lambda vote: (-vote[2], vote[0]))
    bests = Counter(
        ranked[min(drawn)][1] for drawn in itertools.product(range(len(ranked)), repeat=m)
    )
    first = [a for _, a, _ in votes_of(row)]
    answer = max(first, key=lambda a: (bests[a], -first.index(a)), default=None)
    wanted = next((i for i, a, _ in ranked if a == answer), -1)
    answers, tokens, scores = map(np.array, zip(*row, strict=True))
    pool = Pool.from_arrays(scores=[scores], answers=[answers], tokens=[tokens])
    policy = best_of_n(5, selection=MajorityOfTheBests(m=m))
    assert replay(pool, policy).selected_index[0, 0] == wanted


@pytest.mark.parametrize("m", [0, -1.0, np.nan])
def test_a_best_of_none_is_one_clear_line(m):
    with pytest.raises(ValueError, match=r"^m must be above 0, found"):
        MajorityOfTheBests(m=m)


@settings(max_examples=15)
@given(st.permutations(range(4)), st.integers(0, 10**6))
def test_renaming_answers_changes_nothing(names, seed):
    pool = vote_pool(seed)
    renamed = np.where(pool.answers == -1, -1, np.array(names)[np.maximum(pool.answers, 0) // 3])
    other = Pool.from_arrays(scores=pool.scores, answers=renamed, tokens=pool.tokens)
    for name in ("esc 3", "asc"):
        one, two = (replay(p, RULES[name][0]) for p in (pool, other))
        np.testing.assert_array_equal(one.num_samples, two.num_samples)
        np.testing.assert_array_equal(one.selected_index, two.selected_index)


def test_selection_does_not_change_when_to_stop():
    pool = vote_pool(2)
    best, voted = (
        replay(pool, optscale(0.9, 0.9, N, 3, selection=s), key=KEY, num_permutations=2)
        for s in ("best_score", "weighted_vote")
    )
    np.testing.assert_array_equal(best.num_samples, voted.num_samples)
    for k, order in enumerate(orders_of(pool, N, 2)):
        rows = zip(rows_of(pool, order), best.num_samples[k], order, strict=True)
        drawn = [(row[:n], [*columns, -1]) for row, n, columns in rows]
        assert best.selected_index[k].tolist() == [of[plain_best(row)] for row, of in drawn]
        wanted = [of[plain_vote(row, lambda score: score)] for row, of in drawn]
        assert voted.selected_index[k].tolist() == wanted


# Adaptive self-consistency ------------------------------------------------------------------------


def test_doubt_is_the_beta_tail():
    table = doubt(64)
    for a, b in itertools.product(range(65), range(65)):
        if b <= a and a + b <= 64:
            exact = 1 - exact_majority(a, b)
            assert table[a, b] == float(exact)
            assert table[a, b] == pytest.approx(scipy.special.betainc(a + 1, b + 1, 0.5), rel=1e-12)
    with mpmath.workdps(40):
        for a, b in ((40, 3), (33, 31), (64, 0)):
            tail = mpmath.betainc(a + 1, b + 1, 0, 0.5, regularized=True)
            assert table[a, b] == pytest.approx(float(tail), rel=1e-15)


@pytest.mark.parametrize("threshold", [0.75, 0.8, 0.9, 0.95, 0.96875, 0.99, 0.999])
def test_certain_lead_is_the_least(threshold):
    cap = 100
    lead = certain_lead(threshold, cap).tolist()
    for b in range(cap + 1):
        wanted = next(
            (a for a in range(b, cap - b + 1) if exact_majority(a, b) >= Fraction(str(threshold))),
            cap - b + 1,
        )
        assert lead[b] == wanted
    traced = jax.jit(lambda t: certain_lead(t, cap))(threshold)
    assert traced.tolist() == lead


def test_a_grid_of_thresholds_is_its_settings_one_by_one():
    pool, thresholds = vote_pool(4), [0.7, 0.9, 0.9375, 0.97]
    grid = replay(pool, stack([adaptive_self_consistency(t, N) for t in thresholds]))
    for s, threshold in enumerate(thresholds):
        rows = rows_of(pool, np.tile(np.arange(N), (60, 1)))
        counts = [plain_asc(row, threshold, N) for row in rows]
        assert grid.num_samples[s, 0].tolist() == counts
        wanted = [plain_vote(row[:n]) for row, n in zip(rows, counts, strict=True)]
        assert grid.selected_index[s, 0].tolist() == wanted
    assert np.all(np.diff(grid.num_samples, axis=0) >= 0)


def test_request_is_the_fewest_after_which_it_could_stop():
    policy = adaptive_self_consistency(0.95, 6)
    state = policy.init(None)
    asked = []
    for i, answer in enumerate([1, 1, 2, 1, 1, 1]):
        asked.append(int(policy.request(state).more))
        state = policy.observe(state, observed(i, answer, 5, 0.0))
    # Four equal answers are certain, six against one would be: the cap comes before that.
    assert asked == [4, 3, 2, 3, 2, 1]
    assert int(policy.request(state).more) == 0
    assert int(policy.info(state).stop_reason) == StopReason.MAX_SAMPLES


# Difficulty-adaptive self-consistency -------------------------------------------------------------


@pytest.mark.parametrize(
    ("difficulty", "window", "judge_window", "extension", "num_problems"),
    [("first_tokens", 4, 3, 1, 60), ("given", 5, 2, 3, 33)],
)
def test_difficulty_adaptive_is_that_of_plain_python(
    difficulty, window, judge_window, extension, num_problems
):
    pool = vote_pool(11, num_problems)
    rng = np.random.default_rng(0)
    # Easy where most answers agree, with noise, so that the search has a boundary to find.
    agree = [Counter(row[row != -1].tolist()).most_common(1) for row in pool.answers]
    given = -np.array([c[0][1] if c else 0 for c in agree]) + rng.normal(0, 0.5, num_problems)
    policy = difficulty_adaptive_self_consistency(
        0.9,
        N,
        given if difficulty == "given" else difficulty,
        window=window,
        judge_window=judge_window,
        extension=extension,
    )
    result = replay(pool, policy, key=KEY, num_permutations=3)
    for k, order in enumerate(orders_of(pool, N, 3)):
        rows = rows_of(pool, order)
        hardness = {
            "first_tokens": [row[0][1] for row in rows],
            "given": given,
        }[difficulty]
        counts, judged = plain_dsc(rows, hardness, 0.9, N, window, judge_window, extension)
        np.testing.assert_array_equal(result.num_samples[k], counts)
        presampled = [window if p in judged else 0 for p in range(num_problems)]
        np.testing.assert_array_equal(result.presampled[k], presampled)
        wanted = [plain_vote(row[:n]) for row, n in zip(rows, counts, strict=True)]
        columns = [-1 if i == -1 else order[p][i] for p, i in enumerate(wanted)]
        np.testing.assert_array_equal(result.selected_index[k], columns)
        searched = [pool.tokens[p, order[p][:n]].sum() for p, n in enumerate(presampled)]
        np.testing.assert_array_equal(result.presampled_tokens[k], searched)
        assert np.all(result.num_samples[k] >= presampled)


def search_pool(num_easy):
    """32 problems, of which the first are unanimous, in the order of their difficulty."""
    answers = np.tile(np.arange(N), (32, 1))
    answers[:num_easy] = 3
    return Pool.from_arrays(answers=answers, tokens=np.full((32, N), 10))


RANKED = difficulty_adaptive_self_consistency(0.95, N, np.arange(32), judge_window=1)


@pytest.mark.parametrize("num_easy", [0, 1, 2, 13, 31, 32])
def test_search_finds_the_boundary_and_pays_for_what_it_looks_at(num_easy):
    policy = RANKED
    result = replay(search_pool(num_easy), policy)
    easy = result.stop_reason[0] == StopReason.EASY_PROBLEM
    assert easy.tolist() == [p < num_easy for p in range(32)]
    assert np.sum(result.presampled > 0) in (5, 6)
    assert np.all(result.num_samples[0][easy] == np.maximum(result.presampled[0][easy], 1))
    assert np.all(result.num_samples[0][~easy] == N)
    assert result.presampled_tokens.sum() == 10 * result.presampled.sum()
    assert result.tokens.sum() == 10 * result.num_samples.sum()


def test_search_one_step_at_a_time_is_the_plan():
    pool = vote_pool(13, 40)
    policy = difficulty_adaptive_self_consistency(0.9, N, window=4)
    columns = np.arange(N)
    batch = Observation(
        *map(jnp.asarray, (pool.scores, pool.answers, pool.tokens, np.tile(columns, (40, 1))))
    )
    allotments = jax.jit(policy.plan)(batch)
    rows = rows_of(pool, np.tile(columns, (40, 1)))
    ranked = np.argsort(pool.tokens[:, 0], kind="stable")
    left, right, judged = 0, 40, set()
    while left < right:
        middle = (left + right) // 2
        problems = ranked[np.clip(middle + np.arange(-1, 2), 0, 39)].tolist()
        judged.update(problems)
        easy = all(plain_certain(rows[p][:4], 0.9) for p in problems)
        left, right = (middle + 1, right) if easy else (left, middle)
    assert allotments.easy[ranked].tolist() == [r < left for r in range(40)]
    assert np.flatnonzero(allotments.presampled).tolist() == sorted(judged)
    # The rule of one problem, with what the plan made for it, is what replay ran.
    result = replay(pool, policy)
    for p in (0, 5, *sorted(judged)[:2]):
        mine = Allotment(*(field[p] for field in allotments))
        outcome = run(policy, [observed(i, *one) for i, one in enumerate(rows[p])], prior=mine)
        assert outcome.num_samples == result.num_samples[0, p]
        assert outcome.selected_index == result.selected_index[0, p]


def test_nothing_is_looked_at_that_is_not_paid_for():
    pool = vote_pool(17, 40)
    policy = difficulty_adaptive_self_consistency(0.9, N, "first_score", window=4)
    before = replay(pool, policy)
    unpaid = np.arange(N) >= before.num_samples[0][:, None]
    rng = np.random.default_rng(1)
    answers = np.where(unpaid, rng.integers(-1, 9, unpaid.shape), pool.answers)
    tokens = np.where(unpaid, rng.integers(0, 99, unpaid.shape), pool.tokens)
    scores = np.where(unpaid, rng.random(unpaid.shape), pool.scores)
    after = replay(Pool.from_arrays(answers=answers, tokens=tokens, scores=scores), policy)
    for field in ("num_samples", "selected_index", "tokens", "presampled", "presampled_tokens"):
        np.testing.assert_array_equal(getattr(before, field), getattr(after, field))


# Sequential pools ---------------------------------------------------------------------------------


def test_mr_thinking_returns_the_last_round_that_has_an_answer():
    answers = [[1, 2, 3], [1, 2, -1], [4, -1, -1], [-1, -1, -1]]
    tokens = [[5, 5, 5], [5, 5, 5], [5, 5, 5], [5, 5, 5]]
    pool = Pool.from_arrays(answers=answers, tokens=tokens, gold=[3, 2, 1, 0], kind="sequential")
    result = replay(pool, mr_thinking(3))
    assert result.selected_index.tolist() == [[2, 1, 0, -1]]
    assert result.correct.tolist() == [[True, True, False, False]]
    assert result.num_samples.tolist() == [[3, 3, 3, 3]]
    assert replay(pool, mr_thinking(2)).selected_index.tolist() == [[1, 1, 0, -1]]


# Bad input ----------------------------------------------------------------------------------------


def test_pools_of_the_wrong_kind_are_refused():
    pool = vote_pool(num_problems=2)
    rounds = Pool.from_arrays(answers=pool.answers, tokens=pool.tokens, kind="sequential")
    with pytest.raises(PoolError, match="it is sequential"):
        replay(rounds, self_consistency(3))
    with pytest.raises(PoolError, match="needs a sequential pool"):
        replay(pool, mr_thinking(3))
    with pytest.raises(PoolError, match="one order only"):
        replay(rounds, mr_thinking(3), key=KEY, num_permutations=2)


def test_pools_without_what_a_policy_reads_are_refused():
    pool = vote_pool(num_problems=2)
    scoreless = Pool.from_arrays(answers=pool.answers)
    for policy in (
        best_of_n(3),
        weighted_self_consistency(3),
        adaptive_self_consistency(0.9, 3, selection="weighted_vote"),
        early_stopping_self_consistency(3, 3, selection="best_score"),
        difficulty_adaptive_self_consistency(0.9, 5, "first_score"),
    ):
        with pytest.raises(PoolError, match="no verifier scores"):
            replay(scoreless, policy)
    with pytest.raises(PoolError, match="lacks the length"):
        replay(scoreless, difficulty_adaptive_self_consistency(0.9, 5))
    answerless = Pool.from_arrays(scores=pool.scores, tokens=pool.tokens)
    for policy in (
        self_consistency(3),
        first_hit(0.9, 3, selection="majority"),
        optscale(0.9, 0.9, 3, 2, selection="weighted_vote"),
        adaptive_self_consistency(0.9, 3),
    ):
        with pytest.raises(PoolError, match="no answers to compare"):
            replay(answerless, policy)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: self_consistency(0), "n must be"),
        (lambda: early_stopping_self_consistency(6, 5), "window must be at most"),
        (lambda: early_stopping_self_consistency(0, 5), "window must be an integer"),
        (lambda: adaptive_self_consistency(0.5, 5), "threshold must be inside"),
        (lambda: adaptive_self_consistency(1.0, 5), "threshold must be inside"),
        (lambda: adaptive_self_consistency(float("nan"), 5), "threshold must be inside"),
        (lambda: difficulty_adaptive_self_consistency(0.9, 4), "window must be at most"),
        (lambda: difficulty_adaptive_self_consistency(0.9, 9, [[1.0]]), "one number for each"),
        (lambda: difficulty_adaptive_self_consistency(0.9, 9, judge_window=0), "judge_window"),
        (lambda: mr_thinking(0), "rounds must be"),
    ],
)
def test_arguments_outside_their_domain_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_difficulty_of_another_number_of_problems_is_refused():
    policy = difficulty_adaptive_self_consistency(0.9, N, [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="difficulty has 3 entries, but there are 2 problems"):
        replay(vote_pool(num_problems=2), policy)


def test_unknown_selection_is_refused():
    # Past the argument checks of the tests' type checker, which would refuse the name first.
    unchecked = getattr(make_selector, "__wrapped__", make_selector)
    with pytest.raises(ValueError, match=r"selection 'best': no such selection.*best_score"):
        unchecked("best")


# Caps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deep", "shallow", "reason"),
    [
        (self_consistency(N), self_consistency(5), StopReason.FIXED_COUNT),
        (
            early_stopping_self_consistency(3, N),
            early_stopping_self_consistency(3, 5),
            StopReason.MAX_SAMPLES,
        ),
        (
            difficulty_adaptive_self_consistency(0.9, N),
            difficulty_adaptive_self_consistency(0.9, 5),
            StopReason.MAX_SAMPLES,
        ),
        (optscale(0.8, 0.9, N, 3), optscale(0.8, 0.9, 5, 3), StopReason.MAX_SAMPLES),
    ],
    ids=["self_consistency", "esc", "dsc", "optscale"],
)
def test_a_capped_rule_is_the_rule_made_with_that_cap(deep, shallow, reason):
    pool = vote_pool(seed=5)
    got = replay(pool, capped(deep, 5), key=KEY, num_permutations=2)
    want = replay(pool, shallow, key=KEY, num_permutations=2)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert reason in got.stop_reason


@pytest.mark.parametrize("cap", [0, N + 1, 2.5])
def test_a_cap_outside_its_domain_is_refused(cap):
    with pytest.raises(ValueError, match="cap must be"):
        capped(self_consistency(N), cap)


# The oracle ---------------------------------------------------------------------------------------


def test_known_law_draws_what_the_bound_says_and_needs_a_law():
    pool = vote_pool(seed=6)
    law = Prior(np.linspace(0.3, 0.9, 60), np.full(60, 0.2))
    result = replay(pool, known_law(0.8, 0.9, N), key=KEY, num_permutations=2, prior=law)
    needed = required_samples(TruncatedNormal(law.loc, law.scale), 0.8, 0.9, N)
    np.testing.assert_array_equal(result.num_samples, np.broadcast_to(needed, (2, 60)))
    assert len(np.unique(needed)) > 5
    best = expect(
        pool, best_of_n(N), stopped(lambda row: N, plain_best), num_permutations=2
    ).selected_index
    deep = result.num_samples == N
    np.testing.assert_array_equal(result.selected_index[deep], best[deep])
    with pytest.raises(ValueError, match="needs each problem's law"):
        known_law(0.8, 0.9, N).init()
