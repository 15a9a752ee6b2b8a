"""Speed and accuracy of the numerical core against the straightforward SciPy way, in one run.

    python -m eval.bench [--quick true] [--out DIR]        (make bench)

Every speed is a ratio within this run, on this machine: a figure of another machine is not used.
The baselines are what one writes first: per problem, `scipy.optimize.minimize(method="L-BFGS-B")`
with its default finite differences on the truncated normal's negative log-likelihood or posterior;
per bound, N = 1, 2, ... until the (1 - alpha)-quantile of the best of N, read off a grid of 1,000
points, reaches s_min. They are timed on a sample of the problems and reported per item. The exit
code is 1 where a figure demanded is missed.

The output folder, if one is asked for, gets bench.json (the rows, with raw figures) and bench.md.
"""

import dataclasses
import itertools
import math
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.stats

from optscale_jax import (
    Policy,
    Pool,
    Prior,
    ScoreStats,
    TruncatedNormal,
    fit_map,
    fit_mle,
    replay,
    required_samples,
    synthetic_pool,
)
from optscale_jax.answers import Equal, answers_equal, cluster_answers
from optscale_jax.cli import command, parse
from optscale_jax.equivalence import EquivalenceChecker
from optscale_jax.estimation import MIN_SCALE, Params, negative_log_likelihood, negative_log_prior
from optscale_jax.policies import (
    PAPER_ALPHA,
    PAPER_S_MIN,
    Observation,
    calibrated_vote,
    optscale,
    run,
    stack,
)
from optscale_jax.replay import compilations, permutations
from optscale_jax.study.config import ReplayConfig
from optscale_jax.study.entries import ORACLE, leave_out
from optscale_jax.study.learning import learn_calibration
from optscale_jax.synthetic import synthetic_problems

from .reference import TOLERANCES, GivenLogCdf, columns, errors, hard_bounds, least_count, reference
from .reference_laws import LAWS
from .rows import Limit, Report, finish, machine, timed

