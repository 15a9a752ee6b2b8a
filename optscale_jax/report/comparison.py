"""The paper's comparison in tables, CSV columns, sentences and figures, from `study.findings`.

The paper's main table has methods under each N, and a pair of columns for each benchmark.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optscale_jax.errors import InputError
from optscale_jax.report.figures import (
    Curve,
    Drawing,
    accuracy_against_tokens,
    sensitivity_panels,
    tokens_against_n,
)
from optscale_jax.report.headline import headline, recommendation
from optscale_jax.report.model_figures import (
    calibration_panels,
    reliability_diagram,
    roc_curves,
    score_histograms,
)
from optscale_jax.report.page import Section
from optscale_jax.report.tables import (
    UNITS,
    Cell,
    Column,
    Table,
    answered,
    cells,
    interval_columns,
    or_dash,
)
from optscale_jax.study.comparison import SHARES, Frontier, Options, Point, Row
from optscale_jax.study.findings import Findings
from optscale_jax.study.hindsight import HINDSIGHT
from optscale_jax.study.law_comparison import LawComparison
from optscale_jax.study.metrics import Interval
from optscale_jax.study.outcomes import CostKind, Outcomes, ValueKind

__all__ = [
    "comparison_columns",
    "curve_columns",
    "curve_table",
    "drawings",
    "law_columns",
    "law_table",
    "pair_columns",
    "paper_table",
    "reach_table",
    "reliability_columns",
    "roc_columns",
    "section",
    "sentences",
    "settings_table",
    "table_of",
]

# A grid of more settings than these is shown in dots beside its curve.
DOTS_ABOVE = 8


# The paper's table --------------------------------------------------------------------------------


def table_of(found: Sequence[Findings], options: Options) -> Table:
    """The paper's table of several pools; those of one name share their columns.

    The options say how it was tuned, for the notes.

    Raises:
        InputError: If pools of one name count different things.
    """
    rows: dict[str, list[Row]] = {}
    kinds: dict[str, tuple[ValueKind, CostKind]] = {}
    for each in found:
        name, kind = each.outcomes.name, each.outcomes.kinds
        if kinds.setdefault(name, kind) != kind:
            first, second = (f"{UNITS[v].heading}, {c}" for v, c in (kinds[name], kind))
            raise InputError(
                f"{name}: its runs count different things ({first} and {second}); give them "
                "different names with --names"
            )
        rows.setdefault(name, []).extend(each.rows)
    aim, everything = options.aim, [row for each in rows.values() for row in each]
    bases = dict.fromkeys(row.baseline for row in everything if row.baseline)
    chosen = (
        f"fewest tokens of those that lose at most {100 * aim.loss:g}% of the problems against "
        f"{' or '.join(bases) or 'best-of-N'} with the same N"
        if aim.loss is not None
        else f"most accurate of those that spend at most {aim.max_tokens:g}"
    )
    notes = [
        f"Settings are chosen on the other folds of the problems ({options.num_folds}-fold "
        f"cross-fitting): {chosen}. A figure may so be of several settings; the one that is named "
        "is what all problems choose.",
        f"±: half the width of the {options.level:.0%} bootstrap interval over problems and "
        "permutations, the settings chosen again in each resample. Bold: the best of each N. "
        "Knobs: how many of a method's arguments are tuned.",
    ]
    notes += [
        f"{each.outcomes.name}: {n}" for each in found for n in answered(each.outcomes.unanswered)
    ]
    notes += [
        f"{each.outcomes.name}: which completions are right is not known (there is no gold, and no "
        "correct), so the score of what is returned stands in for accuracy."
        for each in found
        if each.outcomes.value_kind == "score"
    ]
    notes += [f"{each.outcomes.name}: {note}" for each in found for note in each.notes]
    if any(row.method.oracle and row.method.name != HINDSIGHT for row in everything):
        notes.append(
            "The oracle knows each problem's law of scores beforehand; it shows what OptScale "
            "could save, and does not compete for bold."
        )
    if any(row.method.name == HINDSIGHT for row in everything):
        notes.append(
            "The hindsight oracle knows which completions are right: it stops at the first, and "
            "after one where there is none. It is the limit of every rule."
        )
    notes += [f"{each.outcomes.name}: {words}" for each in found for words in recommendation(each)]
    return paper_table("Accuracy and tokens per problem", rows, kinds, notes=notes)


def paper_table(
    title: str,
    rows: Mapping[str, Sequence[Row]],
    kinds: Mapping[str, tuple[ValueKind, CostKind]],
    *,
    notes: Sequence[str] = (),
) -> Table:
    """Lays rows out as the paper does.

    The best of an N is the highest value, and the lowest cost, as they are printed, so that what
    looks alike is treated alike. An oracle does not compete.

    Args:
        title: What the table shows.
        rows: Benchmark to its rows.
        kinds: Benchmark to what was won and spent there.
        notes: Sentences to stand below it.
    """
    nothing = (Cell(""), Cell(""))
    lines = []
    for cap in sorted({row.cap for each in rows.values() for row in each}):
        at = {name: [row for row in each if row.cap == cap] for name, each in rows.items()}
        # In the order of the first benchmark that has the method.
        labels = dict.fromkeys(row.method.label for each in at.values() for row in each)
        pairs = {name: _pairs(at[name], kinds[name][0]) for name in rows}
        knobs = {row.method.label: row.knobs for each in at.values() for row in each}
        for label in labels:
            numbers = [cell for name in rows for cell in pairs[name].get(label, nothing)]
            lines.append([str(cap), label, str(knobs[label]), *numbers])
    columns = [Column("N"), Column("method", text=True), Column("knobs")]
    for name in rows:
        value, cost = kinds[name]
        columns += [Column(UNITS[value].heading, name), Column(cost, name)]
    return Table(title, columns, lines, notes, blocks=True)


def _pairs(rows: Sequence[Row], kind: ValueKind) -> dict[str, tuple[Cell, Cell]]:
    """Label to what a method wins and spends at one N."""
    unit = UNITS[kind]

    def spent(row: Row) -> float:
        mean = float(row.cost.mean)
        return round(mean, 0 if mean >= 100 else 1)

    competing = [row for row in rows if not row.method.oracle]
    best = max((unit.number(row.value.mean) for row in competing), default=np.nan)
    cheapest = min((spent(row) for row in competing), default=np.nan)
    found = {}
    for row in rows:
        competes = len(competing) > 1 and not row.method.oracle
        value, cost = float(row.value.mean), float(row.cost.mean)
        won, words = unit.interval(row.value), f"{cost:,.0f}" if cost >= 100 else f"{cost:.1f}"
        found[row.method.label] = (
            Cell(won, unit.scale * value, competes and unit.number(value) == best),
            Cell(words, cost, competes and spent(row) == cheapest),
        )
    return found


# CSV ----------------------------------------------------------------------------------------------


def comparison_columns(found: Sequence[Findings]) -> dict[str, list[Any]]:
    """The columns of comparison.csv: every row with all that was found of it."""
    pairs = [(each.outcomes, row) for each in found for row in each.rows]
    rows = [row for _, row in pairs]

    def value(kind: ValueKind) -> dict[str, list[Any]]:
        known = [row.value if outcomes.value_kind == kind else None for outcomes, row in pairs]
        return interval_columns(kind, known)

    # Pools with and without correctness share the file; what the first has comes first.
    first, second = (
        ("accuracy", "score") if pairs[0][0].value_kind == "accuracy" else ("score", "accuracy")
    )
    tokens = [row.cost if outcomes.cost_kind == "tokens" else None for outcomes, row in pairs]
    return {
        "pool": [outcomes.name for outcomes, _ in pairs],
        "N": [row.cap for row in rows],
        "policy": [row.method.name for row in rows],
        "method": [row.method.label for row in rows],
        **value(first),
        **interval_columns("tokens", tokens),
        **interval_columns("samples", [row.samples for row in rows]),
        **interval_columns("difference", [row.difference for row in rows]),
        "baseline": [row.baseline or "" for row in rows],
        "saved": cells([float(row.saved) for row in rows]),
        "share_of_oracle_saving": cells([float(row.share_of_saving) for row in rows]),
        "settings": [row.chosen_in_words() for row in rows],
        "on_test_set_setting": [row.setting_in_words(row.fit.oracle) for row in rows],
        "on_test_set_value": cells([row.fit.oracle_correct.mean() for row in rows]),
        "on_test_set_cost": cells([row.fit.oracle_tokens.mean() for row in rows]),
        "optimism_value": cells([row.fit.optimism_accuracy for row in rows]),
        "optimism_cost": cells([row.fit.optimism_tokens for row in rows]),
        **value(second),
        "knobs": [row.knobs for row in rows],
        "share_of_hindsight_saving": cells([float(row.share_of_hindsight) for row in rows]),
        "tokens_with_verifier": cells([n for each in found for n in each.with_verifier]),
    }


def curve_columns(found: Sequence[Findings]) -> dict[str, list[Any]]:
    """The columns of curves.csv: each method's curve in five numbers."""
    pairs = [(each.outcomes, curve) for each in found for curve in each.frontiers]
    return {
        "pool": [outcomes.name for outcomes, _ in pairs],
        "method": [curve.label for _, curve in pairs],
        "value": [outcomes.value_kind for outcomes, _ in pairs],
        "cost": [outcomes.cost_kind for outcomes, _ in pairs],
        "area_under_curve": cells([curve.area for _, curve in pairs]),
        "area_under_curve_on_test_set": cells([curve.area_peeking for _, curve in pairs]),
        "cost_to_reach_baseline": cells([curve.reach_cost for _, curve in pairs]),
        "difference_then": cells([curve.reach_difference for _, curve in pairs]),
        "cost_to_reach_baseline_on_test_set": cells([curve.reach_peeking for _, curve in pairs]),
        "knobs": [curve.knobs for _, curve in pairs],
        **{
            heading: column
            for name in (pairs[0][1].points if pairs else ())
            for heading, column in _point_columns(
                name, [curve.points[name] for _, curve in pairs]
            ).items()
        },
        "share_of_hindsight_saving": cells([curve.share_of_hindsight for _, curve in pairs]),
    }


