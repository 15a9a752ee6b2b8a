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

__all__ = ["COLUMN_WIDTH", "PAGE_WIDTH", "Curve", "accuracy_against_tokens", "save"]

COLUMN_WIDTH, PAGE_WIDTH = 3.4, 7.0
"""Inches: one column, and both, of a two-column page."""

# Okabe and Ito (2008) without their yellow, which is hard to see on white, and ending with black.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
_STYLE: Any = {
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
    with rc_context(_STYLE):
        # As many columns as fit: 8-point text takes about a sixteenth of an inch a letter.
        longest = max(len(curve.label) for curve in curves)
        columns = int(np.clip(width / (0.065 * longest + 0.45), 1, 4))
        legend = 0.17 * -(-(len(curves) + 2) // columns)
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
            axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:g}"))
        axes.set_xlabel(_X_LABELS[x] + scale)
        axes.set_ylabel(_Y_LABELS[y])
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
    return figure


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure as PATH.png (300 dots per inch) and PATH.pdf, the same bytes every time.

    Args:
        figure: The figure.
        path: Without a suffix.
    """
    path = Path(path)
    with rc_context(_STYLE):
        figure.savefig(path.with_name(path.name + ".png"), dpi=300, metadata={"Software": None})
        figure.savefig(path.with_name(path.name + ".pdf"), metadata={"CreationDate": None})


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


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
        marker=_MARKERS[index % len(_MARKERS)],
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