PROBLEMS, SAMPLES, PERMUTATIONS = 500, 64, 20
PREFIXES = (3, 5, 10, 20, 64)
SETTINGS = tuple(itertools.product(PAPER_S_MIN, PAPER_ALPHA))
CAP = 1024  # of the bound, for both sides; grid stepping without one would never end where F = 1
COMPARISON = "paper_table"
PRECISIONS = (np.float32, np.float64)


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What to measure.

    Attributes:
        quick: Whether to take smaller samples of what is slow, the baselines and mpmath: a minute
            instead of several.
        out: Folder for bench.json and bench.md, made if it does not exist. null: none.
    """

    quick: bool = False
    out: str | None = None


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
    bounds = [(None, None), (MIN_SCALE, None)]
    with np.errstate(all="ignore"):
        return scipy.optimize.minimize(
            scipy_objective, start, args=(scores, prior), method="L-BFGS-B", bounds=bounds
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
    times: list[float] = []
    for _ in range(repeats):
        with timed(times):
            jax.block_until_ready(function())
    return float(np.median(times))


def per_element(kernel: Callable[..., Any], arguments: tuple, repeats: int) -> float:
    """Seconds per element of an elementwise kernel, without the cost of the call.

    The kernel runs many times inside one compiled loop, on inputs that differ in the last place,
    so that nothing can be computed once for all passes.
    """
    passes = 50
    shape = jnp.broadcast_shapes(*(a.shape for a in arguments))

    @jax.jit
    def loop(first, *rest):
        def body(i, total):
            nudge = 1 + i.astype(first.dtype) * jnp.finfo(first.dtype).eps
            return total + kernel(first * nudge, *rest)

        out = jax.eval_shape(kernel, first, *rest)
        return jax.lax.fori_loop(0, passes, body, jnp.zeros(shape, out.dtype))

    return seconds(lambda: loop(*arguments), repeats) / passes / int(math.prod(shape))


def peak_memory(who: int = resource.RUSAGE_SELF) -> float:
    """Most bytes that this process, or its children, ever held."""
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def precision(dtype: Any) -> Any:
    """A context with float64 where it is asked for."""
    return jax.enable_x64(dtype is np.float64)


# The measurements ---------------------------------------------------------------------------------


def accuracy(report: Report, quick: bool) -> None:
    """The laws against mpmath, on random points and the named hard cases."""
    for (name, law), dtype in itertools.product(LAWS.items(), PRECISIONS):
        points = law.points(law.count // 6 if quick else law.count, dtype, seed=1)
        with precision(dtype):
            ours = jax.jit(columns(law))(*map(jnp.asarray, points))
            found = errors(law, points, ours, reference(law, points, ours.quantile))
        for column, error in found.items():
            tolerance = getattr(TOLERANCES[np.dtype(dtype)], column)
            report.add(
                f"{column} of {name} against mpmath, {np.dtype(dtype)}, {error.size:,} points",
                f"{np.mean(error <= tolerance):.2%} within, worst {error.max():.1e}",
                worst=Limit(error.max(), "<=", tolerance),
            )


def fits(report: Report, scores: np.ndarray, beliefs: np.ndarray, quick: bool) -> None:
    """Objectives never above SciPy's, in both precisions, and the time of a fit."""
    problems = len(scores)
    checked = np.random.default_rng(0).permutation(problems)[: 20 if quick else problems]
    for kind, given in (("MLE", None), ("MAP", beliefs)):
        prior = None if given is None else given[checked]
        times: list[float] = []
        worst = dict.fromkeys(PRECISIONS, -np.inf)
        for n in PREFIXES:
            sample = scores[checked, :n].astype(np.float64)
            optima = []
            for i, one in enumerate(sample):
                with timed(times):
                    optima.append(scipy_fit(one, None if prior is None else prior[i]).x)
            theirs = objective(np.array(optima), sample, prior)
            for dtype in PRECISIONS:
                ours = objective(library_fit(sample, prior, dtype), sample, prior)
                above = (ours - theirs) / np.maximum(np.abs(theirs), 1e-3)
                # Where SciPy wandered off to nowhere, ours only has to be finite.
                alone = np.where(np.isfinite(ours), -1.0, np.inf)
                above = np.where(np.isfinite(theirs), above, alone)
                worst[dtype] = max(worst[dtype], float(above.max()))
        for dtype, figure in worst.items():
            report.add(
                f"{kind} objective above SciPy's, {np.dtype(dtype)}, {len(checked)} problems x "
                f"{PREFIXES} scores",
                f"{figure:.1e} relative",
                worst=Limit(figure, "<=", 1e-6),
            )
        prefixes = ScoreStats.prefixes(jnp.asarray(scores))
        each = None if given is None else prior_of(given[:, None].astype(scores.dtype))
        ours = seconds(lambda s=prefixes, p=each: library_optimum(s, p), 10) / prefixes.n.size
        theirs = float(np.mean(times))
        report.add(
            f"{kind} speed, {prefixes.n.size:,} prefixes in one call",
            f"{theirs / ours:,.0f} x SciPy ({ours * 1e9:,.0f} ns against {theirs * 1e3:.1f} ms "
            "a fit)",
            ratio=Limit(theirs / ours, ">=", 5000 if given is None else 15_000, " x"),
        )


def prior_of(beliefs: np.ndarray) -> Prior:
    """A prior from columns (loc, scale, loc_sd, scale_sd) on the last axis."""
    return Prior(*(jnp.asarray(column) for column in np.moveaxis(beliefs, -1, 0)))


def library_optimum(stats: ScoreStats, prior: Prior | None) -> Params:
    """The library's fit, MLE without a prior and MAP with one."""
    return (fit_mle(stats) if prior is None else fit_map(stats, prior))[0]


def library_fit(scores: np.ndarray, beliefs: np.ndarray | None, dtype) -> np.ndarray:
    """(loc, scale) of each row of scores, computed in a precision and returned in float64."""
    with precision(dtype):
        prior = None if beliefs is None else prior_of(beliefs.astype(dtype))
        params = library_optimum(ScoreStats.from_scores(scores.astype(dtype)), prior)
        return np.stack([np.asarray(v, np.float64) for v in params], axis=-1)