def _point_columns(name: str, points: Sequence[Point | None]) -> dict[str, list[Any]]:
    """What is done for one aim: its setting, value and cost, and both beside the best fixed n's."""
    return {
        f"{name}_setting": ["" if point is None else point.setting for point in points],
        **interval_columns(f"{name}_value", [point and point.value for point in points]),
        **interval_columns(f"{name}_cost", [point and point.cost for point in points]),
        **interval_columns(f"{name}_difference", [point and point.difference for point in points]),
        **interval_columns(f"{name}_saved", [point and point.saved for point in points]),
    }


def pair_columns(found: Sequence[Findings]) -> dict[str, list[Any]]:
    """The columns of pairs.csv: for each aim, what one method wins and spends above another."""
    rows = [
        (each.outcomes.name, name, one.label, other.label, *point.above(beside, each.options))
        for each in found
        for one, other in itertools.permutations([c for c in each.frontiers if not c.oracle], 2)
        for name, point in one.points.items()
        if point is not None and (beside := other.points[name]) is not None
    ]
    columns = list(zip(*rows, strict=True)) or [()] * 6
    return {
        **dict(zip(("pool", "aim", "method", "against"), map(list, columns[:4]), strict=True)),
        **interval_columns("value_difference", columns[4]),
        **interval_columns("cost_difference", columns[5]),
    }


