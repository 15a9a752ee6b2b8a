"""The live loop: the decisions of replay, nothing drawn twice, and every token accounted for."""

import asyncio
import dataclasses
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

import optscale_jax
from optscale_jax import Pool, Prior, policies, replay, synthetic_pool
from optscale_jax.backends.recorded import RecordedSampler, RecordedVerifier, recorded_problems
from optscale_jax.errors import EngineError, PoolError, ProblemError
from optscale_jax.live.decider import Decider
from optscale_jax.live.engine import Engine, ask_again, solutions_pool, solve, solve_async
from optscale_jax.live.limits import Limits
from optscale_jax.live.runs import Run
from optscale_jax.readers import read_pool
from optscale_jax.records import Completion, Problem, Sample, Score, TokenLedger

ROOT = Path(__file__).resolve().parents[1]
N = 16
OPTSCALE = policies.optscale(0.9, 0.9, N, 4)  # one object, so that its functions compile once


class EightThenThree(policies.Policy):
    """Asks for eight at once, and has enough with three."""

    def rule(self, state):
        return policies.until(state.count >= 3, more=8 - state.count)


@pytest.fixture(scope="module")
def pool() -> Pool:
    return synthetic_pool(jax.random.key(0), num_problems=60, num_samples=N)


def opened(path, problems, kind="parallel"):
    return Run(path, config="seed: 0\n", problems=problems, kind=kind)


def live(pool, policy, **options):
    return solve(
        recorded_problems(pool), RecordedSampler(pool), RecordedVerifier(pool), policy, **options
    )


def assert_decisions_are_those_of_replay(solutions, result):
    assert [s.decision.num_samples for s in solutions] == result.num_samples[0].tolist()
    assert [s.decision.selected_index for s in solutions] == result.selected_index[0].tolist()
    assert [s.decision.tokens for s in solutions] == result.tokens[0].tolist()
    reasons = [policies.StopReason[s.decision.stop_reason.upper()] for s in solutions]
    assert reasons == result.stop_reason[0].tolist()
    claimed = [math.nan if (p := s.decision.confidence) is None else p for s in solutions]
    np.testing.assert_allclose(claimed, result.confidence[0], atol=1e-6)
    if result.correct is not None:
        assert [s.correct for s in solutions] == result.correct[0].tolist()


@pytest.mark.parametrize(
    "policy",
    [
        OPTSCALE,
        policies.best_of_n(7, selection="weighted_vote"),
        policies.first_hit(0.9, N, selection="majority_of_the_bests"),
        policies.hit_or_gain(0.95, 0.002, N),
        policies.calibrated_vote("scores", 6.0, N),
        policies.early_stopping_self_consistency(4, N),
        policies.adaptive_self_consistency(0.95, N),
    ],
    ids=["optscale", "best_of_n", "first_hit", "hit_or_gain", "calibrated_vote", "esc", "asc"],
)
def test_live_decisions_are_those_of_replay(pool, policy):
    result = replay(pool, policy)
    for ahead in (None, 2):
        assert_decisions_are_those_of_replay(live(pool, policy, max_ahead=ahead), result)


def test_decisions_made_together_are_the_same_bits_as_those_made_one_by_one():
    capped = policies.capped(OPTSCALE, 7)  # shares the calls

    def shown(i, k):
        return Sample("p", Completion(k, "x", 10 + i), (i * 7 + k * 13) % 31 / 31, "x", i % 3, -1)

    async def together(decide, i):
        state, more = decide.start(None, 0, 1)
        for k in range(6):
            state, (more,) = await decide.step(state, [shown(i, k)])
        return state, more

    async def all_together():
        deciders = [Decider(rule) for rule in (OPTSCALE, capped)]
        return await asyncio.gather(*(together(deciders[i % 2], i) for i in range(70)))

    for i, (state, more) in enumerate(asyncio.run(all_together())):
        decide = Decider((OPTSCALE, capped)[i % 2])
        alone, wanted = decide.start(None, 0, 1)
        for k in range(6):
            alone, wanted = decide.step_now(alone, shown(i, k))
        assert more == wanted
        assert state.program is alone.program
        assert (state.bits == alone.bits).all()


