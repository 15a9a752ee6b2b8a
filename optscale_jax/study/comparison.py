"""Methods compared as the paper's main table does, but tuned without looking at the answers.

Takes the outcomes of a replay and gives what tables and figures show: each method at each N with a
setting chosen by cross-fitting (`study.tuning`), beside what the search on the test set
would have claimed; its accuracy at every budget; and how much of an oracle's saving it realises.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from optscale_jax.errors import InputError
from optscale_jax.study.estimates import area_under_curve, share_of_saving, tokens_to_reach
from optscale_jax.study.hindsight import HINDSIGHT
from optscale_jax.study.metrics import (
    Comparison,
    Interval,
    bootstrap,
    interval_of,
    known_mean,
    paired_intervals,
    resampled_means,
    retuned_means,
)
from optscale_jax.study.outcomes import Method, Outcomes
from optscale_jax.study.tuning import Aim, CrossFit, cross_fit, refit

__all__ = [
    "SHARES",
    "Frontier",
    "Options",
    "Point",
    "Row",
    "Sensitivity",
    "check_problems",
    "compare",
    "frontiers",
    "sensitivity",
]


SHARES = (0.1, 0.2, 0.4)
"""Of what the deepest baseline spends: the budgets that a report gives accuracies for."""

_AS_GOOD, _MOST = Aim(max_loss=0.0), Aim(max_tokens=float(np.finfo(float).max))


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
        return {"key": jax.random.key(self.seed + 1), "num_resamples": self.num_resamples}

    def interval(self, values: np.ndarray) -> Interval:
        """Bootstrap interval over problems and permutations of values [..., K, P]."""
        return bootstrap(values, **self._resampling, level=self.level)

    def interval_of(self, mean: Any, means: np.ndarray) -> Interval:
        """Interval of a mean [...], from those of the resamples [..., R]."""
        return interval_of(np.asarray(mean), means, self.level)

    def paired(self, values: Mapping[str, np.ndarray], baseline: str) -> dict[str, Comparison]:
        """`metrics.paired_intervals` with these resamples."""
        return paired_intervals(values, baseline=baseline, **self._resampling, level=self.level)

    def resampled(self, values: np.ndarray) -> np.ndarray:
        """Means [..., R] of values [..., K, P] in each resample."""
        return resampled_means(values, **self._resampling)

    def retuned(
        self,
        values: Sequence[np.ndarray],
        fits: Mapping[Aim, CrossFit],
        value: np.ndarray,
        cost: np.ndarray,
        baseline: np.ndarray,
    ) -> np.ndarray:
        """Means [V, aims, R] of V outcomes [S, K, P] in each resample, tuned again in each.

        `fits` are what `cross_fit` made of the value, the cost and the baseline for each aim.
        """
        aims, found = list(fits), list(fits.values())

        def choose(weights: np.ndarray) -> np.ndarray:
            return refit(aims, found, value, cost, baseline, weights)

        return retuned_means(np.stack(values), choose, found[0].fold, **self._resampling)

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
      means: [4, R] of each resample: value, cost, samples and difference. Where there is a choice,
        it is made again in each.
      value: mean and interval of accuracy (or score).
      cost: of tokens (or completions).
      samples: of completions.
      baseline: label of what it is compared with; None if there is nothing.
      difference: mean and interval of the value above the baseline's at the same N.
      saved: share of the baseline's cost that is saved; NaN without a baseline.
      share_of_saving: share of the oracle's saving that is realised; NaN without an oracle.
      share_of_hindsight: that of the hindsight oracle's.
    """

    method: Method
    cap: int
    indices: np.ndarray
    fit: CrossFit
    means: np.ndarray
    value: Interval
    cost: Interval
    samples: Interval
    baseline: str | None
    difference: Interval
    saved: float
    share_of_saving: float
    share_of_hindsight: float

    @property
    def tuned(self) -> bool:
        """Whether there was a choice."""
        return len(self.indices) > 1

    @property
    def knobs(self) -> int:
        """How many arguments were tuned."""
        return self.method.knobs(self.indices.tolist())

    @property
    def at_ends(self) -> dict[str, float | int]:
        """Arguments of which every fold chose the least, or the greatest, of three values or more.

        A value beyond those that were tried may do better.
        """
        chosen = {int(self.indices[index]) for index in self.fit.chosen}
        found = {}
        for name in self.method.varying:
            tried = {self.method.settings[int(i)].get(name) for i in self.indices}
            numbers = sorted(v for v in tried if isinstance(v, int | float))
            own = {self.method.settings[i].get(name) for i in chosen}
            if len(numbers) > 2 and own in ({numbers[0]}, {numbers[-1]}):
                found[name] = own.pop()
        return found

    @property
    def num_samples(self) -> np.ndarray:
        """Completions drawn [K, P], every problem under its fold's setting."""
        return self._of_fold(self.method.num_samples)

    @property
    def confidence(self) -> np.ndarray | None:
        """P(right) as claimed [K, P], likewise; None if the method claims none."""
        claims = self.method.confidence
        return None if claims is None else self._of_fold(claims)

    @property
    def verifier_tokens(self) -> np.ndarray | None:
        """Tokens that the verifier read and wrote [K, G], likewise; None if it is not kept."""
        read = self.method.verifier_tokens
        return None if read is None else self._of_fold(read)

    def _of_fold(self, values: np.ndarray) -> np.ndarray:
        chosen = self.indices[self.fit.of_problem]
        return values[chosen, :, np.arange(len(chosen))].T

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
    check_problems(outcomes.num_problems, outcomes.name)
    caps = outcomes.caps if caps is None else caps
    return [row for cap in caps for row in _rows_at(outcomes, int(cap), options or Options())]


