"""The live loop: samples and scores while a policy decides, one coroutine a problem.

A problem asks its policy how many more completions to draw, has them drawn and scored as they end,
and shows them to the policy in launch order, asking again after each. As soon as the policy has
enough, requests still in flight are aborted. Hundreds of problems do so at once and thereby fill
the batches of one sampler and one verifier, which know nothing of each other or of the policy.

The policy's functions are those that replay runs, so a recorded run replayed comes to the same
decisions (`optscale_jax.replay`). With a run directory (`live.runs`) everything drawn is
kept as it comes, and a run that was cut off goes on from there.

Problems that share a budget (`study.allocation`) ask its queue instead of the policy whether to go
on, and stay open until it is spent.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import math
import threading
from collections import Counter, defaultdict
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from optscale_jax.answers import AnswerIds, Equal, Extract, answers_equal, extract_answer
from optscale_jax.backends.base import Sampler, Verifier, metered
from optscale_jax.derived_signals import SignalColumns, signal_arrays
from optscale_jax.equivalence import EquivalenceChecker
from optscale_jax.errors import EngineError, InputError, ProblemError
from optscale_jax.live.decider import Decider, State
from optscale_jax.live.limits import Limits
from optscale_jax.live.runs import Run
from optscale_jax.policies import Info, Policy, StopReason
from optscale_jax.pool import Pool
from optscale_jax.records import (
    Completion,
    Decision,
    Problem,
    Sample,
    Score,
    TokenLedger,
    measured,
)
from optscale_jax.study.allocation import Budget, Queue, check_budget

__all__ = [
    "FAILED",
    "Engine",
    "Solution",
    "Solver",
    "ask_again",
    "solutions_pool",
    "solve",
    "solve_async",
]

FAILED = "failed"
"""Stop reason of a problem that cannot be sampled or scored."""


@dataclasses.dataclass(frozen=True)
class Solution:
    """What came of one problem.

    Attributes:
        problem: The problem.
        decision: What the policy did, and what it cost.
        selected: The completion returned, with its score; None if none was eligible.
        samples: The completions that the policy decided on, in launch order; without their texts,
            unless the problem had limits.
        drawn: How many completions were begun by this process, those aborted included.
    """

    problem: Problem
    decision: Decision
    selected: Sample | None
    samples: tuple[Sample, ...]
    drawn: int = 0

    @property
    def answer(self) -> str | None:
        """The answer returned; None = none."""
        return None if self.selected is None else self.selected.answer

    @property
    def correct(self) -> bool | None:
        """Whether it is the gold answer; None where that is not known."""
        if self.problem.answer is None:
            return None
        return self.selected is not None and bool(self.selected.correct)


@runtime_checkable
class Solver(Protocol):
    """What solves problems as an `Engine` does, somewhere else."""

    async def ready(self) -> None:
        """Returns when it can begin."""
        ...

    async def solve(self, problem: Problem, place: int, count: int) -> Solution:
        """Solves a problem that is not decided yet; as `Engine.solve`."""
        ...


def ask_again(problem: Problem, previous: str | None) -> Problem:
    """The problem as a later round of multi-round thinking asks it.

    Args:
        problem: The problem.
        previous: The answer of the round before; None = it gave none.

    Returns:
        A problem of the same id, with the previous answer shown, in the words of Tian et al.
        (2025), arXiv 2503.19855; the problem itself where there is no answer to show.
    """
    if previous is None:
        return problem
    return dataclasses.replace(
        problem,
        text=f"{problem.text}\n\nThe assistant's previous answer is: <answer> {previous} </answer>,"
        " and please re-answer.",
    )


def solve(
    problems: Sequence[Problem],
    sampler: Sampler,
    verifier: Verifier | None,
    policy: Policy,
    *,
    run: Run | None = None,
    priors: Mapping[str, Any] | None = None,
    predictor_tokens: Mapping[str, int] | None = None,
    extract: Extract = extract_answer,
    equal: Equal = answers_equal,
    max_in_flight: int = 256,
    max_ahead: int | None = None,
    budget: Budget | None = None,
    on_solution: Callable[[Solution], None] | None = None,
) -> list[Solution]:
    """Solves problems with as few samples as a policy asks for.

    Where an event loop runs already, as in a notebook, the work is done in a thread with a loop of
    its own, which JAX's scoped settings (`with jax.default_device(...)`) do not reach.

    Args:
        problems: The problems, with different ids.
        sampler: Draws completions.
        verifier: Scores them; None for policies that read no scores.
        policy: Decides how many.
        run: As for `solve_async`, which is this as a coroutine, and so are the others.
        priors: Likewise.
        predictor_tokens: Likewise.
        extract: Likewise.
        equal: Likewise.
        max_in_flight: Likewise.
        max_ahead: Likewise.
        budget: Likewise.
        on_solution: Likewise.

    Returns:
        One solution a problem, in order.

    Raises:
        InputError: As `solve_async`, whose other errors may come too.
    """
    work = solve_async(
        problems,
        sampler,
        verifier,
        policy,
        run=run,
        priors=priors,
        predictor_tokens=predictor_tokens,
        extract=extract,
        equal=equal,
        max_in_flight=max_in_flight,
        max_ahead=max_ahead,
        budget=budget,
        on_solution=on_solution,
    )
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    return _run_in_a_thread(work)


def _run_in_a_thread(work: Coroutine[Any, Any, list[Solution]]) -> list[Solution]:
    """`asyncio.run` where this thread's loop runs already."""
    begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = Future()
    interrupted = threading.Event()

    async def watched() -> list[Solution]:
        task = asyncio.current_task()
        assert task is not None
        begun.set_result((asyncio.get_running_loop(), task))
        if interrupted.is_set():
            work.close()
            raise asyncio.CancelledError
        return await work

    with ThreadPoolExecutor(1) as thread:
        try:
            # An interrupt may come as soon as the thread runs, before `submit` returns.
            return thread.submit(asyncio.run, watched()).result()
        except KeyboardInterrupt:
            # Only this thread hears of it; what is in flight must end too.
            interrupted.set()
            if begun.done():
                loop, task = begun.result()
                with contextlib.suppress(RuntimeError):  # it has just ended
                    loop.call_soon_threadsafe(task.cancel)
            raise