@pytest.mark.parametrize("every", [False, True])
def test_completions_shown_together_are_decided_as_one_by_one(every):
    rules = [
        policies.first_hit(0.8, 9),
        policies.optscale(0.9, 0.9, 9, 2),
        EightThenThree(max_samples=8),
    ]
    chance = np.random.default_rng(7)

    def shown(scores):
        return [Sample("p", Completion(k, "x", 9), s, "x", k % 3, -1) for k, s in enumerate(scores)]

    async def together(rule, samples):
        decide = Decider(rule)
        return await decide.step(decide.start(None, 0, 1)[0], samples, every=every)

    async def all_together(cases):
        return await asyncio.gather(*(together(*case) for case in cases))

    cases = [(rules[i % 3], shown(chance.random(1 + i % 8))) for i in range(48)]
    found, lengths = asyncio.run(all_together(cases)), set()
    for (rule, samples), (state, wanted) in zip(cases, found, strict=True):
        decide, expected = Decider(rule), []
        alone, _ = decide.start(None, 0, 1)
        for sample in samples:
            alone, more = decide.step_now(alone, sample)
            expected.append(more)
            if more == 0 and not every:
                break
        assert wanted == expected
        assert (state.bits == alone.bits).all()
        lengths.add(len(samples) - len(wanted))
    assert (len(lengths) == 1) == every  # some stop early, where they may


def test_a_limit_reached_among_completions_that_came_together_leaves_none_of_them_out():
    class AtOnce:
        async def sample(self, problem, n, first_index, *, abort):
            for i in range(first_index, first_index + n):
                yield Completion(i, "\\boxed{1}", 10)

        async def score(self, problem, completions):
            return [Score(0.9 if one.index == 1 else 0.2) for one in completions]

    models, rule = AtOnce(), policies.best_of_n(4)
    engine = Engine(models, models, rule, Decider(rule))
    solution = asyncio.run(engine.solve(Problem("p", "?"), limits=Limits(tokens=5)))
    assert solution.decision.stop_reason == "tokens"
    assert solution.decision.num_samples == 4
    assert solution.decision.selected_index == 1
    assert [one.completion.index for one in solution.samples] == [0, 1, 2, 3]


def test_a_recorded_model_that_is_full_lets_the_others_wait_and_an_abort_ends_all(pool):
    sampler = RecordedSampler(pool, seconds_per_token=1e-5, max_num_seqs=2)
    slow = RecordedSampler(pool, seconds_per_token=10.0, max_num_seqs=2)
    (problem, *_) = recorded_problems(pool)

    async def main():
        abort = asyncio.Event()
        found = [one async for one in sampler.sample(problem, 6, 1, abort=abort)]
        assert sorted(one.index for one in found) == [1, 2, 3, 4, 5, 6]
        assert {one.finish_reason for one in found} == {"stop"}
        asyncio.get_running_loop().call_later(0.05, abort.set)
        cut = [one async for one in slow.sample(problem, 6, 0, abort=abort)]
        assert [(one.finish_reason, one.tokens) for one in cut] == [("abort", 0)] * 6
        assert slow._turns is not None
        assert slow._turns._value == 2

    asyncio.run(main())


def test_a_prior_for_each_problem_is_that_problems(pool):
    draws = np.random.default_rng(0).uniform(0.5, 0.9, pool.num_problems)
    fields = (draws, 0.4 * (1 - draws), np.full_like(draws, 0.1), np.full_like(draws, 0.1))
    policy = OPTSCALE
    result = replay(pool, policy, prior=Prior(*fields))
    names = pool.problem_ids.tolist()
    priors = {name: Prior(*(field[i] for field in fields)) for i, name in enumerate(names)}
    solutions = live(pool, policy, priors=priors, predictor_tokens=dict.fromkeys(names, 9))
    assert_decisions_are_those_of_replay(solutions, result)
    assert all(s.decision.ledger.predictor == 9 for s in solutions)
    # Or as the policy's own, with one entry a problem.
    policy = dataclasses.replace(OPTSCALE, prior=Prior(*fields))
    assert_decisions_are_those_of_replay(live(pool, policy), result)