def roc_columns(found: Sequence[Findings]) -> dict[str, list[Any]]:
    """The columns of roc.csv: the verifier's areas under the curve, and the curves."""
    rows = [(each.outcomes.name, each.roc) for each in found if each.roc is not None]
    points = [(name, roc, i) for name, roc in rows for i in range(len(roc.false_positives))]
    return {
        "pool": [name for name, _, _ in points],
        "auc": cells([roc.auc for _, roc, _ in points]),
        **interval_columns("auc_within", [roc.auc_within for _, roc, _ in points]),
        "problems": [roc.num_problems for _, roc, _ in points],
        "false_positives": cells([roc.false_positives[i] for _, roc, i in points]),
        "true_positives": cells([roc.pooled[i] for _, roc, i in points]),
        "true_positives_within": cells([roc.within[i] for _, roc, i in points]),
    }


def reliability_columns(found: Sequence[Findings]) -> dict[str, list[Any]]:
    """The columns of reliability.csv: the bins of every method that claims P(right)."""
    bins = [
        (each.outcomes.name, label, one, i)
        for each in found
        for label, one in each.reliabilities.items()
        for i in range(len(one.count))
    ]
    return {
        "pool": [name for name, *_ in bins],
        "method": [label for _, label, *_ in bins],
        "error": cells([one.error for _, _, one, _ in bins]),
        "claimed": cells([one.claimed[i] for _, _, one, i in bins]),
        "right": cells([one.right[i] for _, _, one, i in bins]),
        "count": [int(one.count[i]) for _, _, one, i in bins],
    }


