"""Methods compared as the paper's main table does, but tuned without looking at the answers.

Takes the outcomes of a replay and gives what tables and figures show: each method at each N with a
setting chosen by cross-fitting (`study.tuning`), beside what the search on the test set
would have claimed; its accuracy at every budget; and how much of an oracle's saving it realises.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from optscale_jax.study.estimates import area_under_curve, share_of_saving, tokens_to_reach
from optscale_jax.study.metrics import Interval, bootstrap
from optscale_jax.study.outcomes import Method, Outcomes
from optscale_jax.study.tuning import Aim, CrossFit, cross_fit

__all__ = [
    "Frontier",
    "Options",
    "Row",
    "Sensitivity",
    "compare",
    "frontiers",
    "sensitivity",
]


@dataclasses.dataclass(frozen=True)
class Options:
    """How to tune and how to estimate.

    Attributes:
      aim: what settings are chosen for.
      num_folds: folds over problems, at most as many as there are problems.
      seed: of the folds and of the bootstrap.
      level: coverage of the intervals, in (0, 1).
      num_resamples: bootstrap resamples.
    """

    aim: Aim = dataclasses.field(default_factory=lambda: Aim(max_loss=0.01))
    num_folds: int = 5
    seed: int = 0
    level: float = 0.95
    num_resamples: int = 2000

    def interval(self, values: np.ndarray) -> Interval:
        """Bootstrap interval over problems and permutations of values [..., K, P]."""
        return bootstrap(
            values,
            # Apart from the orders' key; one for all, so that intervals are paired.
            key=jax.random.key(self.seed + 1),
            num_resamples=self.num_resamples,
            level=self.level,
        )

    def cross_fit(
        self, value: np.ndarray, cost: np.ndarray, baseline: np.ndarray, aim: Aim | None = None
    ) -> CrossFit:
        """`tuning.cross_fit` with these folds; `aim` in place of this aim if it is given."""
        return cross_fit(
            value,
            cost,
            baseline,
            aim or self.aim,
            num_folds=min(self.num_folds, value.shape[-1]),
            seed=self.seed,
        )


class Row(NamedTuple):
    """One method at one N, tuned on other problems than those that it is scored on.

    Attributes:
      method: the method.
      cap: its N.
      indices: indices of the method's settings at this N.
      fit: the choice among those, by cross-fitting and with peeking.
      value: mean and interval of accuracy (or score).
      cost: of tokens (or completions).
      samples: of completions.
      baseline: label of what it is compared with; None if there is nothing.
      difference: mean and interval of the value above the baseline's at the same N.
      saved: share of the baseline's cost that is saved; NaN without a baseline.
      share_of_saving: share of the oracle's saving that is realised; NaN without an oracle.
    """

    method: Method
    cap: int
    indices: np.ndarray
    fit: CrossFit
    value: Interval
    cost: Interval
    samples: Interval
    baseline: str | None
    difference: Interval
    saved: float
    share_of_saving: float

    @property
    def tuned(self) -> bool:
        """Whether there was a choice."""
        return len(self.indices) > 1

    def chosen_in_words(self, without: Sequence[str] = ()) -> str:
        """The settings chosen, each once, but for some of their arguments."""
        chosen = dict.fromkeys(self.fit.chosen.tolist())
        return " / ".join(self.setting_in_words(index, without) for index in chosen)

    def setting_in_words(self, index: int, without: Sequence[str] = ()) -> str:
        """One of `indices`, but for some of its arguments."""
        return self.method.describe(int(self.indices[index]), without)


def compare(
    outcomes: Outcomes, caps: Sequence[int] | None = None, options: Options | None = None
) -> list[Row]:
    """Every method at every N, as in the paper's main table.

    Args:
      outcomes: of at least two problems.
      caps: the N, in the table's order; default all that there are, rising.
      options: how to tune and how to estimate; default the fewest tokens of the settings that lose
        at most one point against the baseline, by five-fold cross-fitting.

    Returns:
      A row for each N and method that has settings there, N by N.

    Raises:
      ValueError: there is one problem only, which leaves none to tune on.
    """
    options = options or Options()
    caps = outcomes.caps if caps is None else caps
    return [row for cap in caps for row in _rows_at(outcomes, int(cap), options)]


def _rows_at(outcomes: Outcomes, cap: int, options: Options) -> list[Row]:
    """The rows of one N."""
    base = outcomes.baseline(cap)
    found = [(m, at) for m in outcomes.methods if (at := m.at(cap)).size]
    if not found:
        return []
    fits, samples = [], []
    for method, at in found:
        value, cost = outcomes.value(method)[at], outcomes.cost(method)[at]
        fit = options.cross_fit(value, cost, value[-1] if base is None else base[1])
        fits.append(fit)
        problem = np.arange(value.shape[-1])
        samples.append(method.num_samples[at[fit.chosen[fit.fold]], :, problem].T)
    values = np.stack([fit.correct for fit in fits])
    costs = np.stack([fit.tokens for fit in fits])
    reference = np.full(values.shape[1:], np.nan) if base is None else base[1]
    intervals = [
        options.interval(each) for each in (values, costs, np.stack(samples), values - reference)
    ]
    means = [float(mean) for mean in intervals[1].mean]
    spent = np.nan if base is None else float(base[2].mean())
    oracle = next((c for (m, _), c in zip(found, means, strict=True) if m.oracle), np.nan)
    rows = []
    for index, ((method, at), fit, mean) in enumerate(zip(found, fits, means, strict=True)):
        value, cost, drawn, difference = (
            Interval(*(part[index] for part in interval)) for interval in intervals
        )
        rows.append(
            Row(
                method=method,
                cap=cap,
                indices=at,
                fit=fit,
                value=value,
                cost=cost,
                samples=drawn,
                baseline=None if base is None else base[0],
                difference=difference,
                saved=1 - mean / spent if spent > 0 else np.nan,
                share_of_saving=share_of_saving(mean, spent, oracle),
            )
        )
    return rows


class Frontier(NamedTuple):
    """What one method wins at each budget, all its settings and N together.

    Attributes:
      label: the method's.
      cost: [B] mean cost at each budget, by cross-fitting, rising.
      value: [B] mean value; with its interval:
      low: [B].
      high: [B].
      every_cost: [S] mean cost of every setting.
      every_value: [S] mean value of every setting.
      area: area under the cross-fitted curve, the mean value over log budgets.
      area_peeking: the same of the best settings, chosen on the problems that they are scored on.
      reach_cost: mean cost of the settings that, on other problems, are cheapest of those as good
        as the baseline with the largest N; NaN without a baseline.
      reach_difference: mean value above that baseline's which these settings then really have.
      reach_peeking: cost of the cheapest setting that is as good on these very problems.
    """

    label: str
    cost: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    every_cost: np.ndarray
    every_value: np.ndarray
    area: float
    area_peeking: float
    reach_cost: float
    reach_difference: float
    reach_peeking: float


def frontiers(
    outcomes: Outcomes, options: Options | None = None, *, num_budgets: int = 12
) -> list[Frontier]:
    """Accuracy at each budget, the area under it, and the cost of the baseline's accuracy.

    A setting for each budget is chosen by cross-fitting too (most accurate of those that spend at
    most the budget on the other folds), because the best of many settings is optimistic wherever
    it is plotted.

    Args:
      outcomes: of at least two problems.
      options: how to tune and how to estimate.
      num_budgets: budgets, even in their logarithm, from one completion to the dearest setting.

    Returns:
      One for each method, in their order.
    """
    options = options or Options()
    base = outcomes.baseline()
    costs = [outcomes.cost(method).mean((1, 2)) for method in outcomes.methods]
    single = min(
        float(outcomes.cost(m).sum() / np.maximum(m.num_samples.sum(), 1))
        for m in outcomes.methods
        if m.num_samples.any()
    )
    low = min(single, *(float(cost.min()) for cost in costs))
    high = float(base[2].mean()) if base else max(float(cost.max()) for cost in costs)
    low, high = max(low, 1e-9), max(high, 1.001 * max(low, 1e-9))
    budgets = np.geomspace(low, high, num_budgets) * (1 + 1e-9)
    return [
        _frontier(outcomes, method, base, budgets, (low, high), options)
        for method in outcomes.methods
    ]


def _frontier(
    outcomes: Outcomes,
    method: Method,
    base: tuple[str, np.ndarray, np.ndarray] | None,
    budgets: np.ndarray,
    ends: tuple[float, float],
    options: Options,
) -> Frontier:
    """One method's; the area is taken between the ends."""
    low, high = ends
    value, cost = outcomes.value(method), outcomes.cost(method)
    values, costs = value.mean((1, 2)), cost.mean((1, 2))
    reference = value[-1] if base is None else base[1]
    points: dict[tuple[float, float], CrossFit] = {}
    for budget in np.append(budgets[budgets >= costs.min()], costs.max()):
        fit = options.cross_fit(value, cost, reference, Aim(max_tokens=float(budget)))
        points[float(fit.tokens.mean()), float(fit.correct.mean())] = fit
    order = sorted(points)
    interval = options.interval(np.stack([points[point].correct for point in order]))
    x = np.array([spent for spent, _ in order])
    reach = options.cross_fit(value, cost, reference, Aim(max_loss=0.0))
    known = base is not None
    return Frontier(
        label=method.label,
        cost=x,
        value=np.asarray(interval.mean),
        low=np.asarray(interval.low),
        high=np.asarray(interval.high),
        every_cost=costs,
        every_value=values,
        area=area_under_curve(x, interval.mean, low=low, high=high),
        area_peeking=area_under_curve(costs, values, low=low, high=high),
        reach_cost=float(reach.tokens.mean()) if known else np.nan,
        reach_difference=float((reach.correct - reference).mean()) if known else np.nan,
        reach_peeking=tokens_to_reach(costs, values, reference.mean()) if known else np.nan,
    )


