"""The whole job on what the repository ships: live, against best-of-N, and on the recorded pool.

    python -m eval.demo [--out runs/demo]

1. train.predictor trains a head on the small reasoner's features, and eval.predict reads a prior
   off each problem;
2. eval.sample draws best-of-N of 60 problems from the small reasoner on vLLM, scored by the small
   verifier; eval.solve stops each of them as OptScale says, OptScale^0 without the priors,
   OptScale^t with them, and as the calibrated vote says, by what was learnt of the verifier's
   scores on other problems. The two engines start once;
3. they are compared, problem by problem;
4. eval.report replays every method on the shipped pool and writes its page;
5. eval.serve answers a request, with the pool's completions in the models' place.

Where vLLM is not installed, the pool stands in for the two models in 2. A demonstration
that was cut off goes on where it was, as its runs do.
"""

import contextlib
import csv
import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from optscale_jax.checks import at_least, within
from optscale_jax.cli import command, parse, show
from optscale_jax.cli.console import run_command
from optscale_jax.cli.live import live
from optscale_jax.cli.watching import duration
from optscale_jax.errors import InputError
from optscale_jax.live.config import SampleConfig, SolveConfig
from optscale_jax.live.runs import DECISIONS
from optscale_jax.live.session import Engines
from optscale_jax.report.tables import UNITS, Table
from optscale_jax.study.metrics import paired_intervals
from optscale_jax.tiny import labels_path, pool_path

__all__ = ["DemoConfig", "comparison", "main"]

BASELINE = "best-of-N"
PLAN = """\
A small language model solves arithmetic, a small verifier scores its solutions, and OptScale says
how many solutions each problem needs. Five steps, about five minutes on two cores at rest:
  1. train a predictor of scores                                     about 1 minute
  2. start both models, then solve 60 problems in four ways          about 2 minutes
  3. compare what each way spent and how often it was right          seconds
  4. every method at every setting on a recorded pool, as a page     about 2 minutes
  5. ask a gateway, whose answers OptScale decides on                seconds
Where nothing moves for a while, a line says so every half minute."""
PREDICTOR = """\
OptScaleᵗ begins with a guess of each problem's scores. A head on the small model's features learns
it from the scores of other problems; the table below says how good it is."""
LIVE = """\
Two vLLM engines start once, the model that writes and the verifier that scores. Then best-of-N
draws 32 solutions of every problem and returns the best; OptScale⁰ draws until the best of its
solutions is good enough with 95% probability, by a law fitted to the scores so far; OptScaleᵗ does
with the predictor's guess; and the calibrated vote draws until its answer is sure enough."""
REPORT = """\
64 solutions of 400 problems, drawn once: every method replays them at many settings, each tuned on
other problems than those that it is scored on. The page will say "Do not trust the bound here":
this verifier's scores lie in two clumps, which the law that OptScale fits does not describe, so
that its promise of 95% is not kept. It says so in order that you see it of your own verifier; what
is saved, and at what accuracy, is measured all the same."""
GATEWAY = """\
What decided above, behind an OpenAI-compatible address: a client asks for one answer, and OptScale
draws as many completions as it needs. The recorded pool stands in for the models here."""

SPENT = ("completed", "aborted", "predictor")
"""What of the token ledger counts in the comparison; the verifier's tokens stand apart."""


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """What to show.

    Attributes:
        predictor: Configuration of train.predictor.
        labels: Labels that the predictor is trained on.
        solve: Configuration of eval.solve.
        vote: Configuration of eval.solve with the calibrated vote, for the same problems.
        sample: Configuration of eval.sample, for the same problems with the same cap.
        pool: Pool to replay every method on.
        pool_problems: Its problems, as for eval.predict.
        comparison: Methods and their settings for it, a configuration of eval.replay.
        serve: Configuration of eval.serve, of which the first model is asked.
        question: What it is asked.
        permutations: Random orders to replay it in, at least 1.
        level: Coverage of the confidence intervals, in (0, 1).
        out: Folder for the two runs and the report.
    """

    predictor: str = "tiny"
    labels: str = str(labels_path())
    solve: str = "tiny"
    vote: str = "tiny_vote"
    sample: str = "tiny"
    pool: str = str(pool_path())
    pool_problems: str = "arithmetic-5"
    comparison: str = "tiny_table"
    serve: str = "recorded"
    question: str = "arithmetic-5/11"
    permutations: int = 5
    level: float = 0.95
    out: str = "runs/demo"

    def __post_init__(self) -> None:
        at_least(self, 1, "permutations")
        within(self, "(0, 1)", "level")


class Outcomes(NamedTuple):
    """A run, arrays over its problems in one order."""

    setting: str  # the policy's arguments
    problem_ids: list[str]
    correct: np.ndarray  # whether the completion returned is
    samples: np.ndarray  # completions that the decision rests on
    tokens: np.ndarray  # `SPENT` on it
    verifier_tokens: np.ndarray


def run(config: DemoConfig) -> None:
    """Runs the parts and shows what came of them; refuses to go on after one that failed."""
    began, out = time.monotonic(), Path(config.out)
    trained, fixed, page = out / "predictor", out / "best_of_n", out / "report"
    runs = {"OptScale⁰": out / "optscale_0", "OptScaleᵗ": out / "optscale_t"}
    runs |= {"calibrated vote": out / "calibrated_vote", BASELINE: fixed}
    priors = {name: str(out / f"{name}_priors.jsonl") for name in ("live", "pool")}
    asked = parse(SolveConfig, ["--config", config.solve], configs="solve")
    # The problems that eval.solve takes: by its own configuration, or the pool's.
    wanted = {"live": (asked.problems, asked.limit), "pool": (config.pool_problems, None)}
    stand_in, how = [], "live"
    _say(PLAN)
    if _lacks_vllm(asked):
        del wanted["live"]
        priors["live"] = priors["pool"]
        how = "on recorded completions"
        stand_in = ["--problems=null", "--recorded.pool", config.pool]
        _say(
            f"vLLM is not installed: {config.pool} stands in for the models. What the vote knows "
            "was learnt on it, so it does better here than on problems of its own."
        )
    training = ["--config", config.predictor, "--labels", config.labels, "--out", str(trained)]
    with _part("1 of 5: training the predictor", PREDICTOR):
        _command("train", training)
        for name, (problems, limit) in wanted.items():
            arguments = ["--checkpoint", str(trained), "--problems", str(problems)]
            arguments += ["--out", priors[name]]
            arguments += [] if limit is None else [f"--limit={limit}"]
            _command("predict", arguments)
    parts: list[tuple[str, type, str, list[str]]] = [
        (BASELINE, SampleConfig, config.sample, []),
        ("OptScale⁰", SolveConfig, config.solve, []),
        ("OptScaleᵗ", SolveConfig, config.solve, ["--priors", priors["live"]]),
        ("calibrated vote", SolveConfig, config.vote, []),
    ]
    with _part(f"2 of 5: the same problems four ways, {how}", LIVE), Engines() as engines:
        for name, kind, file, more in parts:
            print(f"-- {name} --", flush=True)
            given = ["--config", file, *stand_in, *more, "--out", str(runs[name])]
            folder = "sample" if kind is SampleConfig else "solve"
            live(parse(kind, given, configs=folder), engines)
    table = comparison(runs, BASELINE, level=config.level, how=how)
    with _part("3 of 5: what it saved", ""):
        (out / "comparison.md").write_text(table.to_markdown(), encoding="utf-8")
        show(table.to_rich())
    methods = ["--comparison", config.comparison, "--priors", priors["pool"]]
    options = ["--permutations", str(config.permutations), "--out", str(page)]
    options += ["--names", config.pool_problems]
    with _part("4 of 5: every method, on a recorded pool", REPORT):
        _command("report", ["--pools", config.pool, *methods, *options])
    with _part("5 of 5: a request through the gateway", GATEWAY):
        _ask_gateway(config.serve, config.question)
    # Last, where it is seen.
    print(f"{duration(time.monotonic() - began)} in all")
    for line in _in_short(table, page / "index.html", runs["OptScale⁰"]):
        print(line)


def _in_short(table: Table, page: Path, run: Path) -> list[str]:
    """What was saved, where the page is, and what to try next."""
    saved = [f"{row[0]} {row[-1]}% ({row[2]}% right)" for row in table.rows if row[-1]]
    base = next(row for row in table.rows if not row[-1])
    return [
        f"saved: of the {base[4]} tokens that {base[0]} takes a problem ({base[2]}% right): "
        + ", ".join(str(each) for each in saved),
        f"page: {page}",
        f"next: {(command := _optscale())} show {run}   "
        f"then your own pool: {command} report --pools FILE --out DIR",
    ]


def _optscale() -> str:
    """The command as a shell finds it, which need not look where `make setup` has put it."""
    beside = Path(sys.executable).with_name("optscale")
    found = shutil.which("optscale")
    return "optscale" if found or not beside.exists() else os.path.relpath(beside)


def _lacks_vllm(asked: SolveConfig) -> bool:
    """Whether the models are to run on vLLM in this process, and it is not installed."""
    in_process = "vllm" in (asked.sampler.kind, asked.verifier.backend)
    return in_process and importlib.util.find_spec("vllm") is None


def _say(text: str) -> None:
    print(f"{text}\n", flush=True)


@contextlib.contextmanager
def _part(name: str, why: str) -> Iterator[None]:
    print(f"== {name} ==", *[why] * bool(why), sep="\n", flush=True)
    started = time.monotonic()
    yield
    print(f"({duration(time.monotonic() - started)})\n", flush=True)