def _rows_at(outcomes: Outcomes, cap: int, options: Options) -> list[Row]:
    base = outcomes.baseline(cap)
    found = [(m, at) for m in outcomes.methods if (at := m.at(cap)).size]
    if not found:
        return []
    fits, samples, retuned = [], [], {}
    for index, (method, at) in enumerate(found):
        value, cost = outcomes.value(method)[at], outcomes.cost(method)[at]
        reference = value[-1] if base is None else base[1]
        fit = options.cross_fit(value, cost, reference)
        fits.append(fit)
        drawn = method.num_samples[at].astype(float)
        samples.append(drawn[fit.of_problem, :, np.arange(value.shape[-1])].T)
        if len(at) > 1:
            parts = [value, cost, drawn, value - (np.nan if base is None else base[1])]
            again = options.retuned(parts, {options.aim: fit}, value, cost, reference)
            retuned[index] = again[:, 0]
    values = np.stack([fit.correct for fit in fits])
    costs = np.stack([fit.tokens for fit in fits])
    reference = np.full(values.shape[1:], np.nan) if base is None else base[1]
    parts = (values, costs, np.stack(samples), values - reference)
    means = np.stack([options.resampled(part) for part in parts])
    for index, again in retuned.items():
        means[:, index] = again
    centres = np.stack([known_mean(part, (-2, -1)) for part in parts])
    value, cost, drawn, difference = (
        options.interval_of(*each) for each in zip(centres, means, strict=True)
    )
    spent = np.nan if base is None else float(base[2].mean())
    # The first of each kind, whose cost stands for what it would save.
    oracle, hindsight = (
        next((c for (m, _), c in zip(found, cost.mean, strict=True) if is_it(m)), np.nan)
        for is_it in (lambda m: m.oracle and m.name != HINDSIGHT, lambda m: m.name == HINDSIGHT)
    )
    return [
        Row(
            method=method,
            cap=cap,
            indices=at,
            fit=fits[i],
            means=means[:, i],
            value=value.at(i),
            cost=cost.at(i),
            samples=drawn.at(i),
            baseline=None if base is None else base[0],
            difference=difference.at(i),
            saved=1 - float(cost.mean[i]) / spent if spent > 0 else np.nan,
            share_of_saving=share_of_saving(cost.mean[i], spent, oracle),
            share_of_hindsight=share_of_saving(cost.mean[i], spent, hindsight),
        )
        for i, (method, at) in enumerate(found)
    ]


