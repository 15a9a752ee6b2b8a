"""What came of a live run: its table, and its files in the form of a replay's."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optscale_jax.calibration import NOT_KNOWN, Origin
from optscale_jax.live.engine import FAILED, Solution, solutions_pool
from optscale_jax.records import TokenLedger, measured
from optscale_jax.report.tables import Table, answered, cells, mean_of, setting_cell, write_csv
from optscale_jax.study.allocation import price

__all__ = ["OUTPUTS", "live_table", "write_live_results"]

OUTPUTS = ("results.csv", "per_problem.csv", "pool.npz", "summary.md")
"""The files of a finished run, beside those that it is resumed from."""

LEDGER = tuple(field.name for field in dataclasses.fields(TokenLedger))


def _per_problem(solutions: Sequence[Solution]) -> dict[str, np.ndarray]:
    """Metric to values [problems], NaN where not known."""
    nan = math.nan
    values = {
        "accuracy": [nan if s.correct is None else s.correct for s in solutions],
        "samples": [s.decision.num_samples for s in solutions],
        "tokens": [measured(s.decision.tokens) for s in solutions],
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


def live_table(
    solutions: Sequence[Solution],
    source: str,
    label: str,
    setting: str,
    max_samples: int,
    budget: float | int | None = None,
) -> Table:
    """The table that the terminal shows: means over problems, and why the first that failed did.

    Args:
        solutions: Of all problems.
        source: Where the problems are from.
        label: What the policy is called.
        setting: Its arguments, in words.
        max_samples: Its cap.
        budget: Tokens that all problems share; None: none.
    """
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
    given = [sample.answer is None for solution in solutions for sample in solution.samples]
    notes = ["completed to total: tokens a problem", *answered((sum(given), len(given)))]
    if budget is not None:
        spent = sum(s.decision.ledger.total for s in solutions)
        gains = [math.nan if s.decision.gain is None else s.decision.gain for s in solutions]
        at = price(gains, [s.decision.num_samples for s in solutions], max_samples)
        notes.append(
            f"budget: {budget:,.0f} tokens, {spent:,.0f} of them spent; price {at:.3g}, which is "
            "what the next completion would have gained"
        )
    notes += [f"problem {s.problem.id} failed: {s.decision.error}" for s in failed[:5]]
    if len(failed) > 5:
        notes.append(f"and {len(failed) - 5} more failed; their decisions.jsonl says why")
    drawn = [sample for s in solutions for sample in s.samples]
    if odd := [sample.note for sample in drawn if sample.completion.finish_reason == "error"]:
        notes.append(
            f"{len(odd)} of {len(drawn)} completions failed and have no answer, the first because: "
            f"{odd[0]}"
        )
    title = f"{source}: {len(solutions)} problems, up to {max_samples} completions each"
    return Table(title, columns, [row], notes)


def write_live_results(
    folder: Path,
    solutions: Sequence[Solution],
    names: Mapping[str, Any],
    arguments: Mapping[str, Any],
    origin: Origin = NOT_KNOWN,
) -> None:
    """Writes results.csv, per_problem.csv and, of what was drawn, pool.npz.

    Args:
        folder: Where to.
        solutions: Of all problems.
        names: "policy", "label" and "setting": what the policy is called, and its arguments in
            words.
        arguments: Its arguments, a column of results.csv each.
        origin: Who made completions and scores, for the pool.
    """
    own = {name: setting_cell(value) for name, value in arguments.items() if name != "prior"}
    row = {**names, **own, "permutation": 0}
    columns = {heading: [value] for heading, value in row.items()}
    columns |= {mean_of(name): cells([mean]) for name, mean in _means(solutions).items()}
    write_csv(folder / "results.csv", columns)

    count = len(solutions)
    selected = np.array([s.decision.selected_index for s in solutions])
    write_csv(
        folder / "per_problem.csv",
        {
            "policy": [names["policy"]] * count,
            "setting": [names["setting"]] * count,
            "permutation": [0] * count,
            "problem_id": [s.problem.id for s in solutions],
            "n_samples": [s.decision.num_samples for s in solutions],
            "tokens": ["" if s.decision.tokens < 0 else s.decision.tokens for s in solutions],
            "selected_index": cells(selected, unknown=selected < 0),
            "correct": [
                "" if v == "" else int(v) for v in cells(_per_problem(solutions)["accuracy"])
            ],
            "stop_reason": [s.decision.stop_reason for s in solutions],
            "confidence": [
                "" if s.decision.confidence is None else s.decision.confidence for s in solutions
            ],
        },
    )
    drawn = [solution for solution in solutions if solution.samples]
    if drawn:
        solutions_pool(drawn).with_origin(origin).save(folder / "pool.npz")
