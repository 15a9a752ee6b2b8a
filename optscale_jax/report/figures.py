"""Figures, drawn with matplotlib's own objects (no pyplot, no display, no global state).

Colours are those of Okabe and Ito, which colour-blind readers tell apart, and each curve has its
own marker besides, so that a figure survives a grey printer. Text is never below 8 points at the
printed width.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

__all__ = [
    "COLOURS",
    "COLUMN_WIDTH",
    "CURVE",
    "MARKERS",
    "PAGE_WIDTH",
    "STYLE",
    "Curve",
    "Drawing",
    "accuracy_against_tokens",
    "differences_against_n",
    "save",
    "sensitivity_panels",
    "styles_of",
    "tokens_against_n",
]

COLUMN_WIDTH, PAGE_WIDTH = 3.4, 7.0
"""Inches: one column, and both, of a two-column page."""

# Okabe and Ito (2008) without their yellow, which is hard to see on white, and ending with black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
# A method has one style in every figure, whatever stands beside it: these in their order, others
# those that are left, in theirs. Curves of one method may say more after its name.
METHODS = (
    ("OptScale⁰", "optscale"),
    ("best-of-N", "best_of_n"),
    ("calibrated vote", "calibrated_vote"),
    ("first hit", "first_hit"),
    ("OptScaleᵗ", "learned prior"),
    ("self-consistency", "self_consistency"),
    ("oracle (knows F)", "known_law"),
    ("OptScale⁰, once", "OptScale⁺"),
    ("weighted SC", "weighted_self_consistency"),
    ("ESC", "early_stopping_self_consistency"),
    ("ASC", "adaptive_self_consistency"),
    ("DSC", "difficulty_adaptive_self_consistency"),
    ("hit or gain", "hit_or_gain"),
    ("MR-Thinking", "mr_thinking"),
    ("hindsight", "hindsight"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
STYLE: Any = {
    "font.size": 8,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.linewidth": 0.4,
    "grid.color": "#d9d9d9",
    # TrueType, since some publishers refuse Type 3.
    "pdf.fonttype": 42,
}
CURVE = "curve-"
"""What a curve's number follows in the names of its parts in an SVG file; "beside" then follows
where the part is not its line."""

_X_LABELS = {"tokens": "tokens per problem", "samples": "completions per problem"}
_Y_LABELS = {
    "accuracy": "accuracy (% of problems)",
    "score": "mean score of the completion returned",
}


Cost = Literal["tokens", "samples"]
Value = Literal["accuracy", "score"]


class Curve(NamedTuple):
    """One policy in a figure, arrays [S] over the settings of its curve."""

    label: str  # its name in the legend
    x: np.ndarray  # mean tokens or completions per problem
    y: np.ndarray  # mean accuracy, in [0, 1], or mean score
    low: np.ndarray | None = None  # the ends of y's interval
    high: np.ndarray | None = None
    others_x: np.ndarray | None = None  # [T] settings that are not on the curve: faint dots
    others_y: np.ndarray | None = None
    mark: tuple[str, float, float] | None = None  # a setting apart from the curve: its name, x, y


class Drawing(NamedTuple):
    """A figure with its words: its file's name without a suffix, a heading, a caption."""

    name: str
    figure: Figure
    heading: str
    caption: str
    # Label of each of the figure's curves, in their order, to what is said of each of its points:
    # the page shows it at the point, and lets a curve be hidden.
    tips: Mapping[str, Sequence[str]] = {}