def test_a_run_can_be_read_and_replayed(pool, tmp_path):
    problems = recorded_problems(pool)
    with opened(tmp_path, problems) as run:
        solutions = live(pool, OPTSCALE, run=run)
    for read in (read_pool(tmp_path), solutions_pool(solutions)):
        read = read.subset(pool.problem_ids)  # in the order of the pool
        counts = [s.decision.num_samples for s in solutions]
        assert read.samples_per_problem.tolist() == counts
        for row, solution in enumerate(solutions):
            count = counts[row]
            assert read.scores is not None
            np.testing.assert_array_equal(read.scores[row, :count], pool.scores[row, :count])
            np.testing.assert_array_equal(read.correct[row, :count], pool.correct[row, :count])
            observations = map(
                policies.Observation,
                read.scores[row],
                read.answers[row],
                read.tokens[row],
                np.arange(count, dtype=np.int32),
            )
            if row < 2:  # eager, so slow
                outcome = policies.run(OPTSCALE, observations)
                assert outcome.num_samples == count
                assert outcome.selected_index == solution.decision.selected_index


def test_rounds_see_the_answer_before(tmp_path):
    asked = []

    class Sampler(RecordedSampler):
        def sample(self, problem, n, first_index, *, abort):
            asked.append((problem.text, n, first_index))
            return super().sample(problem, n, first_index, abort=abort)

    pool = Pool.from_arrays(
        answers=[[5, -1, 3]], tokens=[[2, 4, 6]], gold=[3], kind="sequential", problem_ids=["q"]
    )
    policy = policies.mr_thinking(3)
    (problem,) = recorded_problems(pool)
    with opened(tmp_path, [problem], "sequential") as run:
        (solution,) = solve([problem], Sampler(pool), None, policy, run=run)
    assert asked == [
        ("q", 1, 0),
        (ask_again(problem, "5").text, 1, 1),
        # A round without an answer has nothing to show in the place of the one before.
        (ask_again(problem, "5").text, 1, 2),
    ]
    assert "5" in ask_again(problem, "5").text
    assert solution.answer == "3"
    assert solution.correct
    assert read_pool(tmp_path).kind == "sequential"


# Tokens -------------------------------------------------------------------------------------------


class ScriptedSampler:
    """Completions whose ends the test decides: index i ends when `ends[i]` is set."""

    def __init__(self, num: int, tokens: int = 10):
        self.ends = [asyncio.Event() for _ in range(num)]
        self.tokens = tokens
        self.asked: list[tuple[int, int]] = []

    async def sample(self, problem, n, first_index, *, abort):
        self.asked.append((first_index, n))

        async def one(index):
            waiting = [asyncio.ensure_future(e.wait()) for e in (self.ends[index], abort)]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for each in waiting:
                each.cancel()
            if self.ends[index].is_set():
                text, failed = f"\\boxed{{{index}}}", int(index == 0)
                return Completion(index, text, self.tokens, redrawn=failed)
            return Completion(index, "half", 3, "abort")

        for done in asyncio.as_completed([one(first_index + i) for i in range(n)]):
            yield await done

    async def close(self):
        pass


class TableVerifier:
    """Scores by index, 5 tokens each."""

    def __init__(self, scores, then=lambda index: None):
        self.scores = scores
        self.then = then
        self.seen: list[int] = []

    async def score(self, problem, completions):
        indices = [completion.index for completion in completions]
        self.seen += indices
        for index in indices:
            self.then(index)
        return [Score(self.scores[index], tokens=5) for index in indices]

    async def close(self):
        pass