def objective(
    parameters: np.ndarray, scores: np.ndarray, beliefs: np.ndarray | None = None
) -> np.ndarray:
    """What both sides minimise, in float64, also in the tails that `scipy_objective` loses.

    Of (loc, scale) [..., 2], scores [..., n] and, for MAP, priors' columns [..., 4].
    """
    with precision(np.float64):
        params = Params(*(jnp.asarray(v, jnp.float64) for v in np.moveaxis(parameters, -1, 0)))
        stats = ScoreStats.from_scores(jnp.asarray(scores, jnp.float64))
        value = negative_log_likelihood(stats, params)
        if beliefs is not None:
            value = value + negative_log_prior(params, prior_of(beliefs))
        return np.asarray(value)


def bounds(report: Report, loc: np.ndarray, scale: np.ndarray, quick: bool) -> None:
    """The bound for every problem and setting, and its kernel beside its transcendentals."""
    rng = np.random.default_rng(1)
    s_min, alpha = (np.array(v, np.float32) for v in zip(*SETTINGS, strict=True))
    count = 60 if quick else 480
    sample = rng.integers(len(loc), size=count), rng.integers(len(s_min), size=count)
    times: list[float] = []
    with timed(times):
        stepped = [
            grid_stepping(float(loc[p]), float(scale[p]), float(s_min[k]), float(alpha[k]))
            for p, k in zip(*sample, strict=True)
        ]
    baseline = times[0] / count

    def kernel(loc, scale, s_min, alpha):
        return required_samples(TruncatedNormal(loc, scale), s_min, alpha, CAP)

    arguments = tuple(map(jnp.asarray, (loc[:, None], scale[:, None], s_min, alpha)))
    call = jax.jit(kernel)
    ours = np.asarray(call(*arguments))
    # A grid of 1,000 points moves s_min by up to 0.001, and N* with it.
    agree = np.mean(np.abs(ours[sample] - stepped) / stepped <= 0.1)
    one_call = seconds(lambda: call(*arguments), 50) / ours.size
    report.add(
        f"bound, {len(loc)} problems x {len(s_min)} settings in one call",
        f"{baseline / one_call:,.0f} x grid stepping ({one_call * 1e9:.0f} ns against "
        f"{baseline * 1e3:.1f} ms a bound; {agree:.0%} agree to 10%, the grid's resolution)",
        ratio=Limit(baseline / one_call, ">=", 100_000, " x"),
    )

    def transcendentals(loc, scale, s_min, alpha):
        # What log F(s_min) cannot do without, in the library's own functions: the normal's tail at
        # both ends of the support and at s_min, its density's ratios there, and two logarithms.
        a, b, c = (-loc) / scale, (1 - loc) / scale, (s_min - loc) / scale
        tails = sum(jax.scipy.special.erfcx(jnp.abs(z)) for z in (a, b, c))
        densities = sum(jnp.exp(-0.5 * z * z) for z in (a, b, c))
        return jnp.log(tails) + jnp.log1p(densities) + alpha

    inner, alone = (per_element(each, arguments, 10) for each in (kernel, transcendentals))
    report.add(
        "the bound's kernel beside the transcendental functions it must evaluate",
        f"{inner * 1e9:.1f} ns against {alone * 1e9:.1f} ns: {inner / alone:.2f} x",
        ratio=Limit(inner / alone, "<=", 3, " x"),
    )


def exactness(report: Report) -> None:
    """The bound against rational arithmetic, for N of every size."""
    largest = np.iinfo(np.int32).max
    for dtype in PRECISIONS:
        with precision(dtype):
            log_f, log_miss, alpha = hard_bounds(dtype)
            ours = np.asarray(required_samples(GivenLogCdf(jnp.asarray(log_f)), 0.5, alpha))
        pairs = zip(log_f.tolist(), log_miss.tolist(), strict=True)
        wrong = int(np.sum(ours != [least_count(f, m, largest) for f, m in pairs]))
        report.add(
            f"bound against rational arithmetic, {np.dtype(dtype)}, {ours.size:,} hard cases up to "
            "N = 2^31 - 1",
            f"{wrong} differ",
            wrong=Limit(wrong, "==", 0),
        )


