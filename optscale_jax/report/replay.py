"""A replay's summary as a table, as columns of its CSV files, and as a figure."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optscale_jax.policies import StopReason
from optscale_jax.report.tables import UNITS, Table, cells, mean_of, setting_cell, write_rows
from optscale_jax.study.metrics import Interval, known_mean
from optscale_jax.study.outcomes import METRICS, CostKind, Method, Outcomes, ValueKind
from optscale_jax.study.registry import PolicyConfig
from optscale_jax.study.summary import MethodSummary, known_metrics

__all__ = [
    "result_columns",
    "summary_columns",
    "summary_curves",
    "summary_table",
    "write_per_problem",
]


_PER_PROBLEM = ("policy", "setting", "permutation", "problem_id")
_PER_PROBLEM += ("n_samples", "tokens", "selected_index", "correct", "stop_reason", "confidence")


def _kinds(summaries: Sequence[MethodSummary]) -> tuple[Sequence[str], ValueKind, CostKind]:
    """The metrics that are known, and what counts as won and as spent."""
    known = known_metrics(summaries)
    value = "accuracy" if "accuracy" in known else "score"
    return known, value, "tokens" if "tokens" in known else "samples"


# For people ---------------------------------------------------------------------------------------


def summary_table(
    summaries: Sequence[MethodSummary],
    *,
    title: str,
    level: float,
    baseline: str | None,
    notes: Sequence[str] = (),
) -> Table:
    """The settings to show of each method: what they won and spent, and differences.

    Args:
        summaries: The methods.
        title: What the table shows.
        level: Coverage of the intervals.
        baseline: Label of the method that differences are from; None without.
        notes: What is left out, and why.
    """
    known, value, cost = _kinds(summaries)
    unit = UNITS[value]
    columns: dict[str, Callable[[MethodSummary, int], str]] = {}

    def mean(metric: str, form: str) -> Callable[[MethodSummary, int], str]:
        return lambda s, i: format(s.value[metric].mean[i], form)

    if value in known:
        columns[unit.heading] = lambda s, i: unit.interval(s.value[value].at(i))
        if baseline is not None:
            columns["difference"] = lambda s, i: unit.interval(s.difference[value].at(i), "+")
    columns["samples"] = mean("samples", ".1f")
    if cost == "tokens":
        columns["tokens"] = mean("tokens", ",.0f")
    if baseline is not None:
        columns["saved, %"] = lambda s, i: _saved(s, cost, i)
    if value == "accuracy" and "score" in known:
        columns["score"] = mean("score", ".3f")

    below = [*notes, *(note for s in summaries for note in _in_common(s))]
    below.append(f"±: half the width of the {level:.0%} interval; its ends: summary.csv")
    if baseline is not None:
        below.append(
            f"difference, and {cost} saved: against {baseline} with the same cap on samples "
            "if there is one, else with its largest"
        )
    rows = [
        [s.method.label, _setting(s, index), *(cell(s, index) for cell in columns.values())]
        for s in summaries
        for index in s.shown.settings.tolist()
    ]
    return Table(title, ["policy", "setting", *columns], rows, below)


def _saved(s: MethodSummary, cost: str, index: int) -> str:
    """The share of the baseline's cost that a setting does without."""
    spent, more = s.value[cost].mean[index], s.difference[cost].mean[index]
    baseline = spent - more
    # Adding 0 makes a rounded -0.0 positive.
    return str(round(-100 * more / baseline) + 0) if baseline > 0 else ""


def _setting(s: MethodSummary, index: int) -> str:
    over = s.shown.over
    return s.method.describe(index) if over is None else f"{over}={s.method.settings[index][over]}"


def _in_common(s: MethodSummary) -> list[str]:
    """What the rows of a method have in common, and how many of its settings they leave out."""
    over, _, shown = s.shown
    if over is None:
        return []
    # min_samples follows max_samples where it is the paper's.
    varying = (over, "min_samples") if over == "max_samples" else (over,)
    words = s.method.describe(int(shown[0]), without=varying)
    left_out = len(s.method.settings) - len(shown)
    more = f"; {left_out} more settings in summary.csv" if left_out else ""
    return [f"{s.method.label}: {words}{more}"] if words or more else []