def law_columns(found: Sequence[Findings]) -> dict[str, list[Any]]:
    """The columns of laws.csv: each law on each pool, in nats a held-out score."""
    rows = [
        (each.outcomes.name, name, one)
        for each in found
        if each.fit is not None and each.fit.laws is not None
        for name, one in each.fit.laws.laws.items()
    ]
    return {
        "pool": [pool for pool, _, _ in rows],
        "law": [law for _, law, _ in rows],
        **interval_columns("nats", [one.value for _, _, one in rows]),
        **interval_columns("difference_from_best", [one.difference for _, _, one in rows]),
    }


# The page -----------------------------------------------------------------------------------------


def section(found: Findings, *, anchor: str) -> Section:
    """What the page says of one pool, with its figures drawn; links to it end with the anchor."""
    tables = [settings_table(found), curve_table(found), reach_table(found)]
    if found.fit is not None and found.fit.laws is not None:
        tables.append(law_table(found.fit.laws))
    return Section(found, anchor, headline(found), sentences(found), tables, drawings(found))


def settings_table(found: Findings) -> Table:
    """Each row's settings, its difference from the baseline, and the optimism of peeking."""
    unit, cost = UNITS[found.outcomes.value_kind], found.outcomes.cost_kind
    signed = f"+.{unit.digits}f"
    rows = []
    for row, read in zip(found.rows, found.with_verifier, strict=True):
        words = ["", "", ""]
        if row.tuned:
            words = [
                row.chosen_in_words(("max_samples", "min_samples", "decide")),
                or_dash(unit.scale * row.fit.optimism_accuracy, signed),
                or_dash(row.fit.optimism_tokens, "+,.0f"),
            ]
        known = not np.isnan(row.difference.mean)
        difference = unit.interval(row.difference, "+") if known else "–"
        shares = (row.saved, row.share_of_saving, row.share_of_hindsight)
        saved = [or_dash(100 * share, ".0f") for share in shares]
        line = [str(row.cap), row.method.label, words[0], difference, *saved, *words[1:]]
        rows.append([*line, or_dash(read, ",.0f")])
    heads = ["N", "method", "settings chosen", f"difference, {unit.difference}"]
    heads += [f"{cost} saved, %", "share of the oracle's saving, %", "of the hindsight oracle's, %"]
    heads += [f"optimism, {unit.difference}", f"optimism, {cost}", "tokens with the verifier's"]
    note = (
        "Difference: from best-of-N (or else self-consistency) with the same N. Optimism: what the "
        "same search on the test set claims above the cross-fitted result. A share of the oracle's "
        "saving above 100 is possible: rules that look at what was drawn can stop earlier than a "
        "number fixed beforehand. The hindsight oracle's is the limit of rules that are as often "
        "right as it is."
    )
    title = "Cross-fitted, and the optimism of tuning on the test set"
    return Table(title, heads, rows, [note], num_labels=3, blocks=True)