class Point(NamedTuple):
    """What a method does for one aim, all its settings and N together, by cross-fitting.

    In each resample the settings are chosen again, and the best fixed n with them.
    """

    setting: str  # what the aim chooses on all problems: the setting to use, in words
    arguments: Mapping[str, Any]  # those of its arguments that are no defaults, as JSON has them
    means: np.ndarray  # [2, R] value and cost in each resample
    value: Interval
    cost: Interval
    difference: Interval  # of the value above the best fixed n's; NaN without a baseline
    saved: Interval  # share of the best fixed n's cost
    at_ends: Sequence[str] = ()  # its arguments at an end of what was tried, in words

    def above(self, other: "Point", options: Options) -> tuple[Interval, Interval]:
        """Value and cost less those of another method, in the same resamples."""
        own, its = (np.stack([point.value.mean, point.cost.mean]) for point in (self, other))
        found = options.interval_of(own - its, self.means - other.means)
        return found.at(0), found.at(1)


class Frontier(NamedTuple):
    """What one method wins at each of B budgets, all its S settings and N together."""

    label: str
    cost: np.ndarray  # [B] mean cost, by cross-fitting, rising
    value: np.ndarray  # [B] mean value, and the ends of its interval
    low: np.ndarray
    high: np.ndarray
    every_cost: np.ndarray  # [S] mean cost and value of every setting
    every_value: np.ndarray
    oracle: bool  # whether it does not compete
    knobs: int  # how many arguments are tuned
    best: Point  # the most that it wins, whatever it spends
    settings: Sequence[str]  # [B] what each budget chooses on all problems, in words
    # Under the cross-fitted curve, the mean value over log budgets from `area_from` on, where every
    # competing method has a setting; NaN where this one has none. And under that of the best
    # settings on the problems that they are scored on.
    area: float = np.nan
    area_peeking: float = np.nan
    area_from: float = np.nan
    # Mean cost of the settings that, on other problems, are cheapest of those as good as the
    # baseline with the largest N; the value above it that they then really have; and the cost of
    # the cheapest setting that is as good on these very problems. NaN without a baseline.
    reach_cost: float = np.nan
    reach_difference: float = np.nan
    reach_peeking: float = np.nan
    # Within shares of what the baseline with the largest N spends, those that it can keep to; and
    # the cheapest of the settings that on other problems are as good as the n that is best there.
    within: Mapping[float, Point] = {}
    equal: Point | None = None
    share_of_hindsight: float = np.nan  # of the hindsight oracle's saving, both as good as that n

    @property
    def points(self) -> dict[str, Point | None]:
        """What it does for each aim that all methods have, by the aim's name; None: it cannot."""
        within = {f"within_{100 * share:.0f}": self.within.get(share) for share in SHARES}
        return {**within, "as_good_as_best_n": self.equal, "best": self.best}


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
    # The hindsight oracle leaves out the long wrong completions, so that its own are cheaper.
    real = [m.name != HINDSIGHT for m in outcomes.methods]
    single = min(
        float(outcomes.cost(m).sum() / np.maximum(m.num_samples.sum(), 1))
        for m in itertools.compress(outcomes.methods, real)
        if m.num_samples.any()
    )
    cheapest = (float(costs.min()) for costs in itertools.compress(every_cost, real))
    low = max(min(single, *cheapest), 1e-9)
    dearest = float(base[2].mean()) if base else max(float(costs.max()) for costs in every_cost)
    high = max(dearest, 1.001 * low)
    budgets = np.geomspace(low, high, num_budgets) * (1 + 1e-9)
    fixed = next((m for m in outcomes.methods if base is not None and m.label == base[0]), None)
    best_fixed = None
    if fixed is not None:
        value, cost = outcomes.value(fixed), outcomes.cost(fixed)
        (best_fixed,) = _points(fixed, value, cost, value, [_AS_GOOD], None, options)[1]
    found = []
    for method, costs in zip(outcomes.methods, every_cost, strict=True):
        value, cost = outcomes.value(method), outcomes.cost(method)
        values = value.mean((1, 2))
        reference = value[-1] if base is None else base[1]
        aims = [Aim(max_tokens=float(b)) for b in (*budgets[budgets >= costs.min()], costs.max())]
        shares = [s for s in SHARES if base and s * dearest * (1 + 1e-9) >= costs.min()]
        asked = [*aims, *(Aim(max_tokens=s * dearest * (1 + 1e-9)) for s in shares), _MOST]
        fits, points = _points(method, value, cost, reference, asked, best_fixed, options)
        at = {
            (float(fit.tokens.mean()), float(fit.correct.mean())): index
            for index, fit in enumerate(fits[: len(aims)])
        }
        order = [at[key] for key in sorted(at)]
        x = np.array([spent for spent, _ in sorted(at)])
        interval = Interval(*np.array([points[index].value for index in order]).T)
        frontier = Frontier(
            method.label,
            x,
            *interval,
            every_cost=costs,
            every_value=values,
            oracle=method.oracle,
            knobs=method.knobs(),
            best=points[-1],
            settings=[points[index].setting for index in order],
            within=dict(zip(shares, points[len(aims) : -1], strict=True)),
        )
        if base is not None and fixed is not None:
            reach = options.cross_fit(value, cost, reference, _AS_GOOD)
            targets = outcomes.value(fixed)
            frontier = frontier._replace(
                reach_cost=float(reach.tokens.mean()),
                reach_difference=float((reach.correct - reference).mean()),
                reach_peeking=tokens_to_reach(costs, values, reference.mean()),
                equal=_points(method, value, cost, targets, [_AS_GOOD], best_fixed, options)[1][0],
            )
        found.append(frontier)
    found = _with_areas(found, high)
    limit = next((f.equal for f, is_real in zip(found, real, strict=True) if not is_real), None)
    if limit is None or best_fixed is None:
        return found
    spent = float(best_fixed.cost.mean), float(limit.cost.mean)
    return [
        each._replace(share_of_hindsight=share_of_saving(float(each.equal.cost.mean), *spent))
        for each in found
        if each.equal is not None
    ]


