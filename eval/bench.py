"""Speed and accuracy of the numerical core against the straightforward SciPy way, in one run.

    python -m eval.bench [--quick] [--out FILE.json]

Every speed is a ratio within this run, on this machine: a figure of another machine is not used.
The baselines are what one writes first: per problem, `scipy.optimize.minimize(method="L-BFGS-B")`
with its default finite differences on the truncated normal's negative log-likelihood or posterior;
per bound, N = 1, 2, ... until the (1 - alpha)-quantile of the best of N, read off a grid of 1,000
points, reaches s_min. They are timed on a sample of the problems and reported per item.
"""

import argparse
import functools
import itertools
import json
import math
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import scipy.optimize
import scipy.special
import scipy.stats
from rich.console import Console
from rich.table import Table

from eval.reference import (
    TOLERANCES,
    Grid,
    Reference,
    hard_grid,
    random_grid,
    reference,
    relative_error,
)
from optscale_jax import (
    Prior,
    ScoreStats,
    TruncatedNormal,
    fit_map,
    fit_mle,
    replay_settings,
    required_samples,
    synthetic_pool,
)
from optscale_jax.estimation import MIN_SCALE, Params, negative_log_likelihood
from optscale_jax.policies import PAPER_ALPHA, PAPER_S_MIN, optscale
from optscale_jax.synthetic import synthetic_problems

PROBLEMS, SAMPLES, PERMUTATIONS = 500, 64, 20
PREFIXES = (3, 5, 10, 20, 64)
SETTINGS = tuple(itertools.product(PAPER_S_MIN, PAPER_ALPHA))
CAP = 1024  # of the bound, for both sides; grid stepping without one would never end where F = 1


# The baselines ------------------------------------------------------------------------------------


def scipy_objective(parameters, scores, prior=None):
    """Negative log-likelihood, or posterior up to a constant, as one writes it with SciPy."""
    loc, scale = parameters
    inside = scipy.stats.norm.cdf(1.0, loc, scale) - scipy.stats.norm.cdf(0.0, loc, scale)
    value = -np.sum(scipy.stats.norm.logpdf(scores, loc, scale)) + len(scores) * np.log(inside)
    if prior is not None:
        value += (loc - prior[0]) ** 2 / (2 * prior[2] ** 2)
        value += (scale - prior[1]) ** 2 / (2 * prior[3] ** 2)
    return value


def scipy_fit(scores, prior=None):
    """L-BFGS-B from the scores' mean and standard deviation, or from the prior's mean."""
    start = (np.mean(scores), np.std(scores)) if prior is None else prior[:2]
    with np.errstate(all="ignore"):
        return scipy.optimize.minimize(
            scipy_objective,
            start,
            args=(scores, prior),
            method="L-BFGS-B",
            bounds=[(None, None), (MIN_SCALE, None)],
        )


def grid_stepping(loc, scale, s_min, alpha, cap=CAP):
    """Least N whose best reaches s_min with probability alpha, stepping N over a grid of scores."""
    grid = np.linspace(0.0, 1.0, 1000)
    low, high = (0.0 - loc) / scale, (1.0 - loc) / scale
    cdf = scipy.stats.truncnorm.cdf(grid, low, high, loc, scale)
    for n in range(1, cap):
        if grid[np.searchsorted(cdf**n, 1 - alpha)] >= s_min:
            return n
    return cap


# Timing -------------------------------------------------------------------------------------------