def accuracy_against_tokens(
    curves: Sequence[Curve],
    *,
    x: Cost = "tokens",
    y: Value = "accuracy",
    level: float = 0.95,
    width: float = PAGE_WIDTH,
) -> Figure:
    """What each policy wins for what it spends: one curve a policy, one marker a setting.

    Args:
        curves: The policies, in the order of the legend.
        x: What the curves' x is.
        y: What the curves' y is.
        level: Coverage of the intervals, in (0, 1), for the legend.
        width: Printed width in inches.

    Raises:
        ValueError: If there is no curve.
    """
    narrow = width < 5
    with _one_axes(curves, 0.68 if narrow else 0.5, width=width, extra=2) as (
        figure,
        axes,
        handles,
    ):
        size = 3.2 if narrow else 4.5
        styles = styles_of([curve.label for curve in curves])
        for index, curve in enumerate(curves):
            handles[curve.label] = _draw(axes, curve, index, size, styles[curve.label])
        for index, curve in enumerate(curves):
            if curve.mark is not None:
                name, *at = curve.mark
                hollow = {"markerfacecolor": "white", "linestyle": "", "markersize": size + 1}
                number = styles[curve.label]
                hollow |= {"marker": MARKERS[number % len(MARKERS)], "color": _colour(number)}
                gid = f"{CURVE}{index} beside"
                (handles[name],) = axes.plot(*at, zorder=4, gid=gid, **hollow)
        if any(curve.low is not None for curve in curves):
            handles[f"{level:.0%} interval"] = _band()
        dots = [
            Line2D([], [], linestyle="", marker=".", markersize=4, color=_colour(n), alpha=0.5)
            for curve, n in ((c, styles[c.label]) for c in curves)
            if curve.others_x is not None
        ]
        if dots:
            handles["the policy's other settings"] = tuple(dots)
        parts = [part for c in curves for part in (c.x, c.others_x) if part is not None]
        parts += [np.array([c.mark[1]]) for c in curves if c.mark is not None]
        scale = " (log scale)" if _log(axes, "x", np.concatenate(parts), 1.1) else ""
        if y == "accuracy":
            _percent_y(axes)
        axes.set_xlabel(_X_LABELS[x] + scale)
        axes.set_ylabel(_Y_LABELS[y])
    return figure


def tokens_against_n(curves: Sequence[Curve], *, cost: Cost = "tokens") -> Figure:
    """What each method spends as its cap N rises: one curve a method, one marker an N.

    The curves' x is N, their y the mean cost.

    Raises:
        ValueError: If there is no curve.
    """
    with _one_axes(curves, 0.5) as (figure, axes, handles):
        styles = styles_of([curve.label for curve in curves])
        for index, curve in enumerate(curves):
            handles[curve.label] = _draw(axes, curve, index, 4.5, styles[curve.label])
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(_caps(curves)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("N: most completions per problem (log scale)")
        axes.set_ylabel(_X_LABELS[cost])
        _log_y(axes, np.concatenate([curve.y for curve in curves]))
    return figure


def differences_against_n(
    curves: Sequence[Curve], *, baseline: str, cost: Cost = "tokens", level: float = 0.95
) -> Figure:
    """What each method spends more than another one (`baseline`) at each cap N, with intervals.

    The curves' x is N, their y the share spent more (negative: saved), with its interval, whose
    coverage is the level.

    Raises:
        ValueError: If there is no curve, or one has no interval.
    """
    with _one_axes(curves, 0.45) as (figure, axes, handles):
        axes.grid(False, axis="x")
        axes.axhline(0, color="black", linewidth=0.6)
        caps = _caps(curves)
        styles = styles_of([curve.label for curve in curves])
        for index, curve in enumerate(curves):
            if curve.low is None or curve.high is None:
                raise ValueError(f"{curve.label}: a difference needs its interval")
            # Beside each other, so that no interval hides another.
            places = np.searchsorted(caps, curve.x) + 0.15 * (index - (len(curves) - 1) / 2)
            handles[curve.label] = axes.errorbar(
                places,
                curve.y,
                yerr=[curve.y - curve.low, curve.high - curve.y],
                color=_colour(styles[curve.label]),
                marker=MARKERS[styles[curve.label] % len(MARKERS)],
                markersize=4.5,
                linestyle="",
                elinewidth=1,
                capsize=2,
            )
        axes.set_xticks(range(len(caps)), [f"{cap:g}" for cap in caps])
        axes.set_xlim(-0.5, len(caps) - 0.5)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:+g}"))
        axes.set_xlabel("N: most completions per problem")
        unit = "tokens" if cost == "tokens" else "completions"
        axes.set_ylabel(f"{unit} against {baseline} (%)\n{level:.0%} intervals")
    return figure


