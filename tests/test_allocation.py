"""A budget over problems: the queue, on pools and live, against its words in plain Python."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optscale_jax import Pool, policies, shipped
from optscale_jax.backends.recorded import RecordedSampler, RecordedVerifier, recorded_problems
from optscale_jax.errors import InputError, PoolError, ProblemError
from optscale_jax.live.engine import solve
from optscale_jax.live.runs import Run
from optscale_jax.policies import Observation, StopReason, base
from optscale_jax.records import Score
from optscale_jax.study import Budget, allocate
from optscale_jax.study.allocation import Queue
from optscale_jax.study.learning import cross_fitted
from optscale_jax.study.tuning import folds

VOTE = policies.calibrated_vote(None, max_samples=64)


@pytest.fixture(scope="module")
def pool() -> Pool:
    return Pool.load(shipped.located("package:optscale_jax/tiny/pool.npz"))


@pytest.fixture(scope="module")
def evidence(pool):
    return cross_fitted(pool, folds(pool.num_problems, 5, seed=0))


def live(pool, budget, evidence, *, policy=VOTE, sampler=RecordedSampler, **options):
    """A run of the recorded stand-in, with each problem's own evidence."""
    each = [jax.tree.map(lambda v, i=i: v[i], evidence) for i in range(pool.num_problems)]
    priors = dict(zip(pool.problem_ids.tolist(), each, strict=True))
    options.setdefault("verifier", RecordedVerifier(pool))
    return solve(
        recorded_problems(pool),
        sampler(pool),
        options.pop("verifier"),
        policy,
        priors=priors,
        budget=budget,
        **options,
    )


def best_of(pool, n):
    scores = np.where(pool.eligible, pool.scores, -1)[:, :n]
    return np.take_along_axis(pool.correct, scores.argmax(1)[:, None], axis=1).mean()


@pytest.mark.parametrize("share", [0.1, 0.2, 0.4])
def test_the_budget_is_spent_and_beats_the_same_number_for_every_problem(pool, evidence, share):
    budget = Budget(int(share * pool.tokens.sum()))
    result, spent, price = allocate(pool, VOTE, budget, prior=evidence)
    assert 0.99 * budget.tokens <= spent[0] <= budget.tokens
    assert spent[0] == result.tokens.sum()
    equal = int(np.flatnonzero(np.cumsum(pool.tokens.sum(0)) <= budget.tokens)[-1]) + 1
    assert result.correct.mean() >= best_of(pool, equal) + 0.04

    if share > 0.1:
        return
    solutions = live(pool, budget, evidence)
    decisions = [solution.decision for solution in solutions]
    assert [d.num_samples for d in decisions] == result.num_samples[0].tolist()
    assert [d.selected_index for d in decisions] == result.selected_index[0].tolist()
    assert sum(d.ledger.total for d in decisions) == spent[0]
    reasons = [StopReason[d.stop_reason.upper()] for d in decisions]
    assert reasons == result.stop_reason[0].tolist()
    open_ = [d.gain for d in decisions if d.num_samples < 64]
    np.testing.assert_allclose(max(open_), price[0], rtol=1e-5)


def test_one_at_a_time_the_highest_gain_draws_next(pool, evidence):
    few, cap = 12, 8
    problems, columns = slice(0, few), slice(0, cap)
    part = Pool.from_arrays(
        scores=pool.scores[problems, columns],
        tokens=pool.tokens[problems, columns],
        answers=pool.answers[problems, columns],
    )
    own = jax.tree.map(lambda v: v[problems], evidence)
    policy = policies.calibrated_vote(None, max_samples=cap)
    tokens = int(0.5 * part.tokens.sum())
    result, spent, _ = allocate(part, policy, Budget(tokens, batch=1), prior=own)

    bare = dataclasses.replace(policy, prior=None)
    states = [base.start(bare, jax.tree.map(lambda v, i=i: v[i], own))[0] for i in range(few)]
    drawn, left = [0] * few, tokens
    while left >= part.tokens.max() and min(drawn) < cap:
        gains = [base.gain(bare, s) if n else np.inf for s, n in zip(states, drawn, strict=True)]
        order = [(-g, n, i) for i, (g, n) in enumerate(zip(gains, drawn, strict=True)) if n < cap]
        row = min(order)[2]
        at = row, drawn[row]
        seen = part.scores[at], part.answers[at], part.tokens[at], np.int32(drawn[row])
        states[row], _ = base.step(bare, states[row], Observation(*map(jnp.asarray, seen)))
        drawn[row] += 1
        left -= int(part.tokens[at])
    assert result.num_samples[0].tolist() == drawn
    assert spent[0] == tokens - left
    selected = [int(base.finish(bare, state)[0]) for state in states]
    assert result.selected_index[0].tolist() == selected


