"""What a prior is worth, as a table, as columns of a CSV file, and in two figures."""

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from optscale_jax.predictor.calibration import COVERAGE, Quality
from optscale_jax.report.tables import UNITS, Table, answered, cells, interval_columns
from optscale_jax.study.comparison import Frontier, Options, Row
from optscale_jax.study.outcomes import Outcomes
from optscale_jax.study.prior_value import Against, Worth

__all__ = ["prior_columns", "prior_curves", "prior_table", "quality_table", "worth_in_words"]


def prior_table(
    outcomes: Outcomes,
    rows: Sequence[Row],
    pairs: Sequence[Against | None],
    options: Options,
    *,
    plain: str,
    notes: Sequence[str] = (),
) -> Table:
    """Every rule at every N, beside best-of-N and beside the rule without a prior (`plain`).

    Args:
        outcomes: What was replayed.
        rows: The comparison.
        pairs: [rows] what each is above the rule without a prior.
        options: How it was tuned, for the notes.
        plain: Label of the rule without a prior.
        notes: Further sentences to stand below.
    """
    value, cost = outcomes.kinds
    unit = UNITS[value]
    percent = UNITS["accuracy"]  # of costs, which are shares too
    lines = [
        [
            f"N = {row.cap}",
            row.method.label,
            f"{unit.number(row.value.mean):.{unit.digits}f}",
            unit.ends(row.difference),
            f"{float(row.cost.mean):,.{0 if cost == 'tokens' else 1}f}",
            f"{100 * row.saved:.1f}",
            *(["", ""] if pair is None else [percent.ends(pair.cost), unit.ends(pair.value)]),
        ]
        for row, pair in zip(rows, pairs, strict=True)
    ]
    heads = ["N", "prior", unit.heading, "against best-of-N", cost, "saved, %"]
    heads += [f"{cost} against {plain}, %", f"{value} against {plain}"]
    return Table(
        title=f"{outcomes.name}: what a prior is worth",
        columns=heads,
        rows=lines,
        notes=[
            f"Settings chosen on the other folds of the problems ({options.num_folds}-fold "
            f"cross-fitting): fewest {cost} of those that lose at most {options.aim.loss:.2%} "
            "against best-of-N.",
            f"Differences ({unit.difference}, or % of {cost}) with their paired "
            f"{options.level:.0%} intervals over problems and orders. The predictor's own tokens "
            "count.",
            *answered(outcomes.unanswered),
            *notes,
        ],
    )


def worth_in_words(worth: Worth | None) -> str:
    """What a prediction is worth, in a sentence."""
    if worth is None:
        return "The prediction of a problem's mean score explains nothing of it, or all."
    cost = "" if np.isnan(worth.cost) else f", and costs {worth.cost:.2f}"
    return (
        "Of the variance of problems' mean scores the prediction explains "
        f"{worth.explained:.0%} and one score {worth.one:.0%}: it is worth "
        f"{worth.completions:.2f} completions{cost}."
    )


def prior_columns(rows: Sequence[Row], pairs: Sequence[Against | None]) -> dict[str, list[Any]]:
    """The columns of comparison.csv."""
    return {
        "N": [row.cap for row in rows],
        "prior": [row.method.label for row in rows],
        **interval_columns("value", [row.value for row in rows]),
        **interval_columns("cost", [row.cost for row in rows]),
        **interval_columns("samples", [row.samples for row in rows]),
        **interval_columns("difference", [row.difference for row in rows]),
        **interval_columns("cost_against_optscale0", [pair and pair.cost for pair in pairs]),
        **interval_columns("value_against_optscale0", [pair and pair.value for pair in pairs]),
        "saved": cells(np.array([row.saved for row in rows], float)),
        "settings": [row.chosen_in_words(("prior",)) for row in rows],
    }


def prior_curves(
    outcomes: Outcomes,
    rows: Sequence[Row],
    pairs: Sequence[Against | None],
    curves: Sequence[Frontier],
    options: Options,
    *,
    plain: str,
    priors: Collection[str],
) -> Iterator[tuple[str, Any]]:
    """The figures, with their names: what is saved at each N, and accuracy against tokens.

    As for `prior_table`; `curves` are every method's, and `priors` the labels of the rules with
    one.
    """
    from optscale_jax.report.figures import Curve, accuracy_against_tokens, differences_against_n

    value, cost = outcomes.kinds
    points: dict[str, list[tuple[float, ...]]] = {}
    for row, pair in zip(rows, pairs, strict=True):
        if pair is not None and row.method.label in priors:
            point = (row.cap, *(float(part) for part in pair.cost))
            points.setdefault(row.method.label, []).append(point)
    level = options.level
    shown = [Curve(label, *np.array(each, float).T) for label, each in points.items()]
    yield "saving", differences_against_n(shown, baseline=plain, cost=cost, level=level)
    against = [Curve(f.label, f.cost, f.value) for f in curves]
    yield "accuracy_vs_tokens", accuracy_against_tokens(against, x=cost, y=value, level=level)


def quality_table(
    title: str,
    labels: Sequence[str],
    rows: Sequence[tuple[Sequence[str], Quality]],
    notes: Sequence[str] = (),
) -> Table:
    """How good priors are, a row for each.

    Args:
        title: The table's.
        labels: Headings of the rows' labels.
        rows: Labels and quality of each; what is not known is left empty.
        notes: What stands below, before what the columns are.
    """
    forms = {"mean_error": ".5f", "mean_rank": ".3f", "sd_error": ".6f", "sd_rank": ".3f"}
    forms |= {"coverage": ".1%", "nll": ".3f"}

    def cells(quality: Quality) -> list[str]:
        found = ((getattr(quality, name), form) for name, form in forms.items())
        return ["" if math.isnan(value) else format(value, form) for value, form in found]

    head = ["mean: error", "rank", "sd: error", "rank", f"{COVERAGE:.0%} interval", "nats"]
    return Table(
        title=title,
        columns=[*labels, *head],
        rows=[[*names, *cells(quality)] for names, quality in rows],
        notes=[
            *notes,
            "error: squared, of the mean (sd) of a problem's scores; rank: Spearman's correlation",
            "interval: share of the problems whose mean is inside their central interval",
            "nats: negative log marginal likelihood of a problem's scores",
        ],
    )
