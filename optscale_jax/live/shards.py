"""Shards of a live run on Ray: actors that each have a sampler and a verifier of their own.

    with Shards(config, run) as shards:
        run_live(problems, shards.start, policy, run, elsewhere=shards.all)

The driver, which is the process of the command, hands out problems one by one; a shard solves those
that it has by the loop of `live.engine`, and keeps what it draws in its part of the run's directory
(`live.runs`). A shard that dies is started again by Ray and asked the same again; what it had drawn
it finds in its part. Where Ray has no room for it, its node having gone, the others take over its
problems, with what it had drawn, until there is room. With a budget one queue decides for all
problems, in the order of launches, so the loop is the driver's, and shards only draw and score.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import uuid
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import ray
from ray.exceptions import RayActorError, RayTaskError

from optscale_jax.answers import EXTRACTORS
from optscale_jax.backends.base import Sampler, Verifier, lost, metered
from optscale_jax.backends.cores import leave_workers_their_cores
from optscale_jax.backends.text import one_line
from optscale_jax.equivalence import comparison
from optscale_jax.errors import (
    BackendError,
    EngineError,
    InputError,
    ProblemError,
    RunError,
    RunWarning,
)
from optscale_jax.live.config import LiveConfig, RayConfig
from optscale_jax.live.decider import Decider, decide_on_the_cpu
from optscale_jax.live.engine import Engine, Solution
from optscale_jax.live.models import recorded_pool, start_models
from optscale_jax.live.runs import Earlier, Part, Run, is_at_work
from optscale_jax.plugins import load_object
from optscale_jax.records import Completion, Problem, Score
from optscale_jax.signals import terminations

__all__ = ["Shards"]

T = TypeVar("T")

_STORE = 128 << 20
"""Bytes of shared memory for a cluster of this run's own: what goes through it is small."""
_REACHED_SECONDS = 10.0
_STOP_SECONDS = 30.0
# A process of a shard answers at once, whatever it has under way.
_PATIENCE_SECONDS = 20.0


class _Asked(NamedTuple):
    """A problem that a shard is to solve; as `solve_async` and `Engine.solve` have the fields."""

    problem: Problem
    place: int
    count: int
    prior: Any
    predictor_tokens: int
    earlier: Earlier | None
    with_own: bool = False  # whether `earlier` has what the shard's own part holds, too


class _GoneError(Exception):
    """A shard has no process, and no node may have room for one.

    Args:
        earlier: What there is of a problem that it was asked.
    """

    def __init__(self, earlier: Earlier | None = None):
        super().__init__()
        self.earlier = earlier


# The driver ---------------------------------------------------------------------------------------


class Shards:
    """All shards of a run, for as long as it is open; where Ray is connected already, on that.

    Args:
        config: The run's configuration, with an address of Ray.
        run: The run.
        priors: As for `solve_async`.
        predictor_tokens: Likewise.

    Attributes:
        all: The shards, which solve problems once they are started.
    """

    def __init__(
        self,
        config: LiveConfig,
        run: Run,
        *,
        priors: Mapping[str, Any],
        predictor_tokens: Mapping[str, int],
    ):
        self._config, self._own = config, False
        self.all: list[_Remote] = []
        for number in range(config.ray.shards):
            self.all.append(_Remote(number, self.all, config, run, priors, predictor_tokens))

    def __enter__(self) -> "Shards":
        return self

    def __exit__(self, *exception: object) -> None:
        for shard in self.all:
            shard.kill()
        if self._own:
            ray.shutdown()

    @property
    def timeouts(self) -> int:
        """Answers that took too long to read, in shards that are stopped."""
        return sum(shard.timeouts for shard in self.all)

    def start(self) -> tuple[Sampler, Verifier | None]:
        """Starts all, and returns once one is ready, with a budget all: what then draws and scores.

        Raises:
            InputError: If there is no Ray at the address, or the cluster has no room.
            BackendError: A model cannot be started, and others as `start_models`.
        """
        if not ray.is_initialized():
            self._own = True
            _connect(self._config.ray)
        _check_room(self._config.ray)
        beginning = [shard.begin() for shard in self.all]
        alike = self._config.shared_budget is not None
        ready, _ = ray.wait(beginning, num_returns=len(beginning) if alike else 1)
        with _plainly("a shard"):
            sampler_most, verifier_most = ray.get(ready)[0]
        verifier = _RemoteVerifier(self.all, verifier_most) if self._config.verify else None
        return _RemoteSampler(self.all, sampler_most), verifier