def curve_table(found: Findings) -> Table:
    """Each method's curve in five numbers."""
    value, cost = found.outcomes.kinds
    unit = UNITS[value]
    plain = f".{unit.digits}f"
    rows = [
        [
            curve.label,
            or_dash(unit.scale * curve.area, plain),
            or_dash(unit.scale * curve.area_peeking, plain),
            or_dash(curve.reach_cost, ",.0f"),
            or_dash(unit.scale * curve.reach_difference, f"+{plain}"),
            or_dash(curve.reach_peeking, ",.0f"),
        ]
        for curve in found.frontiers
    ]
    starts = [c.area_from for c in found.frontiers if not np.isnan(c.area_from)]
    start = f"{max(starts):,.0f}" if starts else "any"
    heads = ["method", "area under the curve" + (", %" if value == "accuracy" else "")]
    heads += ["tuned on the test set", f"{cost} to reach the deepest baseline"]
    heads += [f"difference then, {unit.difference}", "tuned on the test set"]
    note = (
        f"Area: mean {value} over the same budgets for all methods, evenly in their logarithm: "
        f"from {start} {cost} a problem, the least that every method can keep to, to the deepest "
        "baseline's. –: no setting is as cheap."
    )
    return Table("All settings and N together", heads, rows, [note], num_labels=1)


def reach_table(found: Findings) -> Table:
    """Each method within budgets, as good as the best fixed n, and at its best."""
    unit, cost = UNITS[found.outcomes.value_kind], found.outcomes.cost_kind

    def won(point: Point | None) -> str:
        return "–" if point is None else unit.interval(point.value)

    def spent(point: Point | None) -> str:
        return "–" if point is None else or_dash(float(point.cost.mean), ",.0f")

    rows = []
    for curve in found.frontiers:
        row = [curve.label, str(curve.knobs), *(won(curve.within.get(s)) for s in SHARES)]
        for point in (curve.equal, curve.best):
            row += [won(point), spent(point)]
        row.insert(-2, or_dash(100 * curve.share_of_hindsight, ".0f"))
        rows.append(row)
    heads = ["method", "knobs", *(f"within {share:.0%}" for share in SHARES)]
    heads += ["as good as the best n", cost, "of hindsight's saving, %", "best", cost]
    note = (
        f"{unit.heading.capitalize()}, and {cost} a problem. Within: at most that share of what "
        "the deepest baseline spends. As good as the best n: the cheapest setting that on the "
        "other folds is at least as good as the baseline's n that is best there, or the most "
        "accurate where none is; and which share it saves of what the hindsight oracle saves when "
        "it is as good as that. ±: half the "
        f"width of the {found.options.level:.0%} interval, in each of whose resamples the settings "
        "are chosen again. –: no setting is as cheap."
    )
    return Table("What each method reaches", heads, rows, [note], num_labels=1)


def law_table(laws: LawComparison) -> Table:
    """Each law's held-out log-likelihood, the best first."""

    def interval(part: Interval, sign: str = "") -> str:
        return f"{part.mean:{sign}.3f} ({part.low:{sign}.3f} to {part.high:{sign}.3f})"

    ranked = sorted(laws.laws.items(), key=lambda each: -float(each[1].value.mean))
    rows = [[name, interval(one.value), interval(one.difference, "+")] for name, one in ranked]
    note = (
        f"{laws.sentence} {laws.num_scores:,} scores of {laws.num_problems} problems, each "
        f"judged by the probability of its cell, {laws.resolution:g} wide, under a fit to the "
        "same problem's other scores."
    )
    heads = ["law", "nats a score", "difference from the best"]
    title = "Laws of scores on scores that they have not seen"
    return Table(title, heads, rows, [note], num_labels=1)