MOST, CAP = 9, 6


def driven(queue, tokens, gains, turns=1 << 30):
    """Drives a queue; returns what was launched, and which of it was looked at."""
    launched, seen = [], []
    while turns and (turn := queue.turn()) is not None:
        turns -= 1
        place, index, launch = turn
        if launch:
            assert (place, index) not in launched
            launched.append((place, index))
        else:
            seen.append((place, index))
            queue.add(gains[place][index], tokens[place][index])
    return launched, seen


@settings(max_examples=200)
@given(
    st.integers(0, 1 << 30), st.integers(1, 5), st.integers(0, 160), st.integers(1, 8),
    st.integers(0, 60),
)  # fmt: skip
def test_the_budget_holds_and_a_run_that_was_cut_off_goes_on(seed, count, more, batch, cut):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, MOST + 1, (count, CAP)).tolist()
    gains = rng.choice([0.0, 0.25, 0.5, 1.0, np.inf, np.nan], (count, CAP)).tolist()
    budget = Budget(count * MOST + more, batch, MOST)
    whole = Queue(count, CAP, budget)
    launched, seen = driven(whole, tokens, gains)
    assert seen == launched
    assert {place for place, _ in launched} == set(range(count))
    assert whole.spent == sum(tokens[p][i] for p, i in launched) <= budget.tokens
    assert len(launched) == count * CAP or whole.spent > budget.tokens - MOST

    def cost(times, p, i):
        return times * tokens[p][i]

    before, looked_at = driven(Queue(count, CAP, budget), tokens, gains, turns=cut)
    # What was under way has come, all of it: the same run goes on.
    there = {(p, i): (cost(1, p, i), True) for p, i in before}
    again = Queue(count, CAP, budget, earlier=there)
    assert driven(again, tokens, gains)[0] == launched
    # Some of it is lost, having cost up to all that it would have: it is drawn again.
    lost = {at for at in before if at not in looked_at and rng.random() < 0.6}
    earlier = {at: (MOST, False) if at in lost else there[at] for at in before}
    twice = [[cost(1 + ((p, i) in lost), p, i) for i in range(CAP)] for p in range(count)]
    resumed = Queue(count, CAP, budget, earlier=earlier)
    try:
        after, _ = driven(resumed, twice, gains)
    except InputError:
        return  # losses left too little for a completion of each problem
    spent = sum(cost(1, *at) for at in before) + sum(
        cost(1, *at) for at in after if at in lost or at not in before
    )
    assert spent <= budget.tokens


