"""Which rule to use on a pool, and whether the pool is large enough to tell."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from optscale_jax.study.comparison import Frontier, Options, Point

__all__ = ["Recommendation", "recommend"]


class Recommendation(NamedTuple):
    """The rule to use, and what the pool cannot tell of it."""

    label: str  # of the rule
    point: Point  # its cheapest setting that is as good as the best fixed n
    baseline: str  # label of the method whose fixed n it is compared with
    fixed: Point  # that n
    loss: float  # the largest loss that is aimed at
    saves: bool  # whether the interval of what it saves is above 0
    keeps: bool  # whether the interval of its difference is above -loss
    rivals: Sequence[str]  # other rules that may be as good, and as cheap as it
    at_ends: Mapping[str, Sequence[str]]  # rule to what of its setting is an end of what was tried


def recommend(curves: Sequence[Frontier], baseline: str, options: Options) -> Recommendation | None:
    """The cheapest rule that is as good as the best fixed n of best-of-N.

    Each rule has the setting that is cheapest of those as good as the best fixed n on the other
    folds. Of the rules whose mean, so tuned, is at most the aim's loss (.01 where the aim is a
    budget) below the best fixed n's, the cheapest is named. The pool is too small to tell

    * whether it saves, if the interval of the share saved includes 0;
    * whether it keeps within the aim's loss, if the interval of its difference reaches below it;
    * which rule is the one, if another's difference from the best fixed n may be above minus the
      loss, and what it spends more than the rule named may be below 0: both intervals' ends, in the
      same resamples and tuned again in each.

    Args:
        curves: of all methods.
        baseline: label of best-of-N.
        options: how they were tuned.

    Returns:
        The recommendation, of the baseline itself where no rule is cheaper; None without one.
    """
    loss = 0.01 if options.aim.loss is None else options.aim.loss
    points = {c.label: c.equal for c in curves if c.equal is not None and not c.oracle}
    if baseline not in points:
        return None
    # The rounding of two means of the same outcomes must not count as a loss.
    good = {n: p for n, p in points.items() if p.difference.mean >= -loss - 1e-9}
    label = min(good, key=lambda name: (float(good[name].cost.mean), name != baseline))
    point, fixed = good[label], points[baseline]

    def more(other: Point) -> float:
        return float(
            options.interval_of(
                other.cost.mean - point.cost.mean, other.means[1] - point.means[1]
            ).low
        )

    return Recommendation(
        label,
        point,
        baseline,
        fixed,
        loss,
        saves=float(point.saved.low) > 0,
        keeps=float(point.difference.low) >= -loss - 1e-9,
        rivals=[
            name
            for name, other in points.items()
            if name not in (label, baseline) and other.difference.high >= -loss and more(other) <= 0
        ],
        at_ends={name: other.at_ends for name, other in points.items() if other.at_ends},
    )
