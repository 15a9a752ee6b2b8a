"""A live run from its directory to its solutions, whatever becomes of the process on the way.

    with Run("runs/mine", config="", problems=problems) as run:
        solutions = run_live(problems, lambda: (sampler, verifier), policy, run)

What is drawn is kept as it comes; a run that was cut off goes on where it was, and one that is
finished starts no model.
"""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from optscale_jax.answers import Equal, Extract, answers_equal, extract_answer
from optscale_jax.backends.base import Sampler, Verifier
from optscale_jax.backends.prm import PrmVerifier
from optscale_jax.errors import BackendError, EngineError, PoolError, RunError, Terminated
from optscale_jax.live.engine import Solution, Solver, solve_async
from optscale_jax.live.runs import Run
from optscale_jax.policies import Policy
from optscale_jax.records import Problem
from optscale_jax.signals import leave_terminal, terminations
from optscale_jax.study.allocation import Budget

__all__ = ["Engines", "run_live"]


class Engines:
    """Models that runs of one process share: each is started once, and closed at the end.

    Models belong to the event loop that they first work in, so that all runs have one.

        with Engines() as engines:
            for ...:
                models = lambda: engines.started(key, start)
                run_live(problems, models, policy, run, engines=engines)
    """

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._held: dict[str, tuple[Sampler, Verifier | None]] = {}

    def started(
        self, key: str, start: Callable[[], tuple[Sampler, Verifier | None]]
    ) -> tuple[Sampler, Verifier | None]:
        """The models of a key, which `start` starts where no run has asked for them yet."""
        if key not in self._held:
            self._held[key] = start()
        _, verifier = self._held[key]
        # What one run has paid for is not another's.
        if isinstance(verifier, PrmVerifier):
            verifier.forget()
        return self._held[key]

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Does a run's work in the loop of all of them."""
        return self._runner.run(work)

    def __enter__(self) -> "Engines":
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            for models in self._held.values():
                self._runner.run(_closing(_nothing(), *models))
        finally:
            self._runner.close()


async def _nothing() -> None:
    """Is there already."""


def run_live(
    problems: Sequence[Problem],
    models: Callable[[], tuple[Sampler, Verifier | None]],
    policy: Policy,
    run: Run,
    *,
    priors: Mapping[str, Any] | None = None,
    predictor_tokens: Mapping[str, int] | None = None,
    extract: Extract = extract_answer,
    equal: Equal = answers_equal,
    max_in_flight: int = 256,
    max_ahead: int | None = None,
    budget: Budget | None = None,
    on_solution: Callable[[Solution], None] | None = None,
    engines: Engines | None = None,
    elsewhere: Sequence[Solver] = (),
) -> list[Solution]:
    """Solves the problems of a run and finishes it.

    Args:
        problems: The problems that the run was opened with.
        models: Starts the sampler and the verifier; called where a problem is not decided yet.
            Both are closed at the end, unless there are `engines`.
        policy: Decides how many completions a problem gets.
        run: Keeps what is drawn.
        priors: As for `solve_async`, and so are the others.
        predictor_tokens: Likewise.
        extract: Likewise.
        equal: Likewise.
        max_in_flight: Likewise.
        max_ahead: Likewise.
        budget: Likewise.
        on_solution: Likewise.
        engines: What holds the models for several runs; None: this run has its own.
        elsewhere: As for `solve_async`; `models` starts them.

    Returns:
        One solution a problem, in order.

    Raises:
        RunError: If a model fails or the disk does; it says what is kept.
        Terminated: At a SIGTERM or SIGHUP, after what was in flight is aborted and kept.
    """
    decided = all(run.decision(problem.id) is not None for problem in problems)
    try:
        # Before the event loop, whose signals wait until it is idle: an engine takes a while.
        sampler, verifier = (_Absent(), _Absent()) if decided else models()
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
            elsewhere=() if decided else elsewhere,
        )
        if engines is None:
            solutions = asyncio.run(_until_terminated(_closing(work, sampler, verifier)))
        else:
            solutions = engines.run(_until_terminated(work))
        run.finish()
    except (BackendError, EngineError, PoolError, RunError, ImportError) as error:
        if not run.num_samples:
            raise RunError(str(error)) from error
        # A recorded pool that is too small stays so.
        again = "" if isinstance(error, PoolError) else ": run the same command to go on"
        kept = f"{run.num_samples} completions are kept in {run.path}"
        raise RunError(f"{error}; {kept}{again}") from error
    return solutions


async def _closing(
    work: Coroutine[Any, Any, Any], sampler: Sampler, verifier: Verifier | None
) -> Any:
    try:
        return await work
    finally:
        await sampler.close()
        if verifier is not None:
            await verifier.close()


async def _until_terminated(work: Coroutine[Any, Any, list[Solution]]) -> list[Solution]:
    """Awaits the work; a signal to end cancels it, so that what is in flight is kept."""
    task = asyncio.ensure_future(work)
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        leave_terminal()
        task.cancel()

    # In an event loop an exception from a signal's handler would end whichever callback it hits.
    loop = asyncio.get_running_loop()
    signals = {one: signal.getsignal(one) for one in terminations()}
    for one in signals:
        loop.add_signal_handler(one, terminate)
    try:
        return await task
    except asyncio.CancelledError:
        if terminated:
            raise Terminated from None
        raise
    finally:
        for one, before in signals.items():
            loop.remove_signal_handler(one)
            # Which leaves the system's own, that ends the process as it stands.
            if before is not None:
                signal.signal(one, before)


class _Absent:
    """Sampler and verifier of a run that is finished, which asks neither."""

    most_tokens = 1

    def sample(self, problem: Problem, n: int, first_index: int, *, abort: asyncio.Event) -> Any:
        raise AssertionError(f"the run is finished, but {problem.id!r} wants {n} completions")

    async def score(self, problem: Problem, completions: Sequence[Any]) -> Any:
        raise AssertionError(f"the run is finished, but {problem.id!r} wants scores")

    async def close(self) -> None:
        """Does nothing."""