def seconds(function: Callable[[], Any], repeats: int) -> float:
    """Median wall-clock time of a call, after one that compiles."""
    jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def per_element(kernel: Callable[..., Any], arguments: tuple, repeats: int) -> float:
    """Seconds per element of an elementwise kernel, without the cost of the call.

    The kernel runs many times inside one compiled loop, on inputs that differ in the last place,
    so that nothing can be computed once for all passes.
    """
    passes = 50
    first, *rest = arguments

    @jax.jit
    def loop(first, *rest):
        def body(i, total):
            nudge = 1 + i.astype(first.dtype) * jnp.finfo(first.dtype).eps
            return total + kernel(first * nudge, *rest)

        shape = jnp.broadcast_shapes(*(a.shape for a in (first, *rest)))
        out = jax.eval_shape(kernel, first, *rest)
        return jax.lax.fori_loop(0, passes, body, jnp.zeros(shape, out.dtype))

    size = math.prod(jnp.broadcast_shapes(*(a.shape for a in arguments)))
    return seconds(lambda: loop(first, *rest), repeats) / passes / float(size)


class Report:
    """Rows of (what, figure, demanded, met)."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, what: str, figure: str, demanded: str, met: bool | None, **raw: Any) -> None:
        self.rows.append(dict(what=what, figure=figure, demanded=demanded, met=met, **raw))
        mark = {True: "ok", False: "MISSED", None: ""}[met]
        print(f"  {what}: {figure}  [{demanded}] {mark}", flush=True)

    def table(self) -> Table:
        table = Table(title="optscale-jax against SciPy, this machine, this run")
        for name in ("what", "figure", "demanded", ""):
            table.add_column(name)
        for row in self.rows:
            mark = {True: "ok", False: "[bold red]missed", None: ""}[row["met"]]
            table.add_row(row["what"], row["figure"], row["demanded"], mark)
        return table


# The measurements ---------------------------------------------------------------------------------


def library_columns(grid: Grid) -> Reference:
    """What `reference` computes, from the library, at the same points."""
    x, u, loc, scale, low, high = grid

    def slopes(name):
        def total(loc, scale):
            return jnp.sum(getattr(TruncatedNormal(loc, scale, low, high), name)(x))

        return jax.grad(total, (0, 1))(loc, scale)

    law = TruncatedNormal(loc, scale, low, high)
    return Reference(
        law.log_prob(x),
        law.log_cdf(x),
        law.log_survival_function(x),
        law.mean(),
        law.variance(),
        law.quantile(u),
        *slopes("log_prob"),
        *slopes("log_cdf"),
    )


def accuracy(report: Report, quick: bool) -> None:
    """The truncated normal against mpmath, on a random grid and the named hard cases."""
    for dtype in (np.float32, np.float64):
        points = [random_grid(200 if quick else 1200, dtype, seed=1), hard_grid(dtype)[0]]
        grid = Grid(*(np.concatenate(pair) for pair in zip(*points, strict=True)))
        exact = reference(grid)
        with jax.enable_x64(dtype is np.float64):
            ours = jax.jit(library_columns)(Grid(*map(jnp.asarray, grid)))
        tolerances = TOLERANCES[np.dtype(dtype)]
        for name in Reference._fields:
            error = relative_error(name, getattr(ours, name), getattr(exact, name))
            tolerance = getattr(tolerances, name)
            report.add(
                f"{name}, {np.dtype(dtype)}, {error.size:,} points",
                f"{np.mean(error <= tolerance):.2%} within, worst {error.max():.1e}",
                f"100% within {tolerance:.0e}",
                bool(np.all(error <= tolerance)),
                worst=float(error.max()),
            )


def fits(report: Report, scores: np.ndarray, prior: Prior, quick: bool) -> None:
    """Objectives never above SciPy's, and the time of a fit."""
    rng = np.random.default_rng(0)
    problems = scores.shape[0]
    checked = np.arange(problems) if not quick else rng.choice(problems, 20, replace=False)
    timed: dict[str, list[float]] = {"MLE": [], "MAP": []}
    worst = {"MLE": -np.inf, "MAP": -np.inf}
    for n, kind in itertools.product(PREFIXES, ("MLE", "MAP")):
        stats = ScoreStats.from_scores(scores[:, :n])
        params, _ = fit_mle(stats) if kind == "MLE" else fit_map(stats, prior)
        ours = np.stack([np.asarray(v, np.float64) for v in params], axis=1)
        for p in checked:
            one = scores[p, :n].astype(np.float64)
            belief = None
            if kind == "MAP":
                fields = (prior.loc, prior.scale, prior.loc_sd, prior.scale_sd)
                belief = [float(np.broadcast_to(f, problems)[p]) for f in fields]
            start = time.perf_counter()
            theirs = scipy_fit(one, belief)
            timed[kind].append(time.perf_counter() - start)
            excess = objective(ours[p], one, belief) - objective(theirs.x, one, belief)
            scale = max(abs(objective(theirs.x, one, belief)), 1e-3)
            if np.isfinite(excess):
                worst[kind] = max(worst[kind], excess / scale)
            elif not np.isfinite(objective(ours[p], one, belief)):
                worst[kind] = np.inf
    prefixes = jax.tree.map(jnp.asarray, ScoreStats.prefixes(jnp.asarray(scores)))
    beliefs = jax.tree.map(
        lambda v: jnp.broadcast_to(jnp.asarray(v, scores.dtype), problems)[:, None], prior
    )
    calls = {"MLE": lambda: fit_mle(prefixes), "MAP": lambda: fit_map(prefixes, beliefs)}
    for kind, call in calls.items():
        report.add(
            f"{kind} objective above SciPy's, {len(checked)} problems x {PREFIXES} scores",
            f"{worst[kind]:.1e} relative",
            "<= 1e-6",
            bool(worst[kind] <= 1e-6),
            worst=worst[kind],
        )
        ours_time = seconds(call, 10) / prefixes.n.size
        ratio = float(np.mean(timed[kind])) / ours_time
        report.add(
            f"{kind} speed, {prefixes.n.size:,} prefixes in one call",
            f"{ratio:,.0f} x SciPy ({ours_time * 1e9:,.0f} ns against "
            f"{np.mean(timed[kind]) * 1e3:.1f} ms a fit)",
            ">= 5,000 x",
            ratio >= 5000,
            ratio=ratio,
        )