def coverage(report: Report, loc: np.ndarray, scale: np.ndarray) -> None:
    """Whether the best of N* SciPy draws reaches s_min as often as promised, and of N* - 1 not."""
    trials, cases, margin = 20_000, 24, 4.0
    rng = np.random.default_rng(3)
    s_min, alpha = (np.array(v) for v in zip(*SETTINGS, strict=True))
    with precision(np.float64):
        needed = np.asarray(
            required_samples(TruncatedNormal(loc[:, None], scale[:, None]), s_min, alpha, CAP)
        )
    # Few samples, so that one fewer is missed by more than the noise.
    few = rng.permutation(np.argwhere((needed >= 2) & (needed <= 12)))[:cases]
    reached, missed = [], []
    for p, k in few:
        ends = (-loc[p] / scale[p], (1 - loc[p]) / scale[p])
        law = scipy.stats.truncnorm(*ends, loc[p], scale[p])
        hits = law.rvs((trials, needed[p, k]), random_state=rng) >= s_min[k]
        error = math.sqrt(alpha[k] * (1 - alpha[k]) / trials)
        reached.append((hits.any(axis=1).mean() - alpha[k]) / error)
        missed.append((hits[:, 1:].any(axis=1).mean() - alpha[k]) / error)
    report.add(
        f"coverage, {len(few)} problems and settings, {trials:,} trials of N* draws each",
        f"lowest {min(reached):+.1f} standard errors from alpha with N*, highest "
        f"{max(missed):+.1f} with N* - 1",
        reached=Limit(min(reached), ">=", -margin),
        missed=Limit(max(missed), "<", margin),
    )


def replays(report: Report, pool: Pool, quick: bool) -> None:
    """All settings and permutations: OptScale^0 refitted after every sample, and the vote."""
    grid = [optscale(s_min, alpha, SAMPLES, min_samples=3) for s_min, alpha in SETTINGS]
    _replay(report, "OptScale^0", grid, pool, 10, quick)
    learnt = learn_calibration(pool)
    budgets = np.geomspace(1, 512, 70).tolist()
    votes = [calibrated_vote(learnt, budget, SAMPLES) for budget in budgets]
    _replay(report, "the calibrated vote", votes, pool, 15, quick)


def _replay(
    report: Report, name: str, policies: list[Policy], pool: Pool, most: float, quick: bool
) -> None:
    grid = stack(policies)

    def call():
        return replay(pool, grid, key=jax.random.key(1), num_permutations=PERMUTATIONS)

    times: list[float] = []
    with timed(times):
        call()
    again = seconds(call, 1 if quick else 3)
    peak = peak_memory()
    report.add(
        f"replay of {name}, {PROBLEMS} x {SAMPLES} x {len(policies)} settings "
        f"x {PERMUTATIONS} orders",
        f"{times[0]:.1f} s with compilation, {again:.2f} s again; peak memory of this whole "
        f"process {peak / 2**30:.2f} GiB",
        first=Limit(times[0], "<", most, " s"),
        peak_gb=Limit(peak / 1e9, "<", 2, " GB"),
        again=again,
    )


def fresh_policies(report: Report, pool: Pool) -> None:
    """A loop over values of s_min, each turn with a policy of its own."""
    times: list[float] = []
    compiled = compilations()
    for s_min in np.linspace(0.5, 0.97, 20).tolist():
        with timed(times):
            replay(pool, optscale(s_min, 0.9, SAMPLES), key=jax.random.key(1), num_permutations=5)
    compiled = compilations() - compiled
    first, later = times[0], max(times[1:])
    report.add(
        f"{len(times)} fresh policies in a loop over replay, {PROBLEMS} x {SAMPLES} x 5 orders",
        f"{compiled} compilation; {first:.1f} s, then {later:.2f} s at most: {later / first:.3f} "
        "of it",
        compiled=Limit(compiled, "==", 1),
        share=Limit(later / first, "<", 0.1),
        first=first,
        later=later,
    )