class _Remote:
    """A shard, as the driver has it."""

    def __init__(
        self,
        number: int,
        everyone: Sequence["_Remote"],
        config: LiveConfig,
        run: Run,
        priors: Mapping[str, Any],
        predictor_tokens: Mapping[str, int],
    ):
        self._name = f"shard {number} of {config.ray.shards}"
        self._everyone = everyone
        self._config, self._run = config, run
        self._priors, self._predictor_tokens = priors, predictor_tokens
        self._part = Path()
        self._actor: Any = None
        self._ready: Any = None
        self._sign: asyncio.Future[None] | None = None
        self._born = ""
        self._asked: dict[str, tuple[_Asked, asyncio.Future[Solution]]] = {}
        self._new: list[_Asked] = []
        self._received: list[str] = []
        self._working: asyncio.Task[None] | None = None
        self.busy = self.timeouts = 0

    def begin(self) -> Any:
        """Starts it; what comes of it is there when it is ready."""
        where = self._config.ray
        options = ray.remote(_Shard).options(
            num_cpus=where.cpus_per_shard,
            num_gpus=where.gpus_per_shard,
            max_restarts=where.restarts,
            max_task_retries=-1,
            max_concurrency=getattr(self._config, "batch", 0) + 3,
            scheduling_strategy="SPREAD",
        )
        self._part = self._run.begin_part().resolve()
        self._actor = options.remote(self._config, self._part, Path.cwd())
        self._ready = self._actor.ready.remote()
        return self._ready

    @property
    def is_gone(self) -> bool:
        """Whether it has been asked for a sign of life, and has given none yet."""
        return self._sign is not None and not self._sign.done()

    async def ready(self) -> None:
        """Returns when its models are there, or others have to do without it."""
        with contextlib.suppress(_GoneError):
            await self._answer(self._ready)

    async def solve(self, problem: Problem, place: int, count: int) -> Solution:
        """Has it solve a problem, or while it is gone another; as `Engine.solve`."""
        prior = self._priors.get(problem.id)
        tokens = self._predictor_tokens.get(problem.id, 0)
        asked = _Asked(problem, place, count, prior, tokens, self._run.earlier(problem.id))
        shard = self
        while True:
            while shard.is_gone:
                shard = _least(self._everyone)
                if shard.is_gone:  # and so are all
                    signs = [one._sign for one in self._everyone if one._sign is not None]
                    await asyncio.wait(signs, return_when=asyncio.FIRST_COMPLETED)
            try:
                return await shard._solve(asked)
            except _GoneError as gone:
                asked = asked._replace(earlier=gone.earlier, with_own=True)

    async def _solve(self, asked: _Asked) -> Solution:
        problem = asked.problem
        solved: asyncio.Future[Solution] = asyncio.get_running_loop().create_future()
        self._asked[problem.id] = asked, solved
        self._new.append(asked)
        if self._working is None or self._working.done():
            self._working = asyncio.ensure_future(self._work())
        return await solved

    async def _work(self) -> None:
        """Hands it problems and takes solutions, many with one call, as long as there are any."""
        while self._asked:
            try:
                await self._exchange()
            except Exception as error:
                asked, self._asked, self._new = self._asked, {}, []
                errors: dict[str, Exception] = dict.fromkeys(asked, error)
                if isinstance(error, _GoneError):
                    errors = await asyncio.to_thread(self._left, [one for one, _ in asked.values()])
                for name, (_, solved) in asked.items():
                    if not solved.done():
                        solved.set_exception(errors[name])

    async def _exchange(self) -> None:
        """Hands it what is new, and takes what it has solved, with one call."""
        new, self._new = self._new, []
        born, found = await self.ask("work", self._born, new, self._received)
        if born != self._born:  # it has been started, again perhaps, and knows of nothing
            self._born, self._received = born, []
            self._new = [asked for asked, _ in self._asked.values()]
            return
        self._received = [solution.problem.id for solution in found]
        for solution in found:
            _, solved = self._asked.pop(solution.problem.id)
            if not solved.done():
                solved.set_result(solution)
        await asyncio.sleep(0)  # whoever has a solution now asks for the next

    def _left(self, asked: Sequence[_Asked]) -> dict[str, Exception]:
        """That it is gone, with what there is of each problem, or why that cannot be read."""
        try:
            part = Part(self._part, kind=self._run.kind)
            with part:
                for one in asked:
                    part.take(one.problem.id, one.earlier)
                return {one.problem.id: _GoneError(part.earlier(one.problem.id)) for one in asked}
        except RunError as error:
            return {one.problem.id: error for one in asked}

    async def ask(self, method: str, *given: Any) -> Any:
        """What its method gives.

        Raises:
            _GoneError: No process of it answers.
        """
        self.busy += 1
        try:
            return await self._answer(getattr(self._actor, method).remote(*given))
        finally:
            self.busy -= 1

    async def _answer(self, call: Awaitable[T]) -> T:
        """What a call gives, however long it takes, while a process of the shard is there."""
        answer = asyncio.ensure_future(call)
        try:
            with _plainly(self._name):
                while not (await asyncio.wait([answer], timeout=_PATIENCE_SECONDS))[0]:
                    await self._find()
                return await answer
        finally:
            answer.cancel()

    async def _find(self) -> None:
        """Raises a `_GoneError` if it gives no sign of life and nobody is at its part."""
        sign = self._sign
        if sign is None or sign.done():
            sign = self._sign = asyncio.ensure_future(self._actor.alive.remote())
        if (await asyncio.wait([sign], timeout=_PATIENCE_SECONDS))[0]:
            await sign
        elif not is_at_work(self._part):
            says = (
                f"{self._name} has no process, and the cluster perhaps no room for one; others "
                "take over its problems until it is there again"
            )
            warnings.warn(says, RunWarning, stacklevel=2)
            raise _GoneError

    async def stop(self) -> None:
        """Has it keep what it has, and end what is under way."""
        if self._actor is not None and not self.is_gone:
            with _plainly(self._name), contextlib.suppress(RayActorError, TimeoutError):
                stopped = self._actor.stop.options(max_task_retries=0).remote()
                async with asyncio.timeout(_STOP_SECONDS):
                    self.timeouts = await stopped

    def kill(self) -> None:
        """Ends its process."""
        if self._sign is not None:
            self._sign.cancel()
        if self._actor is not None:
            ray.kill(self._actor)


