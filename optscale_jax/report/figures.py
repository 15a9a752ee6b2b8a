"""Figures, drawn with matplotlib's own objects (no pyplot, no display, no global state).

Colours are those of Okabe and Ito, which colour-blind readers tell apart, and each curve has its
own marker besides, so that a figure survives a grey printer. Text is never below 8 points at the
printed width.
"""

import os
from collections.abc import Sequence
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
    "MARKERS",
    "PAGE_WIDTH",
    "STYLE",
    "Curve",
    "Drawing",
    "accuracy_against_tokens",
    "differences_against_n",
    "save",
    "sensitivity_panels",
    "tokens_against_n",
]

COLUMN_WIDTH, PAGE_WIDTH = 3.4, 7.0
"""Inches: one column, and both, of a two-column page."""

# Okabe and Ito (2008) without their yellow, which is hard to see on white, and ending with black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
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
_X_LABELS = {
    "tokens": "tokens per problem",
    "samples": "completions per problem",
}
_Y_LABELS = {
    "accuracy": "accuracy (% of problems)",
    "score": "mean score of the completion returned",
}


class Curve(NamedTuple):
    """One policy in a figure, arrays [S] over the settings of its curve.

    Attributes:
        label: Its name in the legend.
        x: Mean tokens or completions per problem.
        y: Mean accuracy, in [0, 1], or mean score.
        low: Lower end of y's interval; None for none.
        high: Upper end.
        others_x: [T] the same for settings that are not on the curve, drawn as faint dots; None for
            none.
        others_y: [T] likewise.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    others_x: np.ndarray | None = None
    others_y: np.ndarray | None = None


class Drawing(NamedTuple):
    """A figure with its words.

    Attributes:
        name: Its file's, without a suffix.
        figure: The figure.
        heading: What stands above it.
        caption: What it shows, and how to read it.
    """

    name: str
    figure: Figure
    heading: str
    caption: str


def accuracy_against_tokens(
    curves: Sequence[Curve],
    *,
    x: Literal["tokens", "samples"] = "tokens",
    y: Literal["accuracy", "score"] = "accuracy",
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

    Returns:
        The figure; `save` writes it.

    Raises:
        ValueError: If there is no curve.
    """
    if not curves:
        raise ValueError("a figure needs at least one curve")
    with rc_context(STYLE):
        columns, legend = _legend_shape([curve.label for curve in curves], width, extra=2)
        narrow = width < 5
        figure = Figure(
            figsize=(width, (0.68 if narrow else 0.5) * width + legend), layout="constrained"
        )
        axes = figure.add_subplot()
        axes.grid(True)
        axes.set_axisbelow(True)
        size = 3.2 if narrow else 4.5
        handles: list[Any] = [_draw(axes, curve, i, size) for i, curve in enumerate(curves)]
        labels = [curve.label for curve in curves]
        grey = "#7f7f7f"
        if any(curve.low is not None for curve in curves):
            handles.append(Patch(facecolor=grey, alpha=0.25, linewidth=0))
            labels.append(f"{level:.0%} interval")
        if any(curve.others_x is not None for curve in curves):
            dots = [
                Line2D([], [], linestyle="", marker=".", markersize=4, color=_colour(i), alpha=0.5)
                for i, curve in enumerate(curves)
                if curve.others_x is not None
            ]
            handles.append(tuple(dots))
            labels.append("the policy's other settings")
        scale = " (log scale)" if _log_axis(axes, curves) else ""
        if y == "accuracy":
            _percent_y(axes)
        axes.set_xlabel(_X_LABELS[x] + scale)
        axes.set_ylabel(_Y_LABELS[y])
        _outside_legend(figure, handles, labels, columns)
    return figure