def test_a_failing_disk_or_process_costs_no_more_than_the_budget(pool, evidence, tmp_path):
    part, own = pool.subset(pool.problem_ids[:30]), jax.tree.map(lambda v: v[:30], evidence)
    budget = Budget(20_000, batch=1)
    result, _, _ = allocate(part, VOTE, budget, prior=own)
    problems = recorded_problems(part)

    class Counting(RecordedVerifier):
        """Dies at its 100th score."""

        left = 100

        async def score(self, problem, completions):
            self.left -= 1
            if self.left < 0:
                raise OSError("gone")
            return await super().score(problem, completions)

    def opened():
        return Run(tmp_path / "run", config="", problems=problems)

    with opened() as run, pytest.raises(OSError, match="gone"):
        live(part, budget, own, run=run, verifier=Counting(part))
    with opened() as run:
        assert 80 < run.num_samples <= 100
        solutions = live(part, budget, own, run=run)
    # One at a time, nothing was lost, only not yet scored.
    assert [s.decision.num_samples for s in solutions] == result.num_samples[0].tolist()
    assert sum(s.decision.ledger.total for s in solutions) == result.tokens.sum()

    # A line of what was launched and never came: it counts twice.
    other = tmp_path / "other"
    with Run(other, config="", problems=problems) as run:
        run.add_launch(problems[3].id, 0)
    with Run(other, config="", problems=problems) as run:
        solutions = live(part, budget, own, run=run)
    ledgers = [s.decision.ledger for s in solutions]
    assert ledgers[3].aborted == part.tokens[3, 0] > 0
    total = sum(ledger.total for ledger in ledgers)
    assert 0.99 * budget.tokens < total <= budget.tokens
    # The decisions of a run whose end was not reached are made again, the same.
    file = other / "decisions.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:10]))
    with Run(other, config="", problems=problems) as run:
        assert live(part, budget, own, run=run) == solutions
    assert [json.loads(line) for line in lines] == [
        json.loads(line) for line in file.read_text().splitlines()
    ]


def test_a_verifiers_tokens_count_and_a_failed_problem_leaves_the_others(pool, evidence):
    part, own = pool.subset(pool.problem_ids[:10]), jax.tree.map(lambda v: v[:10], evidence)

    class Reading(RecordedVerifier):
        most_tokens = 50

        async def score(self, problem, completions):
            (score,) = await super().score(problem, completions)
            return [Score(score.value, tokens=40)]

    class Refusing(RecordedSampler):
        async def sample(self, problem, n, first_index, *, abort):
            if problem.id == part.problem_ids[4]:
                raise ProblemError("too long")
            async for completion in super().sample(problem, n, first_index, abort=abort):
                yield completion

    budget = Budget(12_000)
    solutions = live(part, budget, own, sampler=Refusing, verifier=Reading(part))
    ledgers = [s.decision.ledger for s in solutions]
    assert ledgers[4].total == 0
    assert solutions[4].decision.error == "too long"
    drawn = [s.decision.num_samples for s in solutions]
    assert [ledger.verifier for ledger in ledgers] == [40 * n for n in drawn]
    most = part.tokens.max() + 50
    assert budget.tokens - most < sum(ledger.total for ledger in ledgers) <= budget.tokens


class Silent(policies.Policy):
    """Does not say what a completion gains."""

    def rule(self, state):
        return policies.until(state.count >= 2)


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (Silent(max_samples=4), "Silent does not say what one more completion gains"),
        (policies.mr_thinking(4), "MrThinking asks in rounds"),
        (
            policies.difficulty_adaptive_self_consistency(0.95, 8),
            "DifficultyAdaptiveSelfConsistency couples the problems",
        ),
    ],
)
def test_a_policy_that_cannot_share_is_refused(pool, policy, says):
    with pytest.raises(InputError, match=says):
        allocate(pool, policy, 100_000)
    if not policy.couples_problems:  # which is refused before
        with pytest.raises(InputError, match=says):
            live(pool, Budget(100_000), {}, policy=policy)


def test_a_budget_that_cannot_be_kept_is_refused(pool, evidence):
    few = "20,000 tokens are not enough for one completion of each of 400 problems, which take abou"
    for run in (
        lambda budget: allocate(pool, VOTE, budget, prior=evidence),
        lambda budget: live(pool, budget, evidence),
    ):
        with pytest.raises(InputError, match=few):
            run(Budget(20_000))
    with pytest.raises(InputError, match=r"budget.tokens is 0; it must be at least 1"):
        Budget(0)
    unknown = dataclasses.replace(pool, tokens=np.full_like(pool.tokens, -1))
    with pytest.raises(PoolError, match="lacks the length of some completions"):
        allocate(unknown, VOTE, 100_000, prior=evidence)
    with pytest.raises(InputError, match="the sampler does not say how many tokens"):
        live(unknown, Budget(100_000), evidence)
    with pytest.raises(InputError, match="does not say how many tokens completion 0 of problem"):
        live(unknown, Budget(100_000, most=160), evidence)
