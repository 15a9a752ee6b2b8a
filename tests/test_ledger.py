"""The ledger: every token that was drawn or read is in it once, whatever became of it."""

import asyncio
import contextlib
import math
import random

import pytest

from optscale_jax.backends.base import lost, metered, spent_on
from optscale_jax.backends.concurrency import as_they_end
from optscale_jax.backends.config import JudgeConfig
from optscale_jax.backends.generative import GenerativeVerifier
from optscale_jax.errors import BackendError, ProblemError
from optscale_jax.live.engine import Decider, Engine, solve, solve_async
from optscale_jax.live.limits import Limits
from optscale_jax.live.runs import Run
from optscale_jax.policies import Policy, until
from optscale_jax.records import Completion, Problem, Score
from tests.loopback import (
    GOOD,
    PROBLEM,
    Endless,
    Scripted,
    answer,
    chunk,
    config,
    events,
    made,
    serving,
)


class EightThenFive(Policy):
    """Asks for eight at once, and has enough with five."""

    rule_uses_scores = False

    def rule(self, state):
        return until(state.count >= 5, more=8 - state.count)


POLICY = EightThenFive(max_samples=8)


class Models:
    """A sampler and a verifier: a moment a token, each counted when it comes; some work fails."""

    def __init__(self, seed, fails=0.03, waits=lambda: asyncio.sleep(0)):
        self.chance, self.fails, self.waits = random.Random(seed), fails, waits
        self.drawn = self.read = 0

    async def sample(self, problem, n, first_index, *, abort):
        tasks = [asyncio.create_task(self._one(first_index + i, abort)) for i in range(n)]
        async for one in as_they_end(tasks, unread=lambda one: lost(spent_on(one))):
            yield one

    async def _one(self, index, abort):
        tries = [self.chance.randint(1, 9) for _ in range(self.chance.choice((1, 1, 2)))]
        fails, come = self.chance.random() < self.fails, 0
        try:
            for _ in range(sum(tries)):
                if abort.is_set():
                    return Completion(index, "", come, "abort")
                await self.waits()
                come += 1
                self.drawn += 1
            if fails:
                raise ProblemError("refused")
        except BaseException:
            lost(come)
            raise
        redrawn = sum(tries[1:])
        return Completion(index, f"\\boxed{{{index % 3}}}", come - redrawn, redrawn=redrawn)

    async def score(self, problem, completions):
        tokens, come = self.chance.randint(1, 9), 0
        try:
            for _ in range(tokens):
                await self.waits()
                come += 1
                self.read += 1
            if self.chance.random() < self.fails:
                raise ProblemError("not scored")
        except BaseException:
            lost(come)
            raise
        return [Score(0.5, tokens=tokens) for _ in completions]

    async def close(self):
        pass


def assert_all_counted(ledgers, models):
    ledgers = list(ledgers)
    assert sum(one.completed + one.aborted for one in ledgers) == sum(m.drawn for m in models)
    assert sum(one.verifier for one in ledgers) == sum(m.read for m in models)


@pytest.mark.parametrize("seed", range(12))
def test_a_run_that_is_interrupted_and_has_problems_that_fail_counts_every_token(tmp_path, seed):
    chance = random.Random(seed)
    problems = [Problem(str(i), "?", "1") for i in range(4)]
    models = [Models(10 * seed + i) for i in range(4)]
    verified = seed % 3 > 0
    policy = POLICY if verified else EightThenFive(max_samples=8, selection="majority")

    async def work(one, run, moments):
        verifier = one if verified else None
        task = asyncio.create_task(solve_async(problems, one, verifier, policy, run=run))
        for _ in range(moments):
            await asyncio.sleep(0)
        task.cancel()
        return await task

    # Cut off at three random moments, and then not.
    for one, moments in zip(models, [*(chance.randint(3, 60) for _ in range(3)), 0], strict=True):
        with Run(tmp_path, config="", problems=problems) as run:
            verifier = one if verified else None
            if moments:
                with contextlib.suppress(asyncio.CancelledError):
                    asyncio.run(work(one, run, moments))
            else:
                solutions = asyncio.run(solve_async(problems, one, verifier, policy, run=run))
    assert_all_counted((each.decision.ledger for each in solutions), models)