class Sensitivity(NamedTuple):
    """How a method's outcomes change with one argument, for one N.

    Attributes:
      label: the method's.
      cap: its N.
      argument: what varies.
      fixed: the other argument, with its value.
      x: [V] values of the argument.
      value: [V] mean value; with its interval:
      low: [V].
      high: [V].
      cost: [V] mean cost.
    """

    label: str
    cap: int
    argument: str
    fixed: dict[str, float]
    x: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    cost: np.ndarray


def sensitivity(
    outcomes: Outcomes, argument: str, near: Mapping[str, float], options: Options
) -> list[Sensitivity]:
    """How the methods that vary an argument depend on it, the others held.

    Args:
      outcomes: what was replayed.
      argument: "s_min" or "alpha", say.
      near: values to hold the other varying arguments at; the nearest that there is.
      options: how to estimate.

    Returns:
      One for each method, but the oracle, and each of its N, where at least two values are.
    """
    found = []
    for method in outcomes.methods:
        if method.oracle or argument not in method.settings[0]:
            continue
        others = {
            name: min({s[name] for s in method.settings}, key=lambda v, w=wanted: (abs(v - w), v))
            for name, wanted in near.items()
            if name != argument and name in method.settings[0]
        }
        for cap in np.unique(method.caps).tolist():
            at = [
                i
                for i in method.at(cap)
                if all(method.settings[i][name] == value for name, value in others.items())
            ]
            at.sort(key=lambda i: method.settings[i][argument])
            x = np.array([method.settings[i][argument] for i in at], float)
            if len(np.unique(x)) < 2 or len(np.unique(x)) < len(x):
                continue
            interval = options.interval(outcomes.value(method)[at])
            found.append(
                Sensitivity(
                    label=method.label,
                    cap=int(cap),
                    argument=argument,
                    fixed=others,
                    x=x,
                    value=np.asarray(interval.mean),
                    low=np.asarray(interval.low),
                    high=np.asarray(interval.high),
                    cost=outcomes.cost(method)[at].mean((1, 2)),
                )
            )
    return found