def summary_curves(summaries: Sequence[MethodSummary], level: float) -> Any:
    """Accuracy against tokens, one curve a method; None where neither it nor scores are known."""
    # Matplotlib takes a second to import, which --help should not.
    from optscale_jax.report.figures import Curve, accuracy_against_tokens

    known, value, cost = _kinds(summaries)
    if value not in known:
        return None
    curves = []
    for s in summaries:
        y, x = s.value[value], s.value[cost].mean
        shown = s.shown.settings
        others = np.setdiff1d(np.arange(len(x)), shown)
        at = "".join(f", {name} = {held}" for name, held in s.shown.fixed.items())
        mean, low, high = (part[shown] for part in y)
        curve = Curve(s.method.label + at, x[shown], mean, low, high)
        if len(others):
            curve = curve._replace(others_x=x[others], others_y=y.mean[others])
        curves.append(curve)
    return accuracy_against_tokens(curves, x=cost, y=value, level=level)


# CSV ----------------------------------------------------------------------------------------------


def _setting_columns(methods: Sequence[Method], repeats: int) -> dict[str, list[Any]]:
    """A setting a row, each so many times: its policy, and all arguments that a policy has."""
    pairs = [(method, index) for method in methods for index in range(len(method.settings))]
    settings = [method.settings[index] for method, index in pairs]
    # Those of rules of one's own come after the shipped rules'.
    names = [field.name for field in dataclasses.fields(PolicyConfig)]
    names = dict.fromkeys([*names, *(name for setting in settings for name in setting)])
    columns: dict[str, list[Any]] = {
        "policy": [method.name for method, _ in pairs],
        "label": [method.label for method, _ in pairs],
        "setting": [method.describe(index) for method, index in pairs],
    }
    columns |= {
        name: [setting.get(name) for setting in settings]
        for name in names
        if name != "prior" and any(name in setting for setting in settings)
    }
    priors = [setting.get("prior") or {} for setting in settings]
    if any(priors):
        columns |= {
            f"prior_{name}": [prior.get(name) for prior in priors]
            for name in dict.fromkeys(name for prior in priors for name in prior)
        }
    return {
        name: [cell for value in values for cell in [setting_cell(value)] * repeats]
        for name, values in columns.items()
    }


def result_columns(outcomes: Outcomes) -> dict[str, list[Any]]:
    """The columns of results.csv: means of every setting in every permutation."""
    numbers = outcomes.permutation_numbers
    columns = _setting_columns(outcomes.methods, len(numbers))
    columns["permutation"] = numbers.tolist() * sum(len(m.settings) for m in outcomes.methods)
    for metric in METRICS:
        means = [known_mean(method.metric(metric)) for method in outcomes.methods]
        columns[mean_of(metric)] = cells(np.concatenate(means))
    return columns


def summary_columns(
    summaries: Sequence[MethodSummary], baseline: str | None
) -> dict[str, list[Any]]:
    """The columns of summary.csv: means, intervals and differences of every setting."""
    columns = _setting_columns([s.method for s in summaries], 1)
    base = next((s.method for s in summaries if s.method.label == baseline), None)

    def add(name: str, intervals: Sequence[Interval]) -> None:
        for part, suffix in zip(Interval._fields, ("", "_low", "_high"), strict=True):
            columns[name + suffix] = cells(np.concatenate([getattr(i, part) for i in intervals]))

    for metric in METRICS:
        add(mean_of(metric), [s.value[metric] for s in summaries])
        if base is not None:
            add(f"{metric}_difference", [s.difference[metric] for s in summaries])
    if base is not None:
        compared = [i for s in summaries if s.baseline is not None for i in s.baseline.tolist()]
        columns["baseline_setting"] = [base.describe(index) for index in compared]
    return columns


def write_per_problem(path: Path, outcomes: Outcomes) -> None:
    """Writes per_problem.csv, a row for each setting, permutation and problem."""
    permutation = np.repeat(outcomes.permutation_numbers, len(outcomes.problem_ids)).tolist()
    problems = outcomes.problem_ids.tolist() * outcomes.num_permutations
    reasons = np.array([reason.name.lower() for reason in sorted(StopReason)], object)
    with open(path, "w", encoding="utf-8", newline="") as file:
        write_rows(file, [[name] for name in _PER_PROBLEM])
        for method in outcomes.methods:
            # Means over groups of problems are not written.
            assert method.selected_index is not None
            assert method.stop_reason is not None
            for index in range(len(method.settings)):
                selected, tokens = method.selected_index[index], method.tokens[index]
                unknown = [""] * len(problems)
                claims = None if method.confidence is None else method.confidence[index]
                columns = [
                    itertools.repeat(method.name, len(problems)),
                    itertools.repeat(method.describe(index), len(problems)),
                    permutation,
                    problems,
                    cells(method.num_samples[index]),
                    cells(tokens, unknown=tokens < 0),
                    cells(selected, unknown=selected < 0),
                    unknown if method.correct is None else cells(method.correct[index]),
                    reasons[method.stop_reason[index]].ravel().tolist(),
                    unknown if claims is None else cells(claims),
                ]
                write_rows(file, columns)