class _RemoteSampler:
    """Draws where least is under way."""

    def __init__(self, shards: Sequence[_Remote], most_tokens: int | None):
        self._shards = shards
        self.most_tokens = most_tokens

    async def sample(
        self, problem: Problem, n: int, first_index: int, *, abort: asyncio.Event
    ) -> AsyncIterator[Completion]:
        """Gives completions once all have ended; with a budget none is aborted."""
        for completion in await _least_busy(self._shards, "sample", problem, n, first_index):
            yield completion

    async def close(self) -> None:
        """Stops all shards."""
        await asyncio.gather(*(shard.stop() for shard in self._shards))


class _RemoteVerifier:
    """Scores where least is under way."""

    def __init__(self, shards: Sequence[_Remote], most_tokens: int | None):
        self._shards = shards
        self.most_tokens = most_tokens

    async def score(self, problem: Problem, completions: Sequence[Completion]) -> list[Score]:
        """Has them scored."""
        return await _least_busy(self._shards, "score", problem, completions)

    async def close(self) -> None:
        """Does nothing: the sampler has stopped the shards."""


def _least(shards: Sequence[_Remote]) -> _Remote:
    """The one that has least under way of those that are there."""
    return min(shards, key=lambda one: (one.is_gone, one.busy, len(one._asked)))