def objective(parameters, scores, prior=None) -> float:
    """The objective in float64, exact in the tails that `scipy_objective` cannot evaluate."""
    with jax.enable_x64(True):
        stats = ScoreStats.from_scores(jnp.asarray(scores, jnp.float64))
        params = Params(*(jnp.asarray(float(v), jnp.float64) for v in parameters))
        value = float(negative_log_likelihood(stats, params))
    if prior is not None:
        value += (parameters[0] - prior[0]) ** 2 / (2 * prior[2] ** 2)
        value += (parameters[1] - prior[1]) ** 2 / (2 * prior[3] ** 2)
    return value


def bounds(report: Report, loc: np.ndarray, scale: np.ndarray, quick: bool) -> None:
    """The bound for every problem and setting, and its kernel beside its transcendentals."""
    rng = np.random.default_rng(1)
    s_min, alpha = (np.array(v, np.float32) for v in zip(*SETTINGS, strict=True))
    count = 60 if quick else 480
    sample = list(
        zip(rng.integers(len(loc), size=count), rng.integers(len(s_min), size=count), strict=True)
    )
    start = time.perf_counter()
    stepped = [
        grid_stepping(float(loc[p]), float(scale[p]), float(s_min[k]), float(alpha[k]))
        for p, k in sample
    ]
    baseline = (time.perf_counter() - start) / len(sample)

    def kernel(loc, scale, s_min, alpha):
        return required_samples(TruncatedNormal(loc, scale), s_min, alpha, CAP)

    arguments = tuple(map(jnp.asarray, (loc[:, None], scale[:, None], s_min, alpha)))
    call = jax.jit(kernel)
    ours = np.asarray(call(*arguments))
    # A grid of 1,000 points moves s_min by up to 0.001, and N* with it.
    gaps = [abs(int(ours[p, k]) - n) / n for (p, k), n in zip(sample, stepped, strict=True)]
    agree = np.mean(np.array(gaps) <= 0.1)
    one_call = seconds(lambda: call(*arguments), 50) / ours.size
    inner = per_element(kernel, arguments, 10)
    report.add(
        f"bound, {len(loc)} problems x {len(s_min)} settings in one call",
        f"{baseline / one_call:,.0f} x grid stepping ({one_call * 1e9:.0f} ns against "
        f"{baseline * 1e3:.1f} ms a bound; {agree:.0%} agree to 10%, the grid's resolution)",
        ">= 100,000 x",
        baseline / one_call >= 1e5,
        ratio=baseline / one_call,
    )

    def transcendentals(loc, scale, s_min, alpha):
        # What log F(s_min) cannot do without, in the library's own functions: the normal's tail at
        # both ends of the support and at s_min, its density's ratios there, and two logarithms.
        a, b, c = (-loc) / scale, (1 - loc) / scale, (s_min - loc) / scale
        tails = sum(jax.scipy.special.erfcx(jnp.abs(z)) for z in (a, b, c))
        densities = sum(jnp.exp(-0.5 * z * z) for z in (a, b, c))
        return jnp.log(tails) + jnp.log1p(densities) + alpha

    alone = per_element(transcendentals, arguments, 10)
    report.add(
        "the bound's kernel beside the transcendental functions it must evaluate",
        f"{inner * 1e9:.1f} ns against {alone * 1e9:.1f} ns: {inner / alone:.2f} x",
        "<= 3 x",
        inner / alone <= 3,
        ratio=inner / alone,
    )


