"""Methods compared as the paper's main table does, but tuned without looking at the answers.

Takes the outcomes of a replay and gives what tables and figures show: each method at each N with a
setting chosen by cross-fitting (`study.tuning`), beside what the search on the test set
would have claimed; its accuracy at every budget; and how much of an oracle's saving it realises.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from optscale_jax.errors import InputError
from optscale_jax.study.estimates import area_under_curve, share_of_saving, tokens_to_reach
from optscale_jax.study.metrics import Comparison, Interval, bootstrap, paired_intervals
from optscale_jax.study.outcomes import Method, Outcomes
from optscale_jax.study.tuning import Aim, CrossFit, cross_fit

__all__ = [
    "Frontier",
    "Options",
    "Row",
    "Sensitivity",
    "check_problems",
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

    aim: Aim = dataclasses.field(default_factory=Aim)
    num_folds: int = 5
    seed: int = 0
    level: float = 0.95
    num_resamples: int = 2000

    @property
    def _resampling(self) -> dict[str, Any]:
        # A key apart from the orders'; one for all, so that intervals are paired.
        key = jax.random.key(self.seed + 1)
        return {"key": key, "num_resamples": self.num_resamples, "level": self.level}

    def interval(self, values: np.ndarray) -> Interval:
        """Bootstrap interval over problems and permutations of values [..., K, P]."""
        return bootstrap(values, **self._resampling)

    def paired(self, values: Mapping[str, np.ndarray], baseline: str) -> dict[str, Comparison]:
        """`metrics.paired_intervals` with these resamples."""
        return paired_intervals(values, baseline=baseline, **self._resampling)

    def cross_fit(
        self, value: np.ndarray, cost: np.ndarray, baseline: np.ndarray, aim: Aim | None = None
    ) -> CrossFit:
        """`tuning.cross_fit` with these folds; `aim` in place of this aim if it is given."""
        folds = min(self.num_folds, value.shape[-1])
        return cross_fit(value, cost, baseline, aim or self.aim, num_folds=folds, seed=self.seed)


def check_problems(count: int, where: str) -> None:
    """Refuses a pool that cannot be tuned on, before the work on it.

    Raises:
      InputError: there is one problem only.
    """
    if count < 2:
        raise InputError(
            f"{where}: it has one problem; settings are tuned on other problems than those that "
            "they are scored on, so give a pool of at least two"
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
      InputError: there is one problem only, which leaves none to tune on.
    """
    check_problems(len(outcomes.problem_ids), outcomes.name)
    caps = outcomes.caps if caps is None else caps
    return [row for cap in caps for row in _rows_at(outcomes, int(cap), options or Options())]


def _rows_at(outcomes: Outcomes, cap: int, options: Options) -> list[Row]:
    base = outcomes.baseline(cap)
    found = [(m, at) for m in outcomes.methods if (at := m.at(cap)).size]
    if not found:
        return []
    fits, samples = [], []
    for method, at in found:
        value, cost = outcomes.value(method)[at], outcomes.cost(method)[at]
        fit = options.cross_fit(value, cost, value[-1] if base is None else base[1])
        fits.append(fit)
        samples.append(method.num_samples[at[fit.of_problem], :, np.arange(value.shape[-1])].T)
    values = np.stack([fit.correct for fit in fits])
    costs = np.stack([fit.tokens for fit in fits])
    reference = np.full(values.shape[1:], np.nan) if base is None else base[1]
    value, cost, drawn, difference = (
        options.interval(each) for each in (values, costs, np.stack(samples), values - reference)
    )
    means = [float(mean) for mean in cost.mean]
    spent = np.nan if base is None else float(base[2].mean())
    oracle = next((c for (m, _), c in zip(found, means, strict=True) if m.oracle), np.nan)
    return [
        Row(
            method=method,
            cap=cap,
            indices=at,
            fit=fits[i],
            value=value.at(i),
            cost=cost.at(i),
            samples=drawn.at(i),
            baseline=None if base is None else base[0],
            difference=difference.at(i),
            saved=1 - means[i] / spent if spent > 0 else np.nan,
            share_of_saving=share_of_saving(means[i], spent, oracle),
        )
        for i, (method, at) in enumerate(found)
    ]


