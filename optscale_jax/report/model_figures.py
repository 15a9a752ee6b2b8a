"""Figures of the law of scores: does a truncated normal describe what the verifier says?"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from optscale_jax.calibration import Reliability
from optscale_jax.distributions import TruncatedNormal
from optscale_jax.pool import Pool
from optscale_jax.report.figures import COLOURS, MARKERS, PAGE_WIDTH, STYLE, styles_of
from optscale_jax.study.goodness_of_fit import Calibration, Realised
from optscale_jax.study.verifier import Roc

__all__ = ["calibration_panels", "reliability_diagram", "roc_curves", "score_histograms"]

_BLUE, _RED, _GREY = COLOURS[0], COLOURS[1], "#bdbdbd"


def score_histograms(pool: Pool, calibration: Calibration, *, num_problems: int = 7) -> Figure:
    """Histograms of scores with the fitted law: all problems together, and some one by one.

    The problems shown, at most `num_problems`, are spread evenly over the ranks of their mean
    score; the calibration is this pool's.
    """
    assert pool.scores is not None  # calibrate refuses such a pool
    scores = [row[mask] for row, mask in zip(pool.scores, pool.mask, strict=True)]
    ranked = np.argsort([row.mean() for row in scores], kind="stable")
    count = min(num_problems, len(scores))
    shown = ranked[np.round(np.linspace(0, len(ranked) - 1, count)).astype(int)]
    columns = min(4, count + 1)
    rows = -(-(count + 1) // columns)
    loc, scale = calibration.loc[:, None], calibration.scale[:, None]
    bins = np.linspace(0, 1, 41)
    # Mass in each bin: a density may be without bound, and a mass is what a histogram shows.
    mass = np.diff(np.asarray(TruncatedNormal(loc, scale).cdf(jnp.asarray(bins))), axis=1)
    weights = pool.samples_per_problem / pool.samples_per_problem.sum()
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE_WIDTH, 1.35 * rows + 0.55), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
        panels: list[tuple[str, np.ndarray, np.ndarray]] = [
            ("all problems", np.concatenate(scores), weights @ mass)
        ]
        panels += [(str(pool.problem_ids[p]), scores[p], mass[p]) for p in shown]
        for axes, (title, values, fitted) in zip(grid.flat, panels, strict=False):
            observed = np.histogram(values, bins)[0] / len(values)
            axes.stairs(observed, bins, fill=True, color=_GREY, label="scores")
            axes.stairs(fitted, bins, color=_BLUE, linewidth=1.2, label="fitted law")
            axes.set_title(title if len(title) <= 24 else "…" + title[-23:], fontsize=8)
            axes.set_xlim(0, 1)
            axes.set_ylim(0, 1.08 * max(observed.max(), fitted.max()))
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}")
            axes.locator_params(axis="y", nbins=4)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_axis_off()
        for column in range(columns):
            last = max(i for i in range(len(panels)) if i % columns == column)
            grid.flat[last].set_xlabel("score")
            grid.flat[last].tick_params(labelbottom=True)
        for row in grid:
            row[0].set_ylabel("% of completions")
        labelled = grid.flat[0].get_legend_handles_labels()
        figure.legend(*labelled, loc="outside upper left", ncols=2, frameon=False)
    return figure


def calibration_panels(
    calibration: Calibration,
    realised: Sequence[tuple[float, Sequence[Realised]]],
) -> Figure:
    """PIT histogram, QQ plot, and claimed against realised alpha.

    For any number of s_min, with what was claimed and realised with it for several alpha.
    """
    known = np.sort(calibration.pit[~np.isnan(calibration.pit)])
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE_WIDTH, 0.42 * PAGE_WIDTH), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        bins = np.linspace(0, 1, 21)
        left.stairs(np.histogram(known, bins)[0] / known.size, bins, fill=True, color=_GREY)
        left.axhline(1 / 20, color=_BLUE, linewidth=1.2)
        left.set_xlabel("PIT: F(score) under the fit")
        left.set_ylabel("% of completions")
        left.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}")
        left.set_title("PIT (flat if F is right)", fontsize=9, loc="left")

        share = (np.arange(known.size) + 0.5) / known.size
        step = max(known.size // 400, 1)
        middle.plot(share[::step], known[::step], color=_RED, linewidth=1.4)
        middle.set_xlabel("uniform quantile")
        middle.set_ylabel("quantile of the PIT")
        middle.set_title("QQ", fontsize=9, loc="left")

        low = 1.0
        for index, (s_min, points) in enumerate(realised):
            checked = [point for point in points if point.checked]
            if not checked:
                continue
            claimed = [point.claimed for point in checked]
            low = min(low, *claimed, *(point.realised for point in checked))
            right.plot(
                claimed,
                [point.realised for point in checked],
                color=COLOURS[index % len(COLOURS)],
                marker=MARKERS[index % len(MARKERS)],
                markersize=3.6,
                linewidth=1.2,
                label=f"s_min = {s_min:.3g}",
            )
        low = min(0.98, max(0.0, low - 0.03))
        right.set_xlim(low, 1.0)
        right.set_ylim(low, 1.0)
        right.set_xlabel("claimed α")
        right.set_ylabel("realised share of problems")
        right.set_title("α, claimed and realised", fontsize=9, loc="left")
        for axes, ends in ((middle, (0.0, 1.0)), (right, (low, 1.0))):
            axes.plot(ends, ends, color="black", linewidth=0.8, linestyle="--", zorder=1)
            axes.set_aspect("equal", adjustable="box")
            axes.grid(True)
            axes.set_axisbelow(True)
        if right.get_legend_handles_labels()[0]:
            labelled = right.get_legend_handles_labels()
            figure.legend(*labelled, loc="outside upper right", ncols=4, frameon=False)
    return figure


def reliability_diagram(found: Mapping[str, Reliability]) -> Figure:
    """What each method claims of its answers against how many are right, a marker a bin."""
    with rc_context(STYLE):
        figure, axes = _square("claimed P(the answer is right)", "share that is right")
        styles = styles_of(list(found))
        for label, bins in found.items():
            index = styles[label]
            axes.plot(
                bins.claimed,
                bins.right,
                color=COLOURS[index % len(COLOURS)],
                marker=MARKERS[index % len(MARKERS)],
                markersize=4.5,
                linewidth=1.2,
                label=f"{label}\n(calibration error {bins.error:.3f})",
            )
        axes.legend(loc="center left", bbox_to_anchor=(1.03, 0.5), frameon=False)
    return figure


def roc_curves(roc: Roc) -> Figure:
    """True-positive against false-positive rates of the verifier, pooled and within problems."""
    with rc_context(STYLE):
        figure, axes = _square(
            "false positives: share of wrong completions", "true positives: share of right ones"
        )
        parts = (
            ("all completions", roc.pooled, roc.auc, "-"),
            ("within problems", roc.within, float(roc.auc_within.mean), "--"),
        )
        for index, (label, rates, area, style) in enumerate(parts):
            axes.plot(
                roc.false_positives,
                rates,
                color=COLOURS[index],
                linestyle=style,
                linewidth=1.4,
                label=f"{label} (AUC {area:.3f})",
            )
        axes.legend(loc="center left", bbox_to_anchor=(1.03, 0.5), frameon=False)
    return figure


def _square(x: str, y: str) -> tuple[Figure, Axes]:
    """Axes from 0 to 1 both ways, with the diagonal."""
    figure = Figure(figsize=(PAGE_WIDTH, 0.5 * PAGE_WIDTH), layout="constrained")
    axes = figure.add_subplot()
    axes.plot((0, 1), (0, 1), color="black", linewidth=0.8, linestyle=":", zorder=1)
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_aspect("equal", adjustable="box")
    axes.grid(True)
    axes.set_axisbelow(True)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes
