"""The whole job on what the repository ships: live, against best-of-N, and on the recorded pool.

    python -m eval.demo [--out runs/demo]

1. eval.solve samples the small reasoner on vLLM, scores with the small verifier, and stops each
   problem as OptScale says;
2. eval.sample draws best-of-N of the same problems with the same cap, and the two are compared,
   problem by problem;
3. eval.report replays every method on the shipped pool and writes its page.

A demonstration that was cut off goes on where it was, as its runs do.
"""

import csv
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console

from eval import report, sample, solve
from eval.cli import BadInput, command
from optscale_jax.metrics import compare
from optscale_jax.report.tables import Table
from optscale_jax.runs import DECISIONS

__all__ = ["DemoConfig", "comparison", "main"]

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """What to show.

    Attributes:
        solve: Configuration of eval.solve.
        sample: Configuration of eval.sample, for the same problems with the same cap.
        pool: Pool to replay every method on.
        permutations: Random orders to replay it in, at least 1.
        level: Coverage of the confidence intervals, in (0, 1).
        out: Folder for the two runs and the report.
    """

    solve: str = str(ROOT / "configs" / "solve" / "tiny.yaml")
    sample: str = str(ROOT / "configs" / "sample" / "tiny.yaml")
    pool: str = str(ROOT / "optscale_jax" / "tiny" / "pool.npz")
    permutations: int = 5
    level: float = 0.95
    out: str = "runs/demo"

    def __post_init__(self) -> None:
        """Refuses numbers outside their domain.

        Raises:
            ValueError: Naming the first such field.
        """
        if self.permutations < 1:
            raise ValueError(f"permutations is {self.permutations}; it must be at least 1")
        if not 0 < self.level < 1:
            raise ValueError(f"level is {self.level}; it must be in (0, 1)")


class Outcomes(NamedTuple):
    """A run, arrays over its problems in one order.

    Attributes:
        policy: Its name.
        setting: Its arguments.
        problem_ids: The problems.
        correct: Whether the completion returned is correct.
        samples: Completions that the decision rests on.
        tokens: Sampled for it, in completions that ended and in those aborted.
        verifier_tokens: Read by the verifier.
    """

    policy: str
    setting: str
    problem_ids: list[str]
    correct: np.ndarray
    samples: np.ndarray
    tokens: np.ndarray
    verifier_tokens: np.ndarray


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return command(
        DemoConfig,
        run,
        argv,
        prog="python -m eval.demo",
        description="Live sampling against best-of-N, and every method on the shipped pool.",
        interrupted="what was drawn is kept; run the same command to go on",
    )


def run(config: DemoConfig) -> None:
    """Runs the three parts and shows what came of them.

    Args:
        config: What to show.

    Raises:
        BadInput: If a part fails, which has said why.
    """
    out = Path(config.out)
    live, fixed, page = out / "live", out / "best_of_n", out / "report"
    _part("adaptive sampling", solve.main, ["--config", config.solve, "--out", str(live)])
    _part("best-of-N", sample.main, ["--config", config.sample, "--out", str(fixed)])
    table = comparison(live, fixed, level=config.level)
    (out / "comparison.md").write_text(table.to_markdown(), encoding="utf-8")
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(table.to_rich())
    options = ["--permutations", str(config.permutations), "--out", str(page)]
    _part("every method", report.main, ["--pools", f"[{json.dumps(config.pool)}]", *options])
    print(f"comparison: {out / 'comparison.md'}")
    print(f"report: {page / 'index.html'}")


def _part(name: str, command: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> None:
    print(f"== {name} ==", flush=True)
    started = time.monotonic()
    code = command(arguments)
    if code:
        raise BadInput(f"{name} ended with exit code {code}")
    print(f"({time.monotonic() - started:.0f} s)\n", flush=True)


def comparison(live: Path, fixed: Path, *, level: float = 0.95) -> Table:
    """Compares two runs of the same problems, problem by problem.

    Args:
        live: Directory of the run in question.
        fixed: Directory of the run to compare it with.
        level: Coverage of the intervals, in (0, 1).

    Returns:
        The table.

    Raises:
        BadInput: If the runs' problems differ.
    """
    first, second = _outcomes(live), _outcomes(fixed)
    if first.problem_ids != second.problem_ids:
        raise BadInput(f"{live} and {fixed}: not the same problems, so they cannot be compared")
    key = jax.random.key(0)

    def paired(name: str):
        values = {str(i): getattr(run, name)[None] for i, run in enumerate((second, first))}
        return compare(values, baseline="0", key=key, level=level)

    accuracy, tokens = paired("correct"), paired("tokens")
    rows = []
    for place, run in (("0", second), ("1", first)):
        right, spent = accuracy[place], tokens[place]
        row = [run.policy, run.setting, f"{100 * right.value.mean:.1f}"]
        row += [f"{run.samples.mean():.1f}", f"{run.tokens.mean():,.0f}"]
        row += [f"{run.verifier_tokens.mean():,.0f}"]
        if place == "0":
            row += ["", ""]
        else:
            saved = -spent.difference.mean / tokens["0"].value.mean
            # Adding 0 makes a rounded -0.0 positive.
            row += [_points(*map(float, right.difference)), str(round(100 * float(saved)) + 0)]
        rows.append(row)
    return Table(
        title=f"{len(first.problem_ids)} problems, live",
        columns=[
            "policy",
            "setting",
            "accuracy, %",
            "samples",
            "tokens",
            "verifier tokens",
            "difference, points",
            "saved, %",
        ],
        rows=rows,
        notes=[
            "samples and tokens: of a problem, aborted completions included",
            f"difference in accuracy with its {level:.0%} interval, and tokens saved: against "
            "best-of-N",
        ],
    )


def _points(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _outcomes(directory: Path) -> Outcomes:
    with open(directory / "per_problem.csv", encoding="utf-8", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["problem_id"])
    with open(directory / DECISIONS, encoding="utf-8") as file:
        decisions = {line["problem_id"]: line for line in map(json.loads, file)}
    ledgers = [decisions[row["problem_id"]]["ledger"] for row in rows]
    return Outcomes(
        policy=rows[0]["policy"],
        setting=rows[0]["setting"],
        problem_ids=[row["problem_id"] for row in rows],
        correct=np.array([float(row["correct"] or "nan") for row in rows]),
        samples=np.array([float(row["n_samples"]) for row in rows]),
        tokens=np.array([ledger["completed"] + ledger["aborted"] for ledger in ledgers], float),
        verifier_tokens=np.array([ledger["verifier"] for ledger in ledgers], float),
    )


if __name__ == "__main__":
    sys.exit(main())