def plain_loop(report: Report, pool: Pool) -> None:
    """Replay beside a Python loop that feeds the policy one completion at a time."""
    problems, orders = pool.subset(slice(25)), 2
    scores, answers, tokens = map(np.asarray, (problems.scores, problems.answers, problems.tokens))
    key = jax.random.key(4)
    columns = permutations(problems, key, orders)
    different = count = 0
    for s_min, alpha in ((0.9, 0.95), (0.97, 0.99)):
        policy = optscale(s_min, alpha, SAMPLES, 3)
        fast = replay(problems, policy, key=key, num_permutations=orders)
        for k, p in np.ndindex(orders, problems.num_problems):
            order = columns[k, p]
            drawn = (f[p, order] for f in (scores, answers, tokens))
            slow = run(policy, map(Observation, *drawn, np.arange(SAMPLES)))
            spent = tokens[p, order[: slow.num_samples]].sum()
            want = (slow.num_samples, order[slow.selected_index], spent)
            got = (fast.num_samples[k, p], fast.selected_index[k, p], fast.tokens[k, p])
            different += want != got
            count += 1
    report.add(
        f"replay against a plain Python loop, {count} runs of OptScale^0",
        f"{different} differ in samples, completion or tokens",
        different=Limit(different, "==", 0),
    )


def comparison(report: Report, quick: bool) -> None:
    """The paper's whole comparison over a pool, as a command, beside a plain Python loop."""
    problems, samples = 500, 80
    pool = synthetic_pool(jax.random.key(5), num_problems=problems, num_samples=samples)
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pool.npz"
        pool.save(file)
        arguments = ["--config", COMPARISON, "--pool", str(file), "--out", f"{folder}/out"]
        with timed(times):
            python("-m", "optscale_jax.cli", "replay", *arguments)
        config = parse(ReplayConfig, arguments, configs="replay")
    # Of the children, which were imports and this command.
    wall, peak = times[0], peak_memory(resource.RUSAGE_CHILDREN)
    entries, _ = leave_out(config.entries(), pool, config.permutations)
    plain = settings = 0
    for entry in entries:
        # Any law will do for the oracle, the one policy that cannot do without.
        law = Prior(0.8, 0.2, 0.1, 0.1) if entry.name == ORACLE else None
        for cap in sorted({policy.max_samples for policy in entry.policies}):
            same = [policy for policy in entry.policies if policy.max_samples == cap]
            per_run = seconds_a_run(same[0], pool, 5 if quick else 20, law)
            plain += per_run * len(same) * config.permutations * problems
            settings += len(same)
    report.add(
        f"the paper's comparison, {len(entries)} policies with {settings} settings, {problems} x "
        f"{samples} x {config.permutations} orders, from the command to its files",
        f"{wall:.0f} s, peak memory {peak / 2**30:.2f} GiB; a plain Python loop over the same "
        f"runs would take {plain / 3600:.1f} h: {plain / wall:,.0f} x",
        seconds=Limit(wall, "<", 60, " s"),
        peak_gb=Limit(peak / 1e9, "<", 3, " GB"),
        plain=plain,
    )


def seconds_a_run(policy: Policy, pool: Pool, count: int, law: Prior | None) -> float:
    """Mean time in which a plain Python loop runs a policy over one problem, compiled before."""
    scores, answers, tokens = (
        jnp.asarray(field)[: count + 1] for field in (pool.scores, pool.answers, pool.tokens)
    )
    order = jnp.broadcast_to(jnp.arange(pool.num_samples), scores.shape)
    drawn = Observation(scores, answers, tokens, order)
    planned = policy.plan(drawn) if policy.couples_problems else None
    drawn = jax.tree.map(np.asarray, drawn)
    times: list[float] = []
    for p in range(count + 1):
        observations = [jax.tree.map(itemgetter((p, i)), drawn) for i in range(pool.num_samples)]
        prior = law if planned is None else jax.tree.map(itemgetter(p), planned)
        with timed(times):
            run(policy, observations, prior=prior)
    return sum(times[1:]) / count