def sentences(found: Findings) -> list[str]:
    """On the deepest N: what is saved, what peeking would have claimed; and pass@k."""
    unit, cost = UNITS[found.outcomes.value_kind], found.outcomes.cost_kind
    deepest = max(row.cap for row in found.rows)
    words = []
    for row in found.rows:
        if row.cap != deepest or not row.tuned:
            continue
        text = f"{row.method.label} at N = {deepest}: {unit.value(row.value.mean)}"
        text += f" for {row.cost.mean:,.0f} {cost} a problem"
        if row.baseline is not None:
            mean, low, high = (unit.difference_of(part) for part in row.difference)
            text += f", {mean} ({low} to {high}) against {row.baseline} and "
            text += f"{row.saved:.0%} fewer {cost}"
        words.append(f"{text}.")
    tuned = [row for row in found.rows if row.cap == deepest and row.tuned]
    if tuned:
        value = np.array([row.fit.optimism_accuracy for row in tuned])
        spent = np.array([row.fit.optimism_tokens for row in tuned])
        most = int(np.nanargmax(value)) if not np.isnan(value).all() else 0
        words.append(
            f"Tuned on the test set, these would claim at most "
            f"{unit.difference_of(float(value[most]))} ({tuned[most].method.label}) and between "
            f"{np.nanmin(spent):+,.0f} and {np.nanmax(spent):+,.0f} {cost} more than they do here."
        )
    ends = [
        f"{row.method.label} {' '.join(f'{k}={v:g}' for k, v in row.at_ends.items())}"
        for row in tuned
        if row.at_ends and not row.method.oracle
    ]
    if ends:
        words.append(
            f"Chosen at an end of what was tried, beyond which may be better: {'; '.join(ends)}."
        )
    if found.subsets:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in found.subsets.items())
        words.append(f"{shares} (unbiased, over all subsets of the completions).")
    if (roc := found.roc) is not None:
        within, low, high = roc.auc_within
        words.append(
            f"The verifier scores a right completion above a wrong one with probability "
            f"{within:.3f} ({low:.3f} to {high:.3f}) within a problem, over the "
            f"{roc.num_problems} problems that have both, and {roc.auc:.3f} over all completions."
        )
    words += [
        f"{label} claims its answers at the stop to be right with a calibration error of "
        f"{bins.error:.3f}."
        for label, bins in found.reliabilities.items()
    ]
    if cost == "tokens" and np.isnan(found.with_verifier).any():
        words.append(
            "Tokens are those of completions: what the verifier reads is not known of this pool."
        )
    return words


# Figures ------------------------------------------------------------------------------------------


def drawings(found: Findings) -> list[Drawing]:
    """Every figure of a pool's section."""
    figures = [_curves(found), _by_n(found)]
    figures += [_sensitivity(found, argument) for argument in found.sensitivities]
    if found.reliabilities:
        figures.append(
            Drawing(
                "reliability",
                reliability_diagram(found.reliabilities),
                "Is the claimed P(right) true?",
                "Every problem in every order, in ten bins of as many claims each: the mean claim "
                "of an answer at the stop, and the share that is right, at the largest N and the "
                "settings chosen by cross-fitting. On the dotted line a claim is true.",
            )
        )
    if found.roc is not None:
        figures.append(
            Drawing(
                "roc",
                roc_curves(found.roc),
                "Can the verifier tell right from wrong?",
                "ROC of the scores. Within problems: the mean over problems that have both right "
                "and wrong completions, which is what a policy lives on; all completions together "
                "also tell easy problems from hard ones. On the dotted line scores say nothing.",
            )
        )
    if found.fit is None or found.pool is None:
        return figures
    fit, ks = found.fit.calibration, found.fit.calibration.ks.mean()
    histograms = Drawing(
        "scores",
        score_histograms(found.pool, fit),
        "Scores, and the law fitted to them",
        "All problems together, and problems spread evenly over the ranks of their mean score.",
    )
    panels = Drawing(
        "calibration",
        calibration_panels(fit, found.fit.realised),
        "Does the law fit?",
        f"Mean Kolmogorov-Smirnov distance {ks:.3f} a problem, against {fit.ks_expected:.3f} for "
        "as many scores of the law itself. Realised: the share of problems whose best of N* scores "
        "reaches s_min, over those with enough completions; s_min at the median and the 75th and "
        "90th percentile of all scores.",
    )
    return [*figures, histograms, panels]