def test_the_ledger_separates_what_was_used_from_what_was_aborted(tmp_path):
    # Eight are launched. The last is short: it ends first, and is kept but decides nothing. Then
    # come the first three, whose scores fit a law that needs no more: the rest is aborted.
    sampler = ScriptedSampler(8)

    def then(index):
        if index == 7:
            for first in (2, 1, 0):
                sampler.ends[first].set()

    verifier = TableVerifier([0.97, 0.98, 0.99, *[0.1] * 5], then)
    sampler.ends[7].set()
    policy = EightThenThree(max_samples=8)
    problem = Problem("p", "?", "1")
    with opened(tmp_path, [problem]) as run:
        (solution,) = solve(
            [problem], sampler, verifier, policy, run=run, predictor_tokens={"p": 2}
        )
    assert sampler.asked == [(0, 8)]
    assert solution.decision.num_samples == 3
    assert solution.decision.tokens == 30
    assert solution.decision.ledger == TokenLedger(
        completed=40, aborted=4 * 3 + 1, verifier=20, predictor=2
    )
    assert sorted(verifier.seen) == [0, 1, 2, 7]
    assert read_pool(tmp_path).mask.tolist() == [[True, True, True]]
    # Another process finds the same, without a model.
    with opened(tmp_path, [problem]) as run:
        (again,) = solve([problem], ScriptedSampler(0), verifier, policy, run=run)
    assert repr(again.decision) == repr(solution.decision)  # NaN differs from itself
    assert again.selected == solution.selected


def test_decisions_are_in_launch_order_whatever_ends_first():
    sampler = ScriptedSampler(4)
    order = [3, 1, 2, 0]

    def then(index):
        following = order[order.index(index) + 1 :]
        if following:
            sampler.ends[following[0]].set()

    verifier = TableVerifier([0.2, 0.9, 0.3, 0.9], then)
    sampler.ends[3].set()
    policy = policies.best_of_n(4)
    (solution,) = solve([Problem("p", "?")], sampler, verifier, policy)
    assert verifier.seen == order
    assert [s.completion.index for s in solution.samples] == [0, 1, 2, 3]
    assert solution.decision.selected_index == 1  # the first of the two that tie
    assert solution.correct is None


# Bad input ----------------------------------------------------------------------------------------


def test_what_cannot_be_run_is_refused(pool):
    problems = recorded_problems(pool)
    sampler, verifier = RecordedSampler(pool), RecordedVerifier(pool)
    policy = policies.best_of_n(2)
    with pytest.raises(ValueError, match="reads scores: give a verifier"):
        solve(problems, sampler, None, policy)
    with pytest.raises(ValueError, match="two problems have the id"):
        solve([*problems, problems[3]], sampler, verifier, policy)
    with pytest.raises(ValueError, match="max_in_flight is 0"):
        solve(problems, sampler, verifier, policy, max_in_flight=0)
    coupled = policies.difficulty_adaptive_self_consistency(0.9, 8)
    with pytest.raises(ValueError, match="couples all problems"):
        solve(problems, sampler, verifier, coupled)
    with pytest.raises(PoolError, match=r"has 16 completions, and the policy asks for 17"):
        solve(problems, sampler, verifier, policies.best_of_n(17))
    other = dataclasses.replace(OPTSCALE, prior=Prior(*np.full((4, 3), 0.1)))
    with pytest.raises(ValueError, match="the policy's prior: Prior: loc has shape"):
        solve(problems, sampler, verifier, other)


@pytest.mark.parametrize("score", [1.5, -0.1, float("nan")])
def test_a_score_outside_its_domain_stops_the_run(score):
    sampler = ScriptedSampler(1)
    sampler.ends[0].set()
    with pytest.raises(EngineError, match=r"problem 'p': the verifier gave completion 0 the score"):
        solve([Problem("p", "?")], sampler, TableVerifier([score]), policies.best_of_n(1))