async def solve_async(
    problems: Sequence[Problem],
    sampler: Sampler,
    verifier: Verifier | None,
    policy: Policy,
    *,
    run: Run | None = None,
    priors: Mapping[str, Any] | None = None,
    predictor_tokens: Mapping[str, int] | None = None,
    extract: Extract = extract_answer,
    equal: Equal = answers_equal,
    max_in_flight: int = 256,
    max_ahead: int | None = None,
    budget: Budget | None = None,
    on_solution: Callable[[Solution], None] | None = None,
    elsewhere: Sequence[Solver] = (),
) -> list[Solution]:
    """Solves problems with as few samples as a policy asks for.

    Neither the sampler nor the verifier is closed.

    Args:
        problems: The problems, with different ids.
        sampler: Draws completions.
        verifier: Scores them; None for policies that read no scores.
        policy: Decides how many.
        run: Keeps what is drawn, and gives what an earlier process drew; opened for these problems
            and this policy's kind. None: nothing is kept.
        priors: A prior for each problem's id, from a predictor; ids that it lacks get the policy's.
        predictor_tokens: Tokens that predicting each of them took, for the ledger.
        extract: From a completion's text to its answer.
        equal: Whether two answers are the same; called in a thread where it may take long.
        max_in_flight: How many problems are at work at once, at least 1.
        max_ahead: How many completions of a problem may be drawn beyond those that its policy has
            seen, at least 1; None = as many as it asks for. A policy changes its mind: fewer at
            once waste fewer, and take longer where too few problems are left to fill a batch.
        budget: What all problems may spend together, on completions, verifier and predictor; they
            are gone back to until it is spent. The policy says what one more gains, and its own
            rule to stop is not asked. max_in_flight and max_ahead have no effect then. None: each
            problem by itself. `most` is by default the sum of `most_tokens` of sampler and
            verifier.
        on_solution: Called with each solution when it is there and, with a run, on disk.
        elsewhere: What solves the problems in the place of this process, each up to max_in_flight
            at once; the sampler and the verifier are only asked with a budget then.

    Returns:
        One solution a problem, in order; that of a problem that cannot be sampled or scored, such
        as one longer than the context, has the stop reason "failed" and says why.

    Raises:
        InputError: If the policy needs scores and there is no verifier, if it couples problems
            (`Policy.plan`), if ids repeat, or a number is outside its domain. With a budget, if the
            policy has no `gain` or is sequential, lengths are not known, or it is too small for a
            completion of each problem.
        EngineError: If the sampler yields other completions than it was asked for, or a score is
            not in [0, 1].
        RunError: If the run cannot be written.
    """
    _check(problems, verifier, policy, run, max_in_flight, max_ahead)
    if budget is not None:
        check_budget(policy)
        if budget.most is None:
            budget = dataclasses.replace(budget, most=_most_tokens(sampler, verifier))
    engine = Engine(
        sampler=sampler,
        verifier=verifier,
        policy=policy,
        decide=Decider(policy),
        run=run,
        priors=priors or {},
        predictor_tokens=predictor_tokens or {},
        extract=extract,
        equal=equal,
        max_ahead=max_ahead if policy.kind == "parallel" else 1,
    )
    solutions: list[Solution | None] = [None] * len(problems)
    queue = iter(enumerate(problems))

    async def work_through_the_queue(solver: Solver | None = None) -> None:
        if solver is not None:
            await solver.ready()
        for place, problem in queue:
            decided = run is not None and run.decision(problem.id) is not None
            solve = engine.solve if solver is None or decided else solver.solve
            solved(place, await solve(problem, place, len(problems)))

    def solved(place: int, solution: Solution) -> None:
        solutions[place] = solution
        if on_solution is not None:
            on_solution(solution)

    with _first_error():
        async with asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(run.keep_writing()) if run is not None else None
            async with asyncio.TaskGroup() as workers:
                if budget is not None:
                    workers.create_task(engine.share(problems, budget, solved))
                else:
                    solvers = elsewhere or [None]
                    # Not all to the one that is ready first.
                    each = min(max_in_flight, -(-len(problems) // len(solvers)))
                    for solver in [*solvers] * each:
                        workers.create_task(work_through_the_queue(solver))
            if writer is not None:
                writer.cancel()
    return [solution for solution in solutions if solution is not None]


def solutions_pool(solutions: Sequence[Solution]) -> Pool:
    """The completions that a run's policy decided on, as a pool.

    Args:
        solutions: At least one, of a run with one verifier, or with none.

    Returns:
        The pool [P, N], N being the most that a problem drew.
    """
    counts = np.array([len(solution.samples) for solution in solutions])
    mask = np.arange(counts.max()) < counts[:, None]

    def filled(value: Callable[[Sample], Any], empty: Any) -> np.ndarray:
        array = np.full(mask.shape, empty)
        array[mask] = [value(sample) for solution in solutions for sample in solution.samples]
        return array

    signals = [SignalColumns() for _ in solutions]
    for columns, solution in zip(signals, solutions, strict=True):
        for sample in solution.samples:
            columns.add(sample.signals)
    scored = all(s.score is not None for solution in solutions for s in solution.samples)
    gold = np.array([-1 if s.problem.answer is None else 0 for s in solutions])
    return Pool.from_arrays(
        scores=filled(lambda sample: sample.score, 0.0) if scored else None,
        tokens=filled(lambda sample: sample.completion.tokens, -1),
        answers=filled(lambda sample: sample.answer_id, -1),
        gold=gold if (gold >= 0).any() else None,
        problem_ids=[solution.problem.id for solution in solutions],
        mask=mask,
        signals=signal_arrays([columns.columns() for columns in signals], mask.shape),
        source="run",
    )


def _check(
    problems: Sequence[Problem],
    verifier: Verifier | None,
    policy: Policy,
    run: Run | None,
    max_in_flight: int,
    max_ahead: int | None,
) -> None:
    if policy.couples_problems:
        raise InputError(
            "this policy couples all problems of a run, so it cannot decide while sampling: draw a "
            "pool (python -m eval.sample) and replay it (python -m eval.replay)"
        )
    if policy.uses_scores and verifier is None:
        raise InputError("this policy reads scores: give a verifier")
    if run is not None and run.kind != policy.kind:
        raise InputError(f"the run is {run.kind} and the policy {policy.kind}")
    for name, value in (("max_in_flight", max_in_flight), ("max_ahead", max_ahead)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")
    seen: set[str] = set()
    for problem in problems:
        if problem.id in seen:
            raise InputError(f"two problems have the id {problem.id!r}")
        seen.add(problem.id)


def _most_tokens(sampler: Sampler, verifier: Verifier | None) -> int:
    most = 0
    for what, model in (("sampler", sampler), ("verifier", verifier)):
        if model is not None:
            bound = getattr(model, "most_tokens", None)
            if bound is None:
                raise InputError(
                    f"budget: the {what} does not say how many tokens one completion may take "
                    "(most_tokens), so what is under way could exceed any budget; leave it out"
                )
            most += bound
    return most


@contextlib.contextmanager
def _first_error():
    """Raises the first of a group of errors, which is what went wrong; the others followed."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from error.__cause__


# One problem --------------------------------------------------------------------------------------


class Engine(NamedTuple):
    """What solves one problem after another, as `solve_async` does, which has the fields."""

    sampler: Sampler
    verifier: Verifier | None
    policy: Policy
    decide: Decider
    run: Run | None = None
    priors: Mapping[str, Any] = {}
    predictor_tokens: Mapping[str, int] = {}
    extract: Extract = extract_answer
    equal: Equal = answers_equal
    max_ahead: int | None = None

    async def solve(
        self, problem: Problem, place: int = 0, count: int = 1, *, limits: Limits | None = None
    ) -> Solution:
        """Solves one problem, or gives what an earlier process made of it.

        Args:
            problem: The problem.
            place: Its place among the run's, for a policy with a prior for each.
            count: How many problems the run has.
            limits: With them, the best answer so far is the solution as soon as one is reached, its
                name then being the stop reason; nothing that a sampler or a verifier does is an
                error; and where the policy finds no completion eligible, the best of all is
                selected.
        """
        work = _Work(self, problem, limits=limits)
        decision = self.run.decision(problem.id) if self.run is not None else None
        if decision is None:
            state, more = self.decide.start(self.priors.get(problem.id), place, count)
            try:
                with _first_error(), work.limited():
                    async with asyncio.TaskGroup() as tasks:
                        state = await work.decide(tasks, state, more)
            except ProblemError as error:
                # The other problems can be solved.
                decision = work.failure(str(error))
            except BaseException:
                work.call_off()
                raise
            else:
                state = await work.with_the_rest(state)
                decision = work.decision(*self.decide.end(state))
            await self._keep(decision)
        return work.solution(decision)

    async def _keep(self, decision: Decision) -> None:
        if self.run is not None:
            self.run.add_decision(decision)
            await self.run.durable()

    async def share(
        self, problems: Sequence[Problem], budget: Budget, solved: Callable[[int, Solution], None]
    ) -> None:
        """Solves all problems within one budget, and tells their places and solutions."""
        assert budget.most is not None
        works = [_Work(self, problem, budget.most) for problem in problems]
        decisions = [self.run and self.run.decision(problem.id) for problem in problems]
        if None in decisions:
            # Those that an earlier process had decided too: it is their queue.
            try:
                found = await self._spend(problems, works, budget)
            except BaseException:
                for work in works:
                    work.call_off()
                raise
            for place, decision in enumerate(found):
                if decisions[place] is None:
                    decisions[place] = decision
                    if self.run is not None:
                        self.run.add_decision(decision)
            if self.run is not None:
                await self.run.durable()
        for place, (work, decision) in enumerate(zip(works, decisions, strict=True)):
            assert decision is not None
            solved(place, work.solution(decision))

    async def _spend(
        self, problems: Sequence[Problem], works: "Sequence[_Work]", budget: Budget
    ) -> list[Decision]:
        cap, count = int(self.policy.max_samples), len(works)
        states = [
            self.decide.start(self.priors.get(problem.id), place, count)[0]
            for place, problem in enumerate(problems)
        ]
        gains = [math.inf] * count
        earlier = {
            (place, index): known
            for place, work in enumerate(works)
            for index, known in work.earlier().items()
        }
        spent = sum(work.before.total for work in works)
        queue = Queue(count, cap, budget, spent=spent, earlier=earlier)
        async with asyncio.TaskGroup() as tasks:
            while (turn := queue.turn()) is not None:
                place, index, launch = turn
                work = works[place]
                if launch:
                    tasks.create_task(work.draw_one(index))
                    continue
                sample, gain = await work.arrival(index), None
                if sample is not None:
                    states[place], _ = self.decide.step_now(states[place], sample)
                    gains[place] = gain = self.decide.gain(states[place])
                queue.add(gain, work.cost(index))
        decisions = []
        for work, state, gain in zip(works, states, gains, strict=True):
            if work.failed:
                decisions.append(work.failure(work.failed[min(work.failed)]))
                continue
            reason = StopReason.MAX_SAMPLES if work.seen == cap else StopReason.BUDGET_SPENT
            selected, info = self.decide.end(state)
            info = info._replace(stop_reason=reason)
            decisions.append(work.decision(selected, info, gain))
        return decisions


_NOTHING = TokenLedger()


class _Work:
    """A problem's completions so far.

    Attributes:
        samples: By launch order, those scored; some may be missing in between.
        launched: How many have been launched, from the first on.
        seen: How many the policy has been shown, from the first on.
        failed: With a budget, why a completion could not be drawn or scored, by launch order.
        beyond: Indices that it has been shown behind one that is missing, once a limit was reached.
        before: What was spent before this process drew anything, and left no completion.
    """

    def __init__(
        self,
        engine: Engine,
        problem: Problem,
        most: float | int = 0,
        limits: Limits | None = None,
    ):
        self._engine = engine
        self._problem = problem
        self._limits = limits
        self._scoring: dict[int, asyncio.Task[None]] = {}
        self.beyond: list[int] = []
        self._ids = AnswerIds(problem.answer, equal=engine.equal)
        self._ids_lock = asyncio.Lock()
        self._enough = asyncio.Event()
        self._arrived = asyncio.Event()
        self.seen = 0
        self.launched = 0
        self.samples: dict[int, Sample] = {}
        # With limits, how many of the samples have been counted, and their tokens.
        self._counted, self._used = 0, Counter[str]()
        # Those that have ended, by launch order; some are scored by now, and are samples.
        self._ended: dict[int, Completion] = {}
        self.failed: dict[int, str] = {}
        self._most = most
        # With a budget, how often each has been launched: by processes that were cut off, too.
        self._launches: Counter[int] = Counter()
        self.before = TokenLedger(predictor=engine.predictor_tokens.get(problem.id, 0))
        # What is spent on completions that nobody asks for any more.
        self._surplus = TokenLedger()
        # By launch order, what was spent on one in vain, by an error or because it was cancelled.
        self._lost: defaultdict[int, TokenLedger] = defaultdict(TokenLedger)
        if engine.run is not None:
            self.before += engine.run.spent(problem.id)
            for sample in engine.run.samples(problem.id):
                self.samples[sample.completion.index] = sample
                self._ids.restore(sample.answer, sample.answer_id)
            self._ended = {one.index: one for one in engine.run.unscored(problem.id)}
            self._launches.update(engine.run.launches(problem.id))

    async def decide(self, tasks: asyncio.TaskGroup, state: State, more: int) -> State:
        """Draws until the policy has enough, and aborts what is then in flight.

        Args:
            tasks: Takes what draws and scores; when it ends, every request has.
            state: The policy's state.
            more: How many it asks for.

        Returns:
            Its state at the stop.
        """
        for completion in list(self._ended.values()):
            self._begin_to_score(tasks, completion)
        limits = self._limits
        exactly = None if limits is None else limits.exactly
        more = more if exactly is None else exactly
        self._launch(tasks, more)
        while more > 0 and not self._cut:
            while not (there := self._next()) and not self._cut:
                self._arrived.clear()
                await self._arrived.wait()
            if there:
                every = exactly is not None
                state, wanted = await self._engine.decide.step(state, there, every=every)
                for more in wanted:
                    self.seen += 1
                    more = more if exactly is None else exactly - self.seen
                    if more > 0:
                        self._count_up()
                    self._launch(tasks, more)
        self._enough.set()
        if limits is not None:
            # A run keeps these; here somebody is waiting.
            for task in self._scoring.values():
                task.cancel()
        return state

    def _next(self) -> list[Sample]:
        """Those that the policy has not been shown, up to the first that is missing."""
        there = list[Sample]()
        while (sample := self.samples.get(self.seen + len(there))) is not None:
            there.append(sample)
        return there

    def earlier(self) -> dict[int, tuple[float | int, bool]]:
        """What each completion of an earlier process cost at most, and whether it is there."""
        indices = {*self.samples, *self._ended, *self._launches}
        # What scoring those that are not scored yet will cost is not known.
        return {
            index: (
                self.cost(index) + self._most * (index in self._ended),
                index in self.samples or index in self._ended,
            )
            for index in indices
        }

    def cost(self, index: int) -> float | int:
        """Tokens spent on a completion, as far as they are known; never too few."""
        return self._ledger(index).total

    def _ledger(self, index: int) -> TokenLedger:
        sample, times = self.samples.get(index), self._launches[index]
        completion = self._ended.get(index) if sample is None else sample.completion
        # How far one had come that was under way when a process was cut off is not known: it counts
        # in full, beside what it takes now that it is drawn again.
        lost = self._lost.get(index, _NOTHING)
        if completion is None:
            return TokenLedger(aborted=times * self._most) + lost
        tokens = measured(completion.tokens)
        again = completion.redrawn + (tokens * (times - 1) if times > 1 else 0)
        read = 0 if sample is None else measured(sample.verifier_tokens)
        return TokenLedger(tokens, again, read) + lost

    @contextlib.contextmanager
    def _metered(self, index: int, entry: str) -> Iterator[None]:
        """Counts what is lost as long as it lasts."""
        with metered() as tokens:
            try:
                yield
            finally:
                if tokens:
                    self._lost[index] += TokenLedger(**{entry: sum(tokens)})

    async def draw_one(self, index: int) -> None:
        """Has a completion drawn and scored, unless that is done; keeps what is wrong with it."""
        drawn = self._ended.get(index)
        try:
            with _first_error():
                async with asyncio.TaskGroup() as tasks:
                    if drawn is not None:
                        await self._score(drawn)
                    elif index not in self.samples:
                        self._launches[index] += 1
                        if self._engine.run is not None:
                            self._engine.run.add_launch(self._problem.id, index)
                            await self._engine.run.durable()
                        await self._draw(tasks, index, 1)
        except ProblemError as error:
            self.failed[index] = str(error)
            if index not in self._ended:
                self._launches[index] -= 1  # what it has cost is known: what was lost
            self._arrived.set()

    async def arrival(self, index: int) -> Sample | None:
        """The completion, once it is there; None if it or one before it has failed."""
        while index not in self.samples and index not in self.failed:
            self._arrived.clear()
            await self._arrived.wait()
        if min(self.failed, default=index + 1) <= index:
            return None
        sample = self.samples[index]
        counts = {"sampler": sample.completion.tokens, "verifier": sample.verifier_tokens}
        if silent := [what for what, count in counts.items() if count < 0]:
            raise InputError(
                f"budget: the {silent[0]} does not say how many tokens completion {index} of "
                f"problem {self._problem.id!r} took, which a budget counts; leave the budget out"
            )
        self.seen += 1
        return sample

    @property
    def _decided(self) -> list[int]:
        """Indices of all that the policy has been shown."""
        return [*range(self.seen), *self.beyond]

    @property
    def _cut(self) -> bool:
        return self._limits is not None and self._limits.reason is not None

    def limited(self) -> contextlib.AbstractContextManager[None]:
        """As long as it lasts, limits end the work."""
        if self._limits is None:
            return contextlib.nullcontext()
        return self._limits.watching(self._arrived.set)

    def _count_up(self) -> None:
        if self._limits is not None:
            # Those that came since the last time: a sum over all would be the square of them.
            for one in itertools.islice(self.samples.values(), self._counted, None):
                ended, read = one.completion, max(one.verifier_tokens, 0)
                self._used.update(
                    tokens=max(ended.tokens, 0), prompt=ended.prompt_tokens, verifier=read
                )
            self._counted = len(self.samples)
            self._limits.spend(calls=self.seen, **self._used)

    async def with_the_rest(self, state: State) -> State:
        """The state with what has come behind one that is missing, once a limit was reached."""
        if self._cut:
            self.beyond = sorted(index for index in self.samples if index >= self.seen)
            if self.beyond:
                there = [self.samples[index] for index in self.beyond]
                state, _ = await self._engine.decide.step(state, there, every=True)
        return state

    def _best_of_all(self) -> int:
        """Index of the best completion, whether or not a policy may return it; -1 for none."""
        good = [one for one in self.samples.values() if one.completion.finish_reason != "error"]
        scored = [one for one in good if one.score is not None and one.completion.text]
        if scored:
            return max(scored, key=lambda one: (one.score, -one.completion.index)).completion.index
        # Those that no verifier has read vote.
        for completion in (one for i, one in self._ended.items() if i not in self.samples):
            answer = self._engine.extract(completion.text)
            unscored = Sample(self._problem.id, completion, None, answer, -1, self._ids.gold_id)
            good += [unscored] if completion.finish_reason != "error" else []
        votes = Counter(one.answer for one in good if one.answer is not None)
        rank = [(votes[one.answer or ""], len(one.completion.text) > 0, one) for one in good]
        best = max(rank, key=lambda r: (*r[:2], -r[2].completion.index), default=None)
        if best is None or not any(best[:2]):
            return -1
        self.samples[best[2].completion.index] = best[2]
        return best[2].completion.index

    def _begin_to_score(self, tasks: asyncio.TaskGroup, completion: Completion) -> None:
        if self._engine.verifier is None:
            with self._made_do_with("verifier_failed"):
                # Mostly there is nothing to wait for, and a task would cost more than the rest.
                if self._keep(completion, None, self._answer(completion)):
                    return
        self._scoring[completion.index] = tasks.create_task(self._score(completion))

    @contextlib.contextmanager
    def _made_do_with(self, reason: str) -> Iterator[None]:
        """What fails in it is with limits a reason to make do with what there is."""
        try:
            yield
        except Exception as error:
            if self._limits is None:
                raise
            self._limits.cut(reason, error)

    def _launch(self, tasks: asyncio.TaskGroup, more: int) -> None:
        """Starts drawing what the policy asks for, and is neither there nor under way."""
        ahead = more if self._engine.max_ahead is None else min(more, self._engine.max_ahead)
        if self._limits is not None and self._limits.calls is not None:
            ahead = min(ahead, self._limits.calls - self.seen)
        wanted = range(self.launched, self.seen + ahead)
        if not wanted or self._cut:
            return
        self.launched = wanted.stop
        missing = [one for one in wanted if one not in self.samples and one not in self._ended]
        # Those that follow each other differ from their places by one number.
        for _, group in itertools.groupby(enumerate(missing), lambda each: each[1] - each[0]):
            (_, first), *others = group
            tasks.create_task(self._draw(tasks, first, 1 + len(others)))

    async def _draw(self, tasks: asyncio.TaskGroup, first: int, n: int) -> None:
        due = set(range(first, first + n))
        with self._made_do_with("sampler_failed"), self._metered(first, "aborted"):
            drawn = self._engine.sampler.sample(self._asked(), n, first, abort=self._enough)
            await self._take(tasks, drawn, due)

    async def _take(
        self, tasks: asyncio.TaskGroup, drawn: AsyncIterator[Completion], due: set[int]
    ) -> None:
        async for completion in drawn:
            if completion.index not in due:
                raise EngineError(
                    f"problem {self._problem.id!r}: the sampler yielded completion "
                    f"{completion.index}, which was not asked for or came before"
                )
            due.remove(completion.index)
            tokens, again = measured(completion.tokens), completion.redrawn
            if completion.finish_reason == "abort":
                self._surplus += TokenLedger(aborted=tokens + again)
            elif self._enough.is_set():
                # It ended before the abort reached it; scoring it would change nothing any more.
                self._surplus += TokenLedger(completed=tokens, aborted=again)
            else:
                self._ended[completion.index] = completion
                if self._engine.run is not None and self._engine.verifier is not None:
                    self._engine.run.add_drawn(self._problem.id, completion)
                self._begin_to_score(tasks, completion)
        if due:
            raise EngineError(
                f"problem {self._problem.id!r}: the sampler ended without completion {min(due)}"
            )

    def _asked(self) -> Problem:
        if self._engine.policy.kind == "parallel" or self.seen == 0:
            return self._problem
        # The last round that gave an answer is the one that stands.
        answers = [self.samples[index].answer for index in range(self.seen)]
        return ask_again(self._problem, next((a for a in reversed(answers) if a), None))

    async def _score(self, completion: Completion) -> None:
        with self._made_do_with("verifier_failed"):
            score, answer = await self._read(completion), self._answer(completion)
            # One at a time, so that two new answers that are the same get one id.
            async with self._ids_lock:
                if not self._keep(completion, score, answer):
                    await asyncio.to_thread(self._ids.add, answer)
                    self._keep(completion, score, answer)
        self._scoring.pop(completion.index, None)

    async def _read(self, completion: Completion) -> Score | None:
        """The verifier's score; None without one."""
        verifier, problem = self._engine.verifier, self._problem
        if verifier is None:
            return None
        if completion.finish_reason == "error":
            return Score(0.0, note=_note(completion))  # never the best, whatever its text holds
        with self._metered(completion.index, "verifier"):
            (score,) = await verifier.score(problem, [completion])
        if not 0 <= score.value <= 1:  # NaN neither
            raise EngineError(
                f"problem {problem.id!r}: the verifier gave completion {completion.index} the "
                f"score {score.value}; scores are in [0, 1]"
            )
        return score

    def _answer(self, completion: Completion) -> str | None:
        """The completion's answer; one that went wrong has none, whatever its text holds."""
        return None if _note(completion) else self._engine.extract(completion.text)

    def _keep(self, completion: Completion, score: Score | None, answer: str | None) -> bool:
        """Makes a sample of a completion, unless it takes long to say which answer it has."""
        engine, ids = self._engine, self._ids
        if isinstance(engine.equal, EquivalenceChecker) and ids.known(answer) is None:
            return False
        sample = Sample(
            problem_id=self._problem.id,
            completion=completion,
            score=None if score is None else score.value,
            answer=answer,
            answer_id=ids.add(answer),
            gold_id=ids.gold_id,
            steps=() if score is None else score.steps,
            verifier_tokens=0 if score is None else score.tokens,
            note=_note(completion) if score is None else score.note,
        )
        if engine.run is not None:
            engine.run.add_sample(sample)
        self.samples[completion.index] = sample
        self._arrived.set()
        return True

    def solution(self, decision: Decision) -> Solution:
        """What came of the problem."""
        chosen = decision.selected_index
        whole = range(decision.num_samples - len(self.beyond))
        samples = [self.samples[index] for index in (*whole, *self.beyond)]
        return Solution(
            problem=self._problem,
            decision=decision,
            selected=None if chosen < 0 else self.samples[chosen],
            samples=tuple(samples if self._limits else map(_without_text, samples)),
            drawn=self.launched,
        )

    def decision(self, selected: int, info: Info, gain: float = math.nan) -> Decision:
        """What the policy did, and what it cost."""
        reason = StopReason(int(info.stop_reason)).name.lower()
        if self._limits is not None:
            fixed = self._limits.exactly is not None
            reason = self._limits.reason or ("fixed_count" if fixed else reason)
            selected = self._best_of_all() if selected < 0 else selected
        return self._decision(
            selected,
            reason,
            required=int(info.required),
            params={name: float(value) for name, value in info.params.items()},
            confidence=None if math.isnan(info.confidence) else float(info.confidence),
            gain=gain if math.isfinite(gain) else None,
        )

    def call_off(self) -> None:
        """Keeps what was spent on a problem that this process is not going to decide."""
        if self._limits is not None:
            self._limits.ledger = self._spent()
        run = self._engine.run
        if run is None:
            return
        # With a budget, those that were under way are known by their launches, and count in full.
        lost = (self._lost[i] for i in list(self._lost) if i in self._ended or not self._most)
        spent = sum(lost, start=self._surplus)
        if self._engine.verifier is None and not self._most:
            # On disk only with their answers.
            for index in self._ended.keys() - self.samples.keys():
                one = self._ended[index]
                spent += TokenLedger(aborted=measured(one.tokens) + one.redrawn)
        if spent.total != 0:
            run.add_spent(self._problem.id, spent)

    def _spent(self) -> TokenLedger:
        indices = {*self.samples, *self._ended, *self._launches, *self._lost}
        return sum(map(self._ledger, indices), start=self.before + self._surplus)

    def failure(self, error: str) -> Decision:
        """That nothing comes of the problem, and what it cost."""
        return self._decision(-1, FAILED, required=-1, params={}, error=error)

    def _decision(self, selected: int, stop_reason: str, **fields: Any) -> Decision:
        spent = sum(measured(self.samples[index].completion.tokens) for index in self._decided)
        return Decision(
            problem_id=self._problem.id,
            num_samples=len(self._decided),
            tokens=-1 if math.isnan(spent) else int(spent),
            selected_index=selected,
            stop_reason=stop_reason,
            ledger=self._spent(),
            **fields,
        )


def _note(completion: Completion) -> str | None:
    """What went wrong with a completion; None if nothing did."""
    wrong = completion.finish_reason == "error"
    return completion.error or "error" if wrong else None


def _without_text(sample: Sample) -> Sample:
    return dataclasses.replace(sample, completion=dataclasses.replace(sample.completion, text=""))