@pytest.mark.parametrize("seed", range(12))
def test_a_problem_with_a_limit_or_without_a_client_counts_every_token(seed):
    models = Models(seed, fails=0.1)
    moments = random.Random(seed).randint(2, 60)

    async def work():
        engine = Engine(models, models, POLICY, Decider(POLICY))
        limits = Limits()
        task = asyncio.create_task(engine.solve(Problem("p", "?"), limits=limits))
        for _ in range(moments):
            await asyncio.sleep(0)
        if seed % 2:
            limits.cut("seconds")
        else:
            task.cancel()
        try:
            return (await task).decision.ledger
        except asyncio.CancelledError:
            return limits.ledger

    assert_all_counted([asyncio.run(work())], [models])


def test_a_refused_completion_a_probe_and_a_cancelled_one_say_what_they_had_drawn():
    endless, held = (Endless(chunk("so far", tokens=32)) for _ in range(2))

    async def refuse(writer):
        await endless.read(2)
        writer.write(answer(400, {"error": {"message": "the prompt is longer than the context"}}))

    async def drawing(*answers, n, cancel=False):
        async with serving(Scripted(*answers)) as urls:
            sampler = await made(config(urls, attempts=2))
            try:
                with metered() as tokens:
                    if cancel:
                        drawing = asyncio.create_task(drawn(sampler, n))
                        await held.read(n)
                        drawing.cancel()
                        await asyncio.wait([drawing])
                        return sum(tokens), []
                    try:
                        found = await drawn(sampler, n)
                    except ProblemError:
                        found = []
                    return sum(tokens), found
            finally:
                await sampler.close()

    async def drawn(sampler, n):
        return [one async for one in sampler.sample(PROBLEM, n, 0, abort=asyncio.Event())]

    assert asyncio.run(drawing(endless, endless, refuse, n=3)) == (64, [])
    assert asyncio.run(drawing(held, n=2, cancel=True)) == (64, [])
    # Two tries of 7 tokens, and 5 of the simple request that shows that the server is well.
    half = events(chunk("half", tokens=7), done=False)
    tokens, (one,) = asyncio.run(drawing(half, half, GOOD, n=1))
    assert (tokens, one.finish_reason, one.tokens, one.redrawn) == (0, "error", 7, 12)


@pytest.mark.parametrize("error", [ProblemError("refused"), BackendError("gone")])
def test_a_judge_that_fails_in_the_middle_counts_the_verdicts_that_came(error):
    class Failing(Models):
        async def sample(self, problem, n, first_index, *, abort):
            yield Completion(0, "Verdict: correct", 10, "stop", 100, redrawn=3)
            lost(4)  # of the one that fails
            raise error

    verifier = GenerativeVerifier(JudgeConfig(samples=2), Failing(0))

    async def work():
        with metered() as tokens:
            try:
                (score,) = await verifier.score(PROBLEM, [Completion(0, "2", 1)])
                return score.tokens + sum(tokens)
            except BackendError:
                return sum(tokens)

    assert asyncio.run(work()) == 100 + 10 + 3 + 4


def test_verdicts_of_unknown_length_make_an_unknown_count():
    class Silent(Models):
        async def sample(self, problem, n, first_index, *, abort):
            yield Completion(0, "Verdict: correct", -1)

    verifier = GenerativeVerifier(JudgeConfig(samples=1), Silent(0))
    models = Models(0, fails=0)
    (solution,) = solve([Problem("p", "?")], models, verifier, POLICY)
    assert math.isnan(solution.decision.ledger.verifier)
    assert solution.decision.ledger.completed > 0