def _with_areas(found: Sequence[Frontier], high: float) -> list[Frontier]:
    """The frontiers with their areas over the budgets that all can keep to, up to the dearest.

    A method whose cheapest setting costs more than half of that has no area, rather than leave the
    others next to no range.
    """
    starts = [float(max(f.cost[0], f.every_cost.min())) for f in found]
    common = [s for f, s in zip(found, starts, strict=True) if not f.oracle and s <= high / 2]
    low = max(common, default=min(starts))
    if not 0 < low < high:
        return list(found)
    return [
        f._replace(
            area=area_under_curve(f.cost, f.value, low=low, high=high),
            area_peeking=area_under_curve(f.every_cost, f.every_value, low=low, high=high),
            area_from=low,
        )
        if start <= low
        else f
        for f, start in zip(found, starts, strict=True)
    ]


def _points(
    method: Method,
    value: np.ndarray,
    cost: np.ndarray,
    baseline: np.ndarray,
    aims: Sequence[Aim],
    best_fixed: Point | None,
    options: Options,
) -> tuple[list[CrossFit], list[Point]]:
    """What a method does for each aim; differences are from the best fixed n."""
    fits = {aim: options.cross_fit(value, cost, baseline, aim) for aim in aims}
    means = options.retuned([value, cost], fits, value, cost, baseline)
    points = []
    for own, fit in zip(means.swapaxes(0, 1), fits.values(), strict=True):
        centre = known_mean(fit.correct, (-2, -1)), known_mean(fit.tokens, (-2, -1))
        won, spent = (options.interval_of(*each) for each in zip(centre, own, strict=True))
        more = saved = Interval(*np.full((3,), np.nan))
        if best_fixed is not None:
            base = best_fixed.means
            more = options.interval_of(centre[0] - best_fixed.value.mean, own[0] - base[0])
            with np.errstate(invalid="ignore", divide="ignore"):
                saved = options.interval_of(
                    1 - centre[1] / best_fixed.cost.mean, 1 - own[1] / base[1]
                )
        setting, names = method.settings[fit.oracle], method.words[fit.oracle]
        arguments = {name: setting[name] for name in names if name in setting}
        words = method.describe(fit.oracle)
        ends = [names[name] for name in method.at_ends(fit.oracle) if name in names]
        points.append(Point(words, arguments, own, won, spent, more, saved, ends))
    return [fits[aim] for aim in aims], [points[list(fits).index(aim)] for aim in aims]


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
