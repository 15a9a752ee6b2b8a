"""What each method of a replay won and spent: intervals, and differences from a baseline.

`eval.replay` shows and writes what `summarise_methods` gives.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from optscale_jax.study.comparison import Options
from optscale_jax.study.config import ShowConfig
from optscale_jax.study.entries import by_cap
from optscale_jax.study.metrics import Interval
from optscale_jax.study.outcomes import METRICS, Method, Outcomes

__all__ = ["MethodSummary", "Selection", "known_metrics", "summarise_methods"]

# Arguments that a curve runs over, the first that a policy varies.
CURVES = ("n", "rounds", "max_samples", "s_min", "threshold", "window", "alpha")


class Selection(NamedTuple):
    """What of a method's grid the terminal and the curve show."""

    over: str | None  # the argument that varies; None if there is one setting
    fixed: Mapping[str, Any]  # the other arguments that vary, with the value that is shown
    settings: np.ndarray  # indices of the settings shown


class MethodSummary(NamedTuple):
    """One method's means and intervals, arrays [S]."""

    method: Method
    value: Mapping[str, Interval]  # by metric
    difference: Mapping[str, Interval]  # by metric, above the baseline's; {} without one
    baseline: np.ndarray | None  # [S] the baseline's setting that each is compared with
    shown: Selection


def known_metrics(summaries: Sequence[MethodSummary]) -> list[str]:
    """The metrics that are known for every setting."""
    return [
        metric
        for metric in METRICS
        if all(not np.isnan(s.value[metric].mean).any() for s in summaries)
    ]


def summarise_methods(
    outcomes: Outcomes,
    *,
    baseline: str | None = None,
    show: ShowConfig | None = None,
    options: Options | None = None,
    advance: Callable[[], None] = lambda: None,
) -> list[MethodSummary]:
    """Means and paired bootstrap intervals of every setting.

    Args:
        outcomes: What was replayed.
        baseline: Label of the method that differences are taken from: a setting's from the
            baseline's of the same cap if there is one, else from its deepest, and its own settings'
            from its deepest. None: no differences.
        show: What of a large grid to show.
        options: How to estimate.
        advance: Called after each method.

    Raises:
        InputError: If the baseline has several settings of one cap.
    """
    base = next((m for m in outcomes.methods if m.label == baseline), None)
    options = options or Options()
    found = []
    for method in outcomes.methods:
        against = None if base is None else _compared_with(method, base)
        value, difference = {}, {}
        for metric in METRICS:
            own = method.metric(metric)
            if base is None or against is None:
                value[metric] = options.interval(own)
            else:
                reference = base.metric(metric)
                value[metric], difference[metric] = _paired(own, reference, against, options)
        shown = _selection(method, show or ShowConfig())
        found.append(MethodSummary(method, value, difference, against, shown))
        advance()
    return found


def _compared_with(method: Method, base: Method) -> np.ndarray:
    """[S] the baseline's setting for each of a method's."""
    settings = by_cap(base.label, base.caps)
    deepest = settings[max(settings)]
    own = method.label == base.label
    return np.array([deepest if own else settings.get(int(c), deepest) for c in method.caps])


def _paired(
    values: np.ndarray, base: np.ndarray, against: np.ndarray, options: Options
) -> tuple[Interval, Interval]:
    """Intervals [S] of the values, and of their differences from the baseline's."""
    value, difference = (Interval(*np.full((3, len(values)), np.nan)) for _ in range(2))
    for index in np.unique(against):
        part = against == index
        pair = {"policy": values[part], "baseline": base[index]}
        found = options.paired(pair, "baseline")["policy"]
        for target, source in zip((value, difference), found, strict=True):
            for into, each in zip(target, source, strict=True):
                into[part] = each
    return value, difference


def _selection(method: Method, show: ShowConfig) -> Selection:
    """The argument that the curve runs over, the others' values on it, and its settings."""
    varying = method.varying
    over = next((name for name in (show.over, *CURVES, *varying) if name in varying), None)
    fixed = {}
    for name in varying:
        if name == over:
            continue
        values = sorted({setting[name] for setting in method.settings})
        wanted = getattr(show, name, None)
        fixed[name] = values[-1] if wanted is None else min(values, key=lambda v: abs(v - wanted))
    shown = [all(s[name] == value for name, value in fixed.items()) for s in method.settings]
    return Selection(over, fixed, np.flatnonzero(shown))