def tokens_against_n(
    curves: Sequence[Curve],
    *,
    cost: Literal["tokens", "samples"] = "tokens",
    width: float = PAGE_WIDTH,
) -> Figure:
    """What each method spends as its cap N rises: one curve a method, one marker an N.

    Args:
        curves: The methods; x is N, y the mean cost.
        cost: What y is.
        width: Printed width in inches.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no curve.
    """
    if not curves:
        raise ValueError("a figure needs at least one curve")
    with rc_context(STYLE):
        columns, legend = _legend_shape([curve.label for curve in curves], width)
        figure = Figure(figsize=(width, 0.5 * width + legend), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(True)
        axes.set_axisbelow(True)
        handles = [_draw(axes, curve, index, 4.5) for index, curve in enumerate(curves)]
        axes.set_xscale("log", base=2)
        caps = sorted({float(x) for curve in curves for x in curve.x})
        axes.xaxis.set_major_locator(FixedLocator(caps))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("N: most completions per problem (log scale)")
        axes.set_ylabel(_X_LABELS[cost])
        _log_y(axes, np.concatenate([curve.y for curve in curves]))
        _outside_legend(figure, handles, [curve.label for curve in curves], columns)
    return figure


def differences_against_n(
    curves: Sequence[Curve],
    *,
    baseline: str,
    cost: Literal["tokens", "samples"] = "tokens",
    level: float = 0.95,
    width: float = PAGE_WIDTH,
) -> Figure:
    """What each method spends more than another one at each cap N, with intervals.

    Args:
        curves: The methods; x is N, y the share spent more (negative: saved), with its interval.
        baseline: The name of the other one.
        cost: What is spent.
        level: Coverage of the intervals, for the axis.
        width: Printed width in inches.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no curve, or one has no interval.
    """
    if not curves or any(curve.low is None or curve.high is None for curve in curves):
        raise ValueError("a figure needs at least one curve, each with its interval")
    caps = sorted({float(x) for curve in curves for x in curve.x})
    with rc_context(STYLE):
        columns, legend = _legend_shape([curve.label for curve in curves], width)
        figure = Figure(figsize=(width, 0.45 * width + legend), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(True, axis="y")
        axes.set_axisbelow(True)
        axes.axhline(0, color="black", linewidth=0.6)
        handles = []
        for index, curve in enumerate(curves):
            # Beside each other, so that no interval hides another.
            places = np.searchsorted(caps, curve.x) + 0.15 * (index - (len(curves) - 1) / 2)
            handles.append(
                axes.errorbar(
                    places,
                    curve.y,
                    yerr=[curve.y - curve.low, curve.high - curve.y],
                    color=_colour(index),
                    marker=MARKERS[index % len(MARKERS)],
                    markersize=4.5,
                    linestyle="",
                    elinewidth=1,
                    capsize=2,
                )
            )
        axes.set_xticks(range(len(caps)), [f"{cap:g}" for cap in caps])
        axes.set_xlim(-0.5, len(caps) - 0.5)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:+g}"))
        axes.set_xlabel("N: most completions per problem")
        unit = "tokens" if cost == "tokens" else "completions"
        axes.set_ylabel(f"{unit} against {baseline} (%)\n{level:.0%} intervals")
        _outside_legend(figure, handles, [curve.label for curve in curves], columns)
    return figure


def sensitivity_panels(
    rows: Sequence[tuple[str, Sequence[tuple[Curve, np.ndarray]]]],
    *,
    argument: str,
    y: Literal["accuracy", "score"] = "accuracy",
    cost: Literal["tokens", "samples"] = "tokens",
    level: float = 0.95,
    width: float = PAGE_WIDTH,
) -> Figure:
    """How accuracy and tokens depend on one argument: a row of two panels for each method.

    Args:
        rows: A title, and the curves with the cost [V] of their points: x is the argument, y the
            accuracy. Curves of the same label share a colour and the legend's entry.
        argument: The argument's name.
        y: What the curves' y is.
        cost: What the cost is.
        level: Coverage of the intervals, for the legend.
        width: Printed width in inches.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no row.
    """
    if not rows:
        raise ValueError("a figure needs at least one row")
    labels = list(dict.fromkeys(curve.label for _, curves in rows for curve, _ in curves))
    with rc_context(STYLE):
        columns, legend = _legend_shape(labels, width, extra=1)
        figure = Figure(figsize=(width, 0.34 * width * len(rows) + legend), layout="constrained")
        grid = figure.subplots(len(rows), 2, squeeze=False, sharex=True)
        handles: dict[str, Any] = {}
        for index, (title, curves) in enumerate(rows):
            left, right = grid[index]
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
            _log_y(right, np.concatenate([spent for _, spent in curves]))
            right.set_ylabel(_X_LABELS[cost])
            left.set_title(title, loc="left", fontsize=9)
        for axes in grid[-1]:
            axes.set_xlabel(argument)
        shown: list[Any] = [handles[label] for label in labels]
        shown.append(Patch(facecolor="#7f7f7f", alpha=0.25, linewidth=0))
        _outside_legend(figure, shown, [*labels, f"{level:.0%} interval"], columns)
    return figure


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure as PATH.png (300 dots per inch) and PATH.pdf, the same bytes every time.

    Args:
        figure: The figure.
        path: Without a suffix.
    """
    path = Path(path)
    with rc_context(STYLE):
        figure.savefig(path.with_name(path.name + ".png"), dpi=300, metadata={"Software": None})
        figure.savefig(path.with_name(path.name + ".pdf"), metadata={"CreationDate": None})


def _legend_shape(labels: Sequence[str], width: float, extra: int = 0) -> tuple[int, float]:
    """Columns of a legend, and its height in inches, for labels and `extra` entries more."""
    # As many columns as fit: 8-point text takes about a sixteenth of an inch a letter.
    longest = max(len(label) for label in labels)
    columns = int(np.clip(width / (0.065 * longest + 0.45), 1, 4))
    return columns, 0.17 * -(-(len(labels) + extra) // columns)


def _outside_legend(
    figure: Figure, handles: Sequence[Any], labels: Sequence[str], columns: int
) -> None:
    # Outside the axes it cannot cover data.
    figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        handlelength=1.8,
        columnspacing=1.2,
        handler_map={tuple: HandlerTuple(ndivide=None)},
    )


def _percent_y(axes: Axes) -> None:
    """Labels shares as percentages, on an axis that does not reach for more than all of them."""
    low, high = axes.get_ylim()
    # A little above, so that no marker at 100% is cut in half.
    axes.set_ylim(low, min(high, 1 + 0.03 * (1 - low)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:g}"))


def _log_y(axes: Axes, values: np.ndarray) -> None:
    """Makes the y axis logarithmic, with round ticks, if all values have a logarithm."""
    if not np.all(values > 0):
        return
    axes.set_yscale("log")
    low, high = float(values.min()), float(values.max())
    margin = max((high / low) ** 0.05, 1.05)
    low, high = low / margin, high * margin
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(FixedLocator(_log_ticks(low, high)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.set_ylabel(axes.get_ylabel() + " (log scale)")


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _draw(axes: Axes, curve: Curve, index: int, size: float) -> Line2D:
    colour = _colour(index)
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
        )
    order = np.argsort(curve.x, kind="stable")
    xs, ys = np.asarray(curve.x)[order], np.asarray(curve.y)[order]
    if curve.low is not None and curve.high is not None:
        low, high = np.asarray(curve.low)[order], np.asarray(curve.high)[order]
        if len(xs) > 1:
            axes.fill_between(xs, low, high, color=colour, alpha=0.1, linewidth=0, zorder=1)
        else:
            axes.vlines(xs, low, high, color=colour, alpha=0.5, linewidth=1, zorder=1)
    (line,) = axes.plot(
        xs,
        ys,
        color=colour,
        # Beyond the last colour, dashes tell apart what shares one.
        linestyle=("-", "--", ":")[index // len(COLOURS) % 3],
        marker=MARKERS[index % len(MARKERS)],
        markersize=size,
        markeredgecolor="white",
        markeredgewidth=0.4,
        linewidth=0.28 * size,
        zorder=3,
    )
    # In the legend the marker needs its line.
    return Line2D([], [], **{k: getattr(line, f"get_{k}")() for k in _LEGEND_PROPERTIES})


_LEGEND_PROPERTIES = (
    "color",
    "linestyle",
    "marker",
    "markersize",
    "markeredgecolor",
    "markeredgewidth",
    "linewidth",
)


def _log_axis(axes: Axes, curves: Sequence[Curve]) -> bool:
    """Makes the x axis logarithmic, unless a policy spends nothing, which has no logarithm."""
    parts = [part for c in curves for part in (c.x, c.others_x) if part is not None]
    values = np.concatenate([np.ravel(part) for part in parts])
    if not np.all(values > 0):
        return False
    axes.set_xscale("log")
    low, high = values.min(), values.max()
    # Some air on both sides, and a range even where all curves stand on one value.
    margin = max((high / low) ** 0.05, 1.1)
    low, high = low / margin, high * margin
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(_log_ticks(low, high)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    return True


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers inside (low, high), at least three of them, and at most about ten."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), range(1, 10), np.arange(10, 100) / 10):
        ticks = [float(s * 10.0**d) for d in decades for s in steps if low < s * 10.0**d < high]
        if len(ticks) >= 4:
            return ticks if len(ticks) <= 12 else ticks[:: -(-len(ticks) // 8)]
    return ticks