# What answers to mathematics look like, with places for numbers.
ANSWERS = (
    "{a}",
    r"\frac{{{a}}}{{{b}}}",
    "{a}.{b}",
    r"{a}\sqrt{{{b}}}",
    "({a}, {b})",
    r"[{a}, \infty)",
    r"\{{{a}, {b}\}}",
    "{a}x^2 + {b}x",
    r"{a}\pi",
    r"{a}^\circ",
)


def answers(report: Report) -> None:
    """Comparing all answers of a pool as mathematics, every second of them a text of its own."""
    rng = np.random.default_rng(4)
    rows = []
    for form in rng.choice(ANSWERS, PROBLEMS):
        numbers = rng.integers(2, 99, (SAMPLES // 2, 2)).tolist()
        distinct = [form.format(a=a, b=b) for a, b in numbers]
        rows.append(distinct + rng.choice(distinct, SAMPLES // 2).tolist())
    count = len({answer for row in rows for answer in row})

    took: list[float] = []

    def compare(equal: Equal) -> None:
        with timed(took):
            for row in rows:
                cluster_answers(row, row[0], equal=equal)

    compare(answers_equal)
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(2):
            with EquivalenceChecker(cache=cache) as equal:
                compare(equal)
    text, cold, cached = took
    report.add(
        f"answers of {PROBLEMS} x {SAMPLES} compared as mathematics, {count:,} distinct",
        f"{cold:.1f} s, from the cache {cached:.2f} s (as text {text:.2f} s)",
        cold=Limit(cold, "<", 60, " s"),
        cached=Limit(cached, "<", 2, " s"),
        text=text,
    )


def imports(report: Report) -> None:
    """How long the numerical core takes to import, beside JAX and TFP alone."""

    def fastest(what: str) -> float:
        start, end = "t = time.perf_counter()", "print(time.perf_counter() - t)"
        script = f"import time; {start}; import {what}; {end}"
        return min(float(python("-c", script)) for _ in range(3))

    ours = fastest("optscale_jax")
    alone = fastest("jax, tensorflow_probability.substrates.jax")
    report.add(
        "import of the numerical core",
        f"{ours:.1f} s (JAX and TFP alone {alone:.1f} s)",
        seconds=Limit(ours, "<", 3, " s"),
        alone=alone,
    )


def python(*arguments: str) -> str:
    """What another Python prints."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def bench(config: BenchConfig) -> int:
    """Measures everything, shows and writes it; returns 1 where a figure is missed."""
    subject = "optscale-jax against SciPy and mpmath"
    return finish(lambda: measure(config.quick), config.out, "bench", subject)


def measure(quick: bool) -> Report:
    """All measurements, the one of peak memory before those that need more."""
    report = Report()
    print(machine(), flush=True)
    truth = synthetic_problems(jax.random.key(0), num_problems=PROBLEMS)
    pool = synthetic_pool(jax.random.key(0), num_problems=PROBLEMS, num_samples=SAMPLES)
    rng = np.random.default_rng(2)
    # Priors as good as a decent predictor's: the truth with an error of its own width.
    noise = rng.normal(0, (0.1, 0.05), (PROBLEMS, 2))
    means = np.clip(np.stack([truth.loc, truth.scale], axis=1) + noise, (0, 0.02), 1)
    beliefs = np.concatenate([means, np.full((PROBLEMS, 2), 0.1)], axis=1)

    imports(report)
    answers(report)
    replays(report, pool, quick)
    fresh_policies(report, pool)
    plain_loop(report, pool)
    comparison(report, quick)
    bounds(report, truth.loc.astype(np.float32), truth.scale.astype(np.float32), quick)
    exactness(report)
    coverage(report, truth.loc, truth.scale)
    fits(report, np.asarray(pool.scores), beliefs, quick)
    accuracy(report, quick)
    return report


main = command(BenchConfig, bench, __name__)

if __name__ == "__main__":
    sys.exit(main())