def _command(name: str, arguments: Sequence[str]) -> None:
    code = run_command(name, arguments)
    if code:
        raise InputError(f"{name} ended with exit code {code}")


def _ask_gateway(config: str, question: str) -> None:
    """Asks the gateway, a process of its own, and says what its answer has cost."""
    command = [sys.executable, "-m", "optscale_jax.cli", "serve", "--config", config, "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as gateway:
        try:
            assert gateway.stdout is not None
            url = next((line.split()[-1] for line in gateway.stdout), "")
            if not url.startswith("http"):
                raise InputError("the gateway does not start")
            body = json.dumps({"messages": [{"role": "user", "content": question}]}).encode()
            headers = {"Content-Type": "application/json"}
            asked = urllib.request.Request(f"{url}/chat/completions", body, headers)
            with urllib.request.urlopen(asked, timeout=60) as response:
                answer = json.load(response)
        finally:
            gateway.terminate()
    print(_in_words(answer), flush=True)


def _in_words(answer: Mapping[str, Any]) -> str:
    """What a gateway's answer says, and what it has cost."""
    choice, spent = answer["choices"][0], answer["usage"]["optscale"]
    known, said = choice["optscale"], choice["message"]["content"]
    return (
        f"{answer['model']} answers {said} on {known['samples']} completions of "
        f"{spent['candidates']} begun, with the stop reason {known['stop_reason']}: "
        f"{spent['completed']:,} tokens in completed ones, {spent['aborted']:,} in aborted ones, "
        f"{spent['verifier']:,} of the verifier"
    )


def comparison(
    runs: Mapping[str, Path], baseline: str, *, level: float = 0.95, how: str = "live"
) -> Table:
    """Compares runs of the same problems, problem by problem.

    Args:
        runs: Name to the run's directory.
        baseline: The name of the run that the others are compared with.
        level: Coverage of the intervals, in (0, 1).
        how: How the problems were solved, for the title.

    Returns:
        The table, a row for each run in order.

    Raises:
        InputError: If the runs' problems differ.
    """
    found = {name: _outcomes(directory) for name, directory in runs.items()}
    base = found[baseline]
    for name, run in found.items():
        if run.problem_ids != base.problem_ids:
            raise InputError(
                f"{runs[name]} and {runs[baseline]}: not the same problems, so they cannot be "
                "compared"
            )
    accuracy, tokens = (
        paired_intervals(
            {name: getattr(run, field)[None] for name, run in found.items()},
            baseline=baseline,
            key=jax.random.key(0),
            level=level,
        )
        for field in ("correct", "tokens")
    )
    columns = ["policy", "setting", "accuracy, %", "samples", "tokens", "verifier tokens"]
    rows = []
    for name, run in found.items():
        row = [name, run.setting, f"{100 * accuracy[name].value.mean:.1f}"]
        row += [f"{run.samples.mean():.1f}", f"{run.tokens.mean():,.0f}"]
        row += [f"{run.verifier_tokens.mean():,.0f}", "", ""]
        if run is not base:
            saved = -tokens[name].difference.mean / tokens[baseline].value.mean
            difference = UNITS["accuracy"].ends(accuracy[name].difference)
            # Adding 0 makes a rounded -0.0 positive.
            row[-2:] = difference, str(round(100 * float(saved)) + 0)
        rows.append(row)
    return Table(
        title=f"{len(base.problem_ids)} problems, {how}",
        columns=[*columns, "difference, points", "saved, %"],
        rows=rows,
        notes=[
            "samples and tokens: of a problem; aborted completions and what the predictor reads "
            "included",
            f"difference in accuracy with its {level:.0%} interval, and tokens saved: against "
            f"{baseline}",
        ],
    )


def _outcomes(directory: Path) -> Outcomes:
    with open(directory / "per_problem.csv", encoding="utf-8", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["problem_id"])
    with open(directory / DECISIONS, encoding="utf-8") as file:
        decisions = {line["problem_id"]: line for line in map(json.loads, file)}
    ledgers = [decisions[row["problem_id"]]["ledger"] for row in rows]
    return Outcomes(
        setting=rows[0]["setting"],
        problem_ids=[row["problem_id"] for row in rows],
        correct=np.array([float(row["correct"] or "nan") for row in rows]),
        samples=np.array([float(row["n_samples"]) for row in rows]),
        tokens=np.array([sum(ledger[part] for part in SPENT) for ledger in ledgers], float),
        verifier_tokens=np.array([ledger["verifier"] for ledger in ledgers], float),
    )


main = command(
    DemoConfig, run, __name__, interrupted="what was drawn is kept; run the same command to go on"
)

if __name__ == "__main__":
    sys.exit(main())