def sensitivity_panels(
    rows: Sequence[tuple[str, Sequence[tuple[Curve, np.ndarray]]]],
    *,
    argument: str,
    y: Value = "accuracy",
    cost: Cost = "tokens",
    level: float = 0.95,
) -> Figure:
    """How accuracy and tokens depend on one argument: a row of two panels for each method.

    Args:
        rows: A title, and the curves with the cost [V] of their points: x is the argument, y the
            accuracy. Curves of the same label share a colour and the legend's entry.
        argument: The argument's name.
        y: What the curves' y is.
        cost: What the cost is.
        level: Coverage of the intervals, for the legend.

    Raises:
        ValueError: If there is no row.
    """
    if not rows:
        raise ValueError("a figure needs at least one row")
    labels = list(dict.fromkeys(curve.label for _, curves in rows for curve, _ in curves))
    with rc_context(STYLE):
        columns, legend = _legend_shape(labels, PAGE_WIDTH, extra=1)
        height = 0.34 * PAGE_WIDTH * len(rows) + legend
        figure = Figure(figsize=(PAGE_WIDTH, height), layout="constrained")
        grid = figure.subplots(len(rows), 2, squeeze=False, sharex=True)
        handles: dict[str, Any] = dict.fromkeys(labels)
        for (title, curves), (left, right) in zip(rows, grid, strict=True):
            for curve, spent in curves:
                colour = labels.index(curve.label)
                handles[curve.label] = _draw(left, curve, colour, 3.6)
                _draw(right, Curve(curve.label, curve.x, spent), colour, 3.6)
            for axes in (left, right):
                axes.grid(True)
                axes.set_axisbelow(True)
            if y == "accuracy":
                _percent_y(left)
            left.set_ylabel("accuracy (%)" if y == "accuracy" else "mean score")
            right.set_ylabel(_X_LABELS[cost])
            _log(right, "y", np.concatenate([spent for _, spent in curves]), 1.05)
            left.set_title(title, loc="left", fontsize=9)
        for axes in grid[-1]:
            axes.set_xlabel(argument)
        handles[f"{level:.0%} interval"] = _band()
        _outside_legend(figure, handles, columns)
    return figure


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure as PATH.png (300 dots per inch) and PATH.pdf, the same bytes every time."""
    path = Path(path)
    with rc_context(STYLE):
        figure.savefig(path.with_name(path.name + ".png"), dpi=300, metadata={"Software": None})
        figure.savefig(path.with_name(path.name + ".pdf"), metadata={"CreationDate": None})


@contextlib.contextmanager
def _one_axes(
    curves: Sequence[Curve], shape: float, *, width: float = PAGE_WIDTH, extra: int = 0
) -> Iterator[tuple[Figure, Axes, dict[str, Any]]]:
    """A figure's axes, of a height relative to their width, and handles by label for its legend."""
    if not curves:
        raise ValueError("a figure needs at least one curve")
    with rc_context(STYLE):
        columns, legend = _legend_shape([curve.label for curve in curves], width, extra)
        figure = Figure(figsize=(width, shape * width + legend), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(True)
        axes.set_axisbelow(True)
        handles: dict[str, Any] = {}
        yield figure, axes, handles
        _outside_legend(figure, handles, columns)


def _legend_shape(labels: Sequence[str], width: float, extra: int) -> tuple[int, float]:
    """Columns of a legend, and its height in inches, for labels and `extra` entries more."""
    # As many columns as fit: 8-point text takes about a sixteenth of an inch a letter.
    longest = max(len(label) for label in labels)
    columns = int(np.clip(width / (0.065 * longest + 0.45), 1, 4))
    return columns, 0.17 * -(-(len(labels) + extra) // columns)


def _outside_legend(figure: Figure, handles: Mapping[str, Any], columns: int) -> None:
    # Outside the axes it cannot cover data.
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        handlelength=1.8,
        columnspacing=1.2,
        handler_map={tuple: HandlerTuple(ndivide=None)},
    )


def _band() -> Patch:
    """An interval's handle."""
    return Patch(facecolor="#7f7f7f", alpha=0.25, linewidth=0)


def _caps(curves: Sequence[Curve]) -> list[float]:
    return sorted({float(x) for curve in curves for x in curve.x})


def _percent_y(axes: Axes) -> None:
    """Labels shares as percentages, on an axis that does not reach for more than all of them."""
    low, high = axes.get_ylim()
    # A little above, so that no marker at 100% is cut in half.
    axes.set_ylim(low, min(high, 1 + 0.03 * (1 - low)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:g}"))


def _log_y(axes: Axes, values: np.ndarray) -> None:
    if _log(axes, "y", values, 1.05):
        axes.set_ylabel(axes.get_ylabel() + " (log scale)")


def _log(axes: Axes, name: Literal["x", "y"], values: np.ndarray, margin: float) -> bool:
    """Makes an axis logarithmic, with round ticks, unless a policy spends nothing: no logarithm."""
    if not np.all(values > 0):
        return False
    low, high = float(values.min()), float(values.max())
    # Some air on both sides, and a range even where all curves stand on one value.
    margin = max((high / low) ** 0.05, margin)
    low, high = low / margin, high * margin
    getattr(axes, f"set_{name}scale")("log")
    getattr(axes, f"set_{name}lim")(low, high)
    axis = getattr(axes, f"{name}axis")
    axis.set_major_locator(FixedLocator(_log_ticks(low, high)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    return True


def styles_of(labels: Sequence[str]) -> dict[str, int]:
    """The style's number of each curve: that of its method, or else one that no other has."""
    found: dict[str, int] = {}
    for label in labels:
        own = [
            (len(name), number)
            for number, names in enumerate(METHODS)
            for name in names
            if f"{label},".startswith((f"{name},", f"{name} "))
        ]
        if own and max(own)[1] not in found.values():
            found[label] = max(own)[1]
    for label in labels:
        free = (number for number in itertools.count() if number not in found.values())
        found.setdefault(label, next(free))
    return found


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _draw(axes: Axes, curve: Curve, index: int, size: float, style: int | None = None) -> Line2D:
    """Draws a curve, of a style or that of its index; returns what stands for it in a legend."""
    style = index if style is None else style
    colour = _colour(style)
    if curve.others_x is not None and curve.others_y is not None:
        axes.plot(
            curve.others_x,
            curve.others_y,
            linestyle="",
            marker=".",
            markersize=3,
            markeredgewidth=0,
            color=colour,
            alpha=0.35,
            zorder=2,
            gid=f"{CURVE}{index} beside",
        )
    order = np.argsort(curve.x, kind="stable")
    xs, ys = np.asarray(curve.x)[order], np.asarray(curve.y)[order]
    if curve.low is not None and curve.high is not None:
        low, high = np.asarray(curve.low)[order], np.asarray(curve.high)[order]
        if len(xs) > 1:
            band = axes.fill_between(xs, low, high, color=colour, alpha=0.1, linewidth=0, zorder=1)
        else:
            band = axes.vlines(xs, low, high, color=colour, alpha=0.5, linewidth=1, zorder=1)
        band.set_gid(f"{CURVE}{index} beside")
    (line,) = axes.plot(
        xs,
        ys,
        color=colour,
        # Beyond the last colour, dashes tell apart what shares one.
        linestyle=("-", "--", ":")[style // len(COLOURS) % 3],
        marker=MARKERS[style % len(MARKERS)],
        markersize=size,
        markeredgecolor="white",
        markeredgewidth=0.4,
        linewidth=0.28 * size,
        zorder=3,
        gid=f"{CURVE}{index}",
    )
    # In the legend the marker needs its line.
    names = ("color", "linestyle", "marker", "markersize")
    names += ("markeredgecolor", "markeredgewidth", "linewidth")
    return Line2D([], [], **{name: getattr(line, f"get_{name}")() for name in names})


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers inside (low, high), at least three of them, and at most about ten."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), range(1, 10), np.arange(10, 100) / 10):
        ticks = [float(s * 10.0**d) for d in decades for s in steps if low < s * 10.0**d < high]
        if len(ticks) >= 4:
            return ticks if len(ticks) <= 12 else ticks[:: -(-len(ticks) // 8)]
    return ticks