class Frontier(NamedTuple):
    """What one method wins at each of B budgets, all its S settings and N together."""

    label: str
    cost: np.ndarray  # [B] mean cost, by cross-fitting, rising
    value: np.ndarray  # [B] mean value, and the ends of its interval
    low: np.ndarray
    high: np.ndarray
    every_cost: np.ndarray  # [S] mean cost and value of every setting
    every_value: np.ndarray
    area: float  # under the cross-fitted curve: the mean value over log budgets
    area_peeking: float  # under that of the best settings on the problems that they are scored on
    # Mean cost of the settings that, on other problems, are cheapest of those as good as the
    # baseline with the largest N; the value above it that they then really have; and the cost of
    # the cheapest setting that is as good on these very problems. NaN without a baseline.
    reach_cost: float = np.nan
    reach_difference: float = np.nan
    reach_peeking: float = np.nan


def frontiers(
    outcomes: Outcomes, options: Options | None = None, *, num_budgets: int = 12
) -> list[Frontier]:
    """Accuracy at each budget, the area under it, and the cost of the baseline's accuracy.

    A setting for each budget is chosen by cross-fitting too (most accurate of those that spend at
    most the budget on the other folds), because the best of many settings is optimistic wherever
    it is plotted. Budgets are even in their logarithm, from one completion to the dearest setting.

    Returns:
      One for each method, in their order.
    """
    options = options or Options()
    base = outcomes.baseline()
    every_cost = [outcomes.cost(method).mean((1, 2)) for method in outcomes.methods]
    single = min(
        float(outcomes.cost(m).sum() / np.maximum(m.num_samples.sum(), 1))
        for m in outcomes.methods
        if m.num_samples.any()
    )
    low = max(min(single, *(float(costs.min()) for costs in every_cost)), 1e-9)
    dearest = float(base[2].mean()) if base else max(float(costs.max()) for costs in every_cost)
    high = max(dearest, 1.001 * low)
    budgets = np.geomspace(low, high, num_budgets) * (1 + 1e-9)
    found = []
    for method, costs in zip(outcomes.methods, every_cost, strict=True):
        value, cost = outcomes.value(method), outcomes.cost(method)
        values = value.mean((1, 2))
        reference = value[-1] if base is None else base[1]
        points: dict[tuple[float, float], CrossFit] = {}
        for budget in np.append(budgets[budgets >= costs.min()], costs.max()):
            fit = options.cross_fit(value, cost, reference, Aim(max_tokens=float(budget)))
            points[float(fit.tokens.mean()), float(fit.correct.mean())] = fit
        order = sorted(points)
        interval = options.interval(np.stack([points[point].correct for point in order]))
        x = np.array([spent for spent, _ in order])
        frontier = Frontier(
            method.label,
            x,
            *interval,
            every_cost=costs,
            every_value=values,
            area=area_under_curve(x, interval.mean, low=low, high=high),
            area_peeking=area_under_curve(costs, values, low=low, high=high),
        )
        if base is not None:
            reach = options.cross_fit(value, cost, reference, Aim(max_loss=0.0))
            frontier = frontier._replace(
                reach_cost=float(reach.tokens.mean()),
                reach_difference=float((reach.correct - reference).mean()),
                reach_peeking=tokens_to_reach(costs, values, reference.mean()),
            )
        found.append(frontier)
    return found


class Sensitivity(NamedTuple):
    """How a method's outcomes change with V values of one argument, for one N."""

    label: str
    cap: int
    argument: str
    fixed: dict[str, float]  # the other arguments, with their values
    x: np.ndarray  # [V] values of the argument
    value: np.ndarray  # [V] mean value, and the ends of its interval
    low: np.ndarray
    high: np.ndarray
    cost: np.ndarray  # [V] mean cost


def sensitivity(
    outcomes: Outcomes, argument: str, near: Mapping[str, float], options: Options
) -> list[Sensitivity]:
    """How the methods that vary an argument ("s_min", say) depend on it, the others held.

    `near` has the values to hold the other varying arguments at; the nearest that there is.

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
            cost = outcomes.cost(method)[at].mean((1, 2))
            found.append(Sensitivity(method.label, cap, argument, others, x, *interval, cost))
    return found