def replays(report: Report, quick: bool) -> None:
    """OptScale^0 refitted after every sample, all settings and permutations."""
    pool = synthetic_pool(jax.random.key(0), num_problems=PROBLEMS, num_samples=SAMPLES)
    s_min, alpha = (np.array(v) for v in zip(*SETTINGS, strict=True))
    make = functools.partial(optscale, max_samples=SAMPLES, min_samples=3)

    def call():
        return replay_settings(
            pool,
            make,
            dict(s_min=s_min, alpha=alpha),
            key=jax.random.key(1),
            num_permutations=PERMUTATIONS,
        )

    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    again = seconds(call, 1 if quick else 3)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    report.add(
        f"replay of OptScale^0, {PROBLEMS} x {SAMPLES} x {len(s_min)} settings "
        f"x {PERMUTATIONS} orders",
        f"{first:.1f} s with compilation, {again:.2f} s again; peak memory of this whole "
        f"process {peak / 2**30:.2f} GiB",
        "< 10 s and < 2 GB",
        first < 10 and peak < 2e9,
        first=first,
        again=again,
        peak=peak,
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval.bench", description=str(__doc__).split("\n")[0]
    )
    parser.add_argument(
        "--quick", action="store_true", help="smaller samples of the baselines, about a minute"
    )
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args(argv)

    report = Report()
    print(
        f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores, JAX on "
        f"{jax.default_backend()}",
        flush=True,
    )
    problems = synthetic_problems(jax.random.key(0), num_problems=PROBLEMS)
    pool = synthetic_pool(jax.random.key(0), num_problems=PROBLEMS, num_samples=SAMPLES)
    rng = np.random.default_rng(2)
    # A prior as good as a decent predictor's: the truth with an error of its own width.
    prior = Prior(
        np.clip(problems.loc + rng.normal(0, 0.1, PROBLEMS), 0, 1).astype(np.float32),
        np.clip(problems.scale + rng.normal(0, 0.05, PROBLEMS), 0.02, 1).astype(np.float32),
    )
    replays(report, options.quick)
    bounds(
        report, problems.loc.astype(np.float32), problems.scale.astype(np.float32), options.quick
    )
    fits(report, np.asarray(pool.scores), prior, options.quick)
    accuracy(report, options.quick)
    Console().print(report.table())
    if options.out:
        options.out.write_text(json.dumps(report.rows, indent=1) + "\n")
    return 0 if all(row["met"] is not False for row in report.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