@pytest.mark.parametrize(
    ("indices", "says"), [([0], "without completion 1"), ([0, 0], "completion 0"), ([2], "2")]
)
def test_a_sampler_that_does_not_keep_its_contract_is_named(indices, says):
    class Sampler(ScriptedSampler):
        async def sample(self, problem, n, first_index, *, abort):
            for index in indices:
                yield Completion(index, "", 1)

    with pytest.raises(EngineError, match=says):
        solve([Problem("p", "?")], Sampler(0), TableVerifier([0.5] * 3), policies.best_of_n(2))


def test_what_was_drawn_stays_drawn_when_the_verifier_fails(pool, tmp_path):
    problems, policy = recorded_problems(pool), policies.best_of_n(4)

    class Broken(RecordedVerifier):
        left = 40

        async def score(self, problem, completions):
            await asyncio.sleep(0)
            self.left -= 1
            if self.left < 0:
                raise ConnectionError("the verifier is gone")
            return await super().score(problem, completions)

    with opened(tmp_path, problems) as run, pytest.raises(ConnectionError, match="is gone"):
        solve(problems, RecordedSampler(pool), Broken(pool), policy, run=run)
    kept = on_disk(tmp_path)
    assert len(kept) > 40  # those that were not scored too
    sampler = WatchedSampler(pool)
    with opened(tmp_path, problems) as run:
        solutions = solve(problems, sampler, RecordedVerifier(pool), policy, run=run)
    assert_decisions_are_those_of_replay(solutions, replay(pool, policy))
    assert not kept & sampler.asked
    assert len(kept | sampler.asked) == 4 * len(problems)


def test_a_problem_that_cannot_be_sampled_leaves_the_others_alone(pool, tmp_path):
    problems, policy = recorded_problems(pool), policies.best_of_n(4)

    class Picky(RecordedSampler):
        async def sample(self, problem, n, first_index, *, abort):
            if problem.id == problems[7].id:
                raise ProblemError("prompt: 9000 tokens; the context is 4096")
            async for completion in super().sample(problem, n, first_index, abort=abort):
                yield completion

    for _ in range(2):  # and it is not tried again
        with opened(tmp_path, problems) as run:
            solutions = solve(problems, Picky(pool), RecordedVerifier(pool), policy, run=run)
        failed = solutions.pop(7)
        assert failed.decision.stop_reason == "failed"
        assert failed.decision.error == "prompt: 9000 tokens; the context is 4096"
        assert failed.selected is None
        assert failed.correct is False
        others = np.delete(np.arange(len(problems)), 7)
        assert_decisions_are_those_of_replay(solutions, replay(pool.subset(others), policy))


class WatchedSampler(RecordedSampler):
    def __init__(self, pool, **options):
        super().__init__(pool, **options)
        self.asked: set[tuple[str, int]] = set()

    def sample(self, problem, n, first_index, *, abort):
        self.asked |= {(problem.id, first_index + i) for i in range(n)}
        return super().sample(problem, n, first_index, abort=abort)


def on_disk(path) -> set[tuple[str, int]]:
    """What a process that was killed has left: the whole lines of its logs."""
    kept = set()
    for name in ("samples.jsonl", "drawn.jsonl"):
        for line in (path / name).read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                record = json.loads(line)
                kept.add((record["problem_id"], record["index"]))
    return kept


# Killed -------------------------------------------------------------------------------------------

KILLED = """
import json, sys
from optscale_jax import Pool, policies
from optscale_jax.live.engine import solve
from optscale_jax.backends.recorded import RecordedSampler, RecordedVerifier, recorded_problems
from optscale_jax.live.runs import Run

class Sampler(RecordedSampler):
    def sample(self, problem, n, first_index, *, abort):
        for index in range(first_index, first_index + n):
            print(json.dumps([problem.id, index]), flush=True)
        return super().sample(problem, n, first_index, abort=abort)

pool = Pool.load(sys.argv[3])
problems = recorded_problems(pool)
with Run(sys.argv[1], config="seed: 0\\n", problems=problems) as run:
    sampler = Sampler(pool, seconds_per_token=float(sys.argv[2]))
    policy = policies.first_hit(0.9, 16)
    solve(problems, sampler, RecordedVerifier(pool), policy, run=run, max_in_flight=8)
"""