def _curves(found: Findings) -> Drawing:
    outcomes, level = found.outcomes, found.options.level
    value, cost = outcomes.kinds
    curves, base = [], outcomes.baseline()
    for f in found.frontiers:
        # The problems' own spread is common to all curves; more than one band would hide them.
        band = (None, None) if curves else (f.low, f.high)
        dots = (f.every_cost, f.every_value) if len(f.every_cost) > DOTS_ABOVE else (None, None)
        curve = Curve(f.label, f.cost, f.value, *band, *dots)
        if base is not None and f.label == base[0]:
            # The curve ends at its best setting; what everything is measured against is here.
            method = next(m for m in outcomes.methods if m.label == f.label)
            deepest = f"{f.label} at N = {int(method.caps.max())}"
            curve = curve._replace(mark=(deepest, float(base[2].mean()), float(base[1].mean())))
        curves.append(curve)
    return Drawing(
        "accuracy_vs_tokens",
        accuracy_against_tokens(curves, x=cost, y=value, level=level),
        f"{value.capitalize()} against {cost}",
        "Each point: the setting that is best within a budget on the other folds of the problems. "
        f"Dots: every setting, as the search on the test set sees them. Band: {level:.0%} interval "
        f"of {curves[0].label}, over problems and orders; the differences in the tables, which are "
        "paired, are known far better.",
        {f.label: _tips(f, outcomes) for f in found.frontiers},
    )


def _tips(frontier: Frontier, outcomes: Outcomes) -> list[str]:
    """What is said at each point of a curve."""
    value, cost = UNITS[outcomes.value_kind], outcomes.cost_kind
    points = zip(frontier.settings, frontier.value, frontier.cost, strict=True)
    return [
        f"{frontier.label} ({words}): {value.value(won)} for {spent:,.0f} {cost}"
        for words, won, spent in points
    ]


def _by_n(found: Findings) -> Drawing:
    cost = found.outcomes.cost_kind
    points: dict[str, list[tuple[float, float]]] = {}
    for row in found.rows:
        points.setdefault(row.method.label, []).append((float(row.cap), float(row.cost.mean)))
    curves = [Curve(label, *np.array(each).T) for label, each in points.items()]
    return Drawing(
        "tokens_vs_n",
        tokens_against_n(curves, cost=cost),
        f"{cost.capitalize()} against N",
        "Settings chosen by cross-fitting, as in the table, which has the intervals. Rules that "
        "always draw N coincide.",
    )


def _sensitivity(found: Findings, argument: str) -> Drawing:
    outcomes, level = found.outcomes, found.options.level
    value, cost = outcomes.kinds
    parts = found.sensitivities[argument]
    groups: dict[str, list[tuple[Curve, np.ndarray]]] = {}
    for part in parts:
        held = ", ".join(f"{name} = {number:g}" for name, number in part.fixed.items())
        largest = part.cap == max(p.cap for p in parts if p.label == part.label)
        curve = Curve(f"N = {part.cap}", part.x, part.value)
        if largest:
            curve = curve._replace(low=part.low, high=part.high)
        title = f"{part.label}, {held}" if held else part.label
        groups.setdefault(title, []).append((curve, part.cost))
    panels = list(groups.items())
    return Drawing(
        f"sensitivity_{argument}",
        sensitivity_panels(panels, argument=argument, y=value, cost=cost, level=level),
        f"Sensitivity to {argument}",
        f"{value.capitalize()} (left) and {cost} (right) as {argument} changes and nothing else "
        f"does. Band: {level:.0%} interval at the largest N.",
    )