async def _least_busy(shards: Sequence[_Remote], method: str, *given: Any) -> Any:
    while True:
        with contextlib.suppress(_GoneError):
            found, tokens = await _least(shards).ask(method, *given)
            break
    lost(tokens)
    if isinstance(found, ProblemError):
        raise found
    return found


@contextlib.contextmanager
def _plainly(shard: str) -> Iterator[None]:
    """Raises what went wrong in a shard as if it had gone wrong here."""
    try:
        yield
    except RayTaskError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, (InputError, BackendError, EngineError, ImportError)):
            raise cause from error
        raise
    except RayActorError as error:
        raise BackendError(
            f"{shard} has died more often than ray.restarts allows; Ray's logs say why"
        ) from error


def _connect(config: RayConfig) -> None:
    address = config.address or ""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", address)
    parts = urlsplit(address if "://" in address else f"//{address}")
    own = {"include_dashboard": False, "object_store_memory": _STORE} if address == "local" else {}
    # As a command has set them.
    before = {one: signal.getsignal(one) for one in terminations()}
    try:
        if address not in ("auto", "local"):
            # Ray itself tries for minutes.
            at = parts.hostname or "", parts.port or 0
            socket.create_connection(at, _REACHED_SECONDS).close()
        with warnings.catch_warnings():
            # Ray's own processes are other programs, which have no use for JAX's threads.
            warnings.filterwarnings("ignore", r"os\.fork", RuntimeWarning)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (OSError, ValueError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or one_line(error)
        raise InputError(
            f"ray.address: {address}: no Ray there ({why}); start one (ray start --head), or give "
            "local"
        ) from error
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _check_room(config: RayConfig) -> None:
    """Raises an `InputError` if the nodes have no room for all shards: some would never start."""
    needs = {"GPU": config.gpus_per_shard, "CPU": config.cpus_per_shard}
    needs = {name: amount for name, amount in needs.items() if amount}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not needs:
        return
    room = sum(
        min(int(node.get(name, 0) / amount + 1e-6) for name, amount in needs.items())
        for node in nodes
    )
    if room < config.shards:
        asked = " and ".join(f"{amount:g} {name}" for name, amount in needs.items())
        there = ", ".join(
            " and ".join(f"{node.get(name, 0):g} {name}" for name in needs) for node in nodes
        )
        raise InputError(
            f"ray.shards: {config.shards} shards of {asked} each do not fit the cluster, which has "
            f"room for {room} (its nodes have {there}); lower it, or what each shard asks for"
        )


# A shard ------------------------------------------------------------------------------------------


class _Shard:
    """The actor.

    Args:
        config: The run's.
        part: Its part of the run's directory.
        folder: The driver's, which relative paths start from.
    """

    def __init__(self, config: LiveConfig, part: Path, folder: Path):
        with contextlib.suppress(OSError):  # of another machine, perhaps, as is said below
            os.chdir(folder)
        decide_on_the_cpu()
        leave_workers_their_cores()
        self._config, self._part = config, part
        self._closing = contextlib.ExitStack()
        self._born = uuid.uuid4().hex
        self._solving: dict[str, asyncio.Task[Solution]] = {}
        self._solved = asyncio.Event()
        # Here a failure would have Ray start it again and again.
        self._starting = asyncio.ensure_future(self._start())

    async def _start(self) -> Engine:
        config = self._config
        if not self._part.is_dir():
            raise RunError(
                f"{self._part}: not there on {socket.gethostname()}; give an --out on a file "
                "system that all nodes share"
            )
        policy = config.configured_policy().policy
        run = self._closing.enter_context(Part(self._part, kind=policy.kind))
        self._writing = asyncio.ensure_future(run.keep_writing())
        pool = await asyncio.to_thread(recorded_pool, config)
        sampler, verifier = await asyncio.to_thread(start_models, config, pool)
        return Engine(
            sampler=sampler,
            verifier=verifier,
            policy=policy,
            decide=Decider(policy),
            run=run,
            extract=load_object(config.extract, what="extract", shipped=EXTRACTORS),
            equal=self._closing.enter_context(
                comparison(config.equal, seconds=config.equal_seconds)
            ),
            max_ahead=config.max_ahead if policy.kind == "parallel" else 1,
        )

    async def alive(self) -> None:
        """A sign of life."""

    async def ready(self) -> tuple[int | None, int | None]:
        """The most tokens of a completion and of a score, once the models are there."""
        engine = await self._starting
        models = engine.sampler, engine.verifier
        sampler, verifier = (getattr(model, "most_tokens", None) for model in models)
        return sampler, verifier

    async def work(
        self, born: str, asked: Sequence[_Asked], received: Sequence[str]
    ) -> tuple[str, list[Solution]]:
        """Begins on problems, and gives all solutions that have not been received, at least one.

        Asked the same twice, as Ray may where an answer was lost, it gives the same.

        Args:
            born: The process that has been asked before; another is only told which one this is.
            asked: The problems.
            received: Ids of those whose solutions came with the answer before.
        """
        if born != self._born:
            return self._born, []
        for name in received:
            self._solving.pop(name, None)
        for one in asked:
            if one.problem.id not in self._solving:
                task = asyncio.ensure_future(self._solve(one))
                task.add_done_callback(lambda _: self._solved.set())
                self._solving[one.problem.id] = task
        while not (done := [task for task in self._solving.values() if task.done()]):
            self._solved.clear()
            await self._solved.wait()
        return self._born, [task.result() for task in done]

    async def _solve(self, asked: _Asked) -> Solution:
        engine, problem = await self._starting, asked.problem
        assert isinstance(engine.run, Part)
        engine.run.take(problem.id, asked.earlier, with_own=asked.with_own)
        engine = engine._replace(
            priors={} if asked.prior is None else {problem.id: asked.prior},
            predictor_tokens={problem.id: asked.predictor_tokens},
        )
        return await engine.solve(problem, asked.place, asked.count)

    async def sample(self, problem: Problem, n: int, first_index: int) -> tuple[Any, int]:
        """Draws completions, or says why not, and how many tokens were lost."""
        sampler = (await self._starting).sampler

        async def drawn() -> list[Completion]:
            given = sampler.sample(problem, n, first_index, abort=asyncio.Event())
            return [completion async for completion in given]

        return await _metered(drawn)

    async def score(self, problem: Problem, completions: Sequence[Completion]) -> tuple[Any, int]:
        """Scores completions, or says why not, and how many tokens were lost."""
        verifier = (await self._starting).verifier
        assert verifier is not None
        return await _metered(lambda: verifier.score(problem, completions))

    async def stop(self) -> int:
        """Ends what is under way, keeps what it has cost, closes the models; answers not read."""
        works = [*self._solving.values(), self._starting]
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)
        if self._starting.cancelled() or self._starting.exception() is not None:
            return 0
        engine = self._starting.result()
        self._writing.cancel()
        await asyncio.wait([self._writing])
        self._closing.close()
        for model in (engine.sampler, engine.verifier):
            if model is not None:
                await model.close()
        return getattr(engine.equal, "timeouts", 0)


async def _metered(work: Callable[[], Awaitable[T]]) -> tuple[T | ProblemError, int]:
    with metered() as tokens:
        try:
            return await work(), sum(tokens)
        except ProblemError as error:
            return error, sum(tokens)