def test_killed_at_three_moments_it_loses_nothing_and_comes_to_the_same_end(
    pool, tmp_path, tmp_path_factory
):
    # Made once: to draw it takes each process as long as to solve it.
    file = tmp_path_factory.mktemp("pool") / "pool.npz"
    pool.save(file)
    policy, problems = policies.first_hit(0.9, N), recorded_problems(pool)
    expected = replay(pool, policy)
    total = int(expected.num_samples.sum())
    moments = sorted(random.Random(0).sample(range(10, total - 30), 3))
    asked: Counter[tuple[str, int]] = Counter()
    for moment in [*moments, None]:
        before = on_disk(tmp_path) if moment != moments[0] else set()
        # Slow enough to be caught while at work; the last one need not be.
        script = [sys.executable, "-c", KILLED, str(tmp_path), "2e-5" if moment else "0", str(file)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        log = tmp_path / "asked.txt"
        with open(log, "w") as output:
            process = subprocess.Popen(script, stdout=output, env=environment)
            try:
                while moment and process.poll() is None and len_lines(tmp_path) < moment:
                    time.sleep(0.002)
                if moment:
                    assert process.poll() is None, "it ended before it could be killed"
                    process.send_signal(signal.SIGKILL)
                assert process.wait(timeout=120) == (-signal.SIGKILL if moment else 0)
            finally:
                process.kill()
        *whole, _ = log.read_text().split("\n")  # the last may be cut short
        now = {tuple(json.loads(line)) for line in whole}
        assert not now & before, "a completion that was on disk was drawn again"
        asked.update(now)

    lines = (tmp_path / "samples.jsonl").read_bytes()
    assert lines.endswith(b"\n")
    records = [json.loads(line) for line in lines.splitlines()]
    keys = [(record["problem_id"], record["index"]) for record in records]
    assert len(set(keys)) == len(keys)
    with opened(tmp_path, problems) as run:
        assert run.notes == []
        solutions = solve(problems, RecordedSampler(pool), RecordedVerifier(pool), policy, run=run)
        assert run.num_samples == len(keys)
    assert_decisions_are_those_of_replay(solutions, expected)


def len_lines(path) -> int:
    log = path / "samples.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def test_solve_works_where_a_loop_runs_already(pool):
    policy = policies.best_of_n(4)

    async def cell():
        return live(pool, policy)

    in_a_notebook = asyncio.run(cell())
    assert [repr(s) for s in in_a_notebook] == [repr(s) for s in live(pool, policy)]


def test_an_error_and_an_interrupt_reach_whoever_solves_where_a_loop_runs():
    sampler = ScriptedSampler(1)  # whose completion never ends
    ended = []

    class Interrupted(ScriptedSampler):
        async def sample(self, problem, n, first_index, *, abort):
            main = threading.main_thread().ident
            threading.Timer(0.05, signal.pthread_kill, [main, signal.SIGINT]).start()
            try:
                async for completion in sampler.sample(problem, n, first_index, abort=abort):
                    yield completion
            finally:
                ended.append(first_index)

    async def cell(verifier, sampler):
        return solve([Problem("p", "?")], sampler, verifier, policies.best_of_n(1))

    # As a notebook's loop, which handles no signals; asyncio.run would.
    loop = asyncio.new_event_loop()
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(cell(TableVerifier([0.5]), Interrupted(1)))
        assert ended == [0]
        with pytest.raises(ValueError, match="reads scores: give a verifier"):
            loop.run_until_complete(cell(None, sampler))
    finally:
        loop.close()


def test_solve_is_a_public_name_that_is_loaded_when_asked_for():
    assert optscale_jax.solve is solve
    assert optscale_jax.solve_async is solve_async
    script = (
        "import sys, optscale_jax; assert 'optscale_jax.live.engine' not in sys.modules; "
        "optscale_jax.solve; assert 'optscale_jax.live.engine' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
