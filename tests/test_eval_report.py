"""The report: what it computes from outcomes, its tables in every format, and how it refuses."""

import csv
import dataclasses
import itertools
import json
import operator
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from eval import report as command
from optscale_jax import Pool, policies, replay, synthetic_pool
from optscale_jax.replay import permutations
from optscale_jax.report.comparison import paper_table, section, table_of
from optscale_jax.report.headline import recommendation
from optscale_jax.report.page import page
from optscale_jax.report.tables import latex
from optscale_jax.study import (
    Aim,
    Method,
    Options,
    Outcomes,
    compare,
    find,
    frontiers,
    sensitivity,
)
from optscale_jax.study.hindsight import with_hindsight
from optscale_jax.study.metrics import Interval
from optscale_jax.study.pools import PoolSource
from optscale_jax.study.recommendation import recommend
from optscale_jax.study.tuning import cross_fit
from optscale_jax.study.verifier import roc_of, tokens_with_verifier
from optscale_jax.tiny import pool_path
from tests.browser import chromium, fits, opened

CAPS, PROBLEMS, ORDERS = (8, 16), 40, 3
S_MIN, ALPHA = (0.85, 0.9, 0.95), (0.9, 0.95)
# What there is to draw without a pool's scores.
DRAWN = ("accuracy_vs_tokens", "tokens_vs_n", "sensitivity_s_min", "sensitivity_alpha")
OPTIONS = Options(Aim(max_loss=0.01), num_resamples=200)


def outcomes(seed=0, problems=PROBLEMS) -> Outcomes:
    """Three methods, as a replay leaves them: deeper costs more and wins more."""
    rng = np.random.default_rng(seed)
    ease = rng.random(problems)

    def method(name, label, settings, caps, shares, oracle=False):
        drawn, correct = [], []
        for cap, share in zip(caps, shares, strict=True):
            some = np.clip(rng.binomial(cap, share, (ORDERS, problems)), 1, cap)
            drawn.append(np.full((ORDERS, problems), cap) if share == 1 else some)
            chance = np.clip(ease + 0.06 * np.log2(cap * share), 0, 1)
            correct.append(rng.random((ORDERS, problems)) < chance)
        samples = np.stack(drawn).astype(np.int32)
        return Method(
            name=name,
            label=label,
            settings=settings,
            words=[{k: f"{k}={v}" for k, v in setting.items()} for setting in settings],
            caps=np.array(caps),
            num_samples=samples,
            tokens=100 * samples,
            score=np.full(samples.shape, 0.9, np.float32),
            correct=np.stack(correct),
            selected_index=samples - 1,
            stop_reason=np.ones_like(samples),
            varying=[k for k, v in settings[0].items() if any(s[k] != v for s in settings)],
            oracle=oracle,
        )

    grid = [
        {"s_min": s, "alpha": a, "max_samples": c, "min_samples": 3, "decide": "every_sample"}
        for c in CAPS
        for s in S_MIN
        for a in ALPHA
    ]
    shares = [(0.2 + 8 * (g["s_min"] - 0.85) * g["alpha"]) for g in grid]
    known = [{"s_min": 0.9, "alpha": 0.9, "max_samples": c} for c in CAPS]
    deepest = (1, *CAPS)
    methods = [
        method("optscale", "OptScale⁰", grid, [g["max_samples"] for g in grid], shares),
        method("best_of_n", "best-of-N", [{"n": n} for n in deepest], deepest, (1, 1, 1)),
        method("known_law", "oracle", known, CAPS, (0.15, 0.15), oracle=True),
    ]
    ids = np.array([f"p{i}" for i in range(problems)])
    return Outcomes("pool", methods, ids, baselines=["best-of-N"])


@pytest.fixture(scope="module")
def run() -> Outcomes:
    return outcomes()


@pytest.fixture(scope="module")
def table_rows(run):
    return compare(run, CAPS, OPTIONS)


def write_run(folder: Path, seed=0, **changes) -> Path:
    folder.mkdir()
    dataclasses.replace(outcomes(seed), name=folder.name, **changes).save(folder / "outcomes.npz")
    return folder


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# What is computed ---------------------------------------------------------------------------------


def test_rows_are_cross_fitted_and_never_tuned_on_their_own_problems(run, table_rows):
    row = next(r for r in table_rows if r.method.label == "OptScale⁰" and r.cap == 16)
    at = row.method.at(16)
    value, cost = run.value(row.method)[at], run.cost(row.method)[at]
    base = run.value(run.methods[1])[2]
    want = cross_fit(value, cost, base, OPTIONS.aim)
    np.testing.assert_array_equal(row.fit.chosen, want.chosen)
    assert float(row.value.mean) == pytest.approx(want.correct.mean())
    assert float(row.cost.mean) == pytest.approx(want.tokens.mean())
    assert float(row.difference.mean) == pytest.approx((want.correct - base).mean())
    assert row.value.low <= row.value.mean <= row.value.high
    assert row.fit.optimism_accuracy == pytest.approx(
        value[want.oracle].mean() - want.correct.mean()
    )


def test_every_method_at_every_n_is_compared_with_best_of_that_n(table_rows):
    got = [(r.cap, r.method.label) for r in table_rows]
    assert got == [(c, m) for c in CAPS for m in ("OptScale⁰", "best-of-N", "oracle")]
    for row in table_rows:
        assert row.baseline == "best-of-N"
        assert row.saved == pytest.approx(1 - float(row.cost.mean) / (100 * row.cap))
    for cap in CAPS:
        tokens = {r.method.label: float(r.cost.mean) for r in table_rows if r.cap == cap}
        saving = 100 * cap - tokens["oracle"]
        for row in table_rows:
            if row.cap == cap:
                want = (100 * cap - tokens[row.method.label]) / saving
                assert row.share_of_saving == pytest.approx(want)


def test_frontier_spends_at_most_what_tuning_on_other_folds_allows(run):
    optscale, best, _ = frontiers(run, OPTIONS)
    assert np.all(np.diff(optscale.cost) >= 0)
    # A method without a choice at its own budget is at its settings' own means.
    for cost, value in zip(best.cost, best.value, strict=True):
        at = np.argmin(np.abs(best.every_cost - cost))
        assert value == pytest.approx(best.every_value[at])
    assert best.area == pytest.approx(best.area_peeking, abs=0.02)
    as_good = best.every_value >= best.every_value[-1]
    assert best.reach_peeking == best.every_cost[as_good].min()
    assert best.every_cost.min() <= best.reach_cost <= best.every_cost.max()
    # Peeking is the best of all settings, cross-fitting one of them for each problem.
    assert optscale.area <= optscale.area_peeking + 1e-9
    # Budgets that a method cannot keep to are in nobody's area.
    assert best.area_from == optscale.area_from >= max(best.every_cost.min(), optscale.cost[0])
    for each in (optscale, best):
        assert each.value.min() - 1e-9 <= each.area <= each.value.max() + 1e-9


def test_settings_at_an_end_of_what_was_tried_are_named(table_rows):
    row = next(r for r in table_rows if r.tuned)
    settings = [row.method.settings[i] for i in row.indices]
    tried = {name: sorted({s[name] for s in settings}) for name in row.method.varying}
    name, values = next((n, v) for n, v in tried.items() if len(v) > 2)

    def chosen(*values):
        at = [next(i for i, s in enumerate(settings) if s[name] == value) for value in values]
        fit = row.fit._replace(chosen=np.array(at))
        return row._replace(fit=fit).at_ends.get(name)

    assert chosen(values[0], values[0]) == values[0]
    assert chosen(values[-1]) == values[-1]
    assert chosen(values[1]) is None
    assert chosen(values[0], values[-1]) is None


def test_points_are_what_cross_fitting_for_their_aims_gives(run):
    optscale, best = run.methods[:2]
    value, cost, fixed = run.value(optscale), run.cost(optscale), run.value(best)
    of_optscale, of_best, _ = frontiers(run, OPTIONS)
    assert (of_optscale.knobs, of_best.knobs) == (3, 1)

    def means(fit):
        return pytest.approx((fit.correct.mean(), fit.tokens.mean()))

    for share, point in of_optscale.within.items():
        fit = cross_fit(value, cost, fixed[-1], Aim(max_tokens=1600 * share + 1e-6))
        assert (point.value.mean, point.cost.mean) == means(fit)
        assert optscale.describe(fit.oracle) == point.setting
    # 10% of best-of-16 is 160 tokens: OptScale needs more in every setting, best-of-1 less.
    assert 160 < cost.mean((1, 2)).min() < 320
    assert (list(of_optscale.within), list(of_best.within)) == ([0.2, 0.4], [0.1, 0.2, 0.4])
    # As good as the n that is best on the other folds, which may be any.
    of_fixed = cross_fit(fixed, run.cost(best), fixed, Aim(max_loss=0.0))
    as_good = cross_fit(value, cost, fixed, Aim(max_loss=0.0))
    assert (of_optscale.equal.value.mean, of_optscale.equal.cost.mean) == means(as_good)
    assert of_optscale.equal.difference.mean == pytest.approx(
        (as_good.correct - of_fixed.correct).mean()
    )
    assert of_optscale.equal.saved.mean == pytest.approx(
        1 - as_good.tokens.mean() / of_fixed.tokens.mean()
    )
    np.testing.assert_array_equal(of_best.equal.difference, 0)
    assert of_optscale.best.value.mean >= of_optscale.equal.value.mean


def test_an_interval_is_that_of_the_outcomes_where_nothing_is_tuned(run, table_rows):
    row = next(r for r in table_rows if r.method.label == "best-of-N" and r.cap == 16)
    for got, values in ((row.value, row.fit.correct), (row.cost, row.fit.tokens)):
        np.testing.assert_array_equal(got, OPTIONS.interval(values))


def test_the_rule_to_use_is_the_cheapest_and_doubts_are_said(run):
    curves = frontiers(run, OPTIONS)
    base = curves[1].equal

    def rule(label, cost, difference, half):
        rng = np.random.default_rng(0)
        means = base.means + np.array([[difference], [cost - float(base.cost.mean)]])
        means[1] += rng.normal(scale=half, size=means.shape[1])
        more = difference + half / 1000 * np.array([0, -1, 1])
        saved = 1 - (cost + half * np.array([0, 1, -1])) / float(base.cost.mean)
        point = base._replace(
            means=means, cost=Interval(*np.array([cost, cost - half, cost + half])),
            difference=Interval(*more), saved=Interval(*saved),
        )  # fmt: skip
        return curves[0]._replace(label=label, equal=point)

    def told(*rules):
        return recommend([*rules, curves[1]], "best-of-N", OPTIONS)

    spent = float(base.cost.mean)
    cheap, dear = rule("a", 0.2 * spent, 0.01, 1.0), rule("b", 0.5 * spent, 0.0, 1.0)
    sure = told(cheap, dear)
    assert (sure.label, sure.saves, sure.keeps, sure.rivals) == ("a", True, True, [])
    # A rule that loses more than a point is none; one that might be as cheap is named.
    assert told(rule("worse", 10, -0.02, 0.5), cheap).label == "a"
    assert told(cheap, rule("c", 0.21 * spent, 0.0, 0.1 * spent)).rivals == ["c"]
    assert not told(rule("a", 0.9 * spent, 0.0, 0.2 * spent)).saves
    assert not told(rule("a", 0.5 * spent, 0.0, 20.0)).keeps
    # An oracle is no rule to use, and best-of-N stays where nothing is cheaper.
    assert told(cheap._replace(oracle=True), rule("d", 2 * spent, 0.0, 1.0)).label == "best-of-N"
    # But it is no better than a cheap rule that may be as good.
    doubtful = told(rule("e", 0.5 * spent, -0.015, 10.0))
    assert (doubtful.label, doubtful.rivals) == ("best-of-N", ["e"])


def test_a_rule_tuned_to_an_end_of_what_was_tried_is_named():
    """A grid of thresholds above the best one makes a rule look worse than it is."""
    pool = Pool.load(pool_path())

    def found(thresholds):
        options = {"key": jax.random.key(0), "num_permutations": ORDERS}
        outcomes = Outcomes.from_results(
            pool,
            {
                "hit": [replay(pool, policies.first_hit(s, 16), **options) for s in thresholds],
                "fixed": replay(pool, policies.best_of_n(8), **options),
            },
            caps={"hit": 16, "fixed": 8},
            settings={"hit": [{"s_min": s} for s in thresholds]},
            baselines=["fixed"],
        )
        return find(outcomes, None, OPTIONS)

    wide = found((0.0, 0.02, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.98))
    (hit, _) = wide.frontiers
    assert hit.equal is not None
    best = hit.equal.arguments["s_min"]
    assert 0.02 < best < 0.98
    assert not wide.recommendation.at_ends
    assert "end of what was tried" not in " ".join(recommendation(wide))
    for narrow in ((best, 0.99), (0.01, best)):
        tuned = found(narrow)
        assert tuned.recommendation.at_ends == {"hit": [f"s_min={best}"]}
        told = (
            f"Tuned to an end of what was tried, and perhaps better beyond it: hit (s_min={best})."
        )
        assert told in " ".join(recommendation(tuned))
    # There is nothing below 0 or above 1, and one value is no search; N has its end at the pool's.
    method = found((0.0, 0.5, 1.0)).outcomes.methods[0]
    assert [method.at_ends(i) for i in range(3)] == [[], [], []]
    assert found((0.5,)).outcomes.methods[0].at_ends(0) == []


def test_the_hindsight_oracle_stops_at_the_first_right_completion(run):
    """Against a plain loop over the same orders, with completions that may not be returned."""
    rng = np.random.default_rng(5)
    shape = (PROBLEMS, 16)
    answers = rng.integers(-1, 6, shape)
    pool = Pool.from_arrays(
        answers=answers,
        gold=np.zeros(PROBLEMS, int),
        tokens=rng.integers(1, 90, shape),
        scores=rng.random(shape),
    )
    found = with_hindsight(run, pool, 3)
    assert found.methods[:-1] == run.methods
    method = found.methods[-1]
    assert method.oracle
    assert method.caps.tolist() == [1, 8, 16]
    orders = permutations(pool, jax.random.key(3), ORDERS)
    for s, cap in enumerate((1, 8, 16)):
        for k in range(ORDERS):
            for p in range(PROBLEMS):
                order = orders[k, p]
                right = [i for i in range(cap) if answers[p, order[i]] == 0]
                drawn = order[: right[0] + 1] if right else order[:1]
                assert method.correct[s, k, p] == bool(right)
                assert method.num_samples[s, k, p] == len(drawn)
                assert method.tokens[s, k, p] == pool.tokens[p, drawn].sum()
                last = drawn[-1] if answers[p, drawn[-1]] >= 0 else -1
                assert method.selected_index[s, k, p] == last
    # The other oracle's share of saving is still its own.
    for row in compare(found, [16], OPTIONS):
        if row.method.label == "oracle":
            assert row.share_of_saving == 1
        if row.method is method:
            assert row.share_of_hindsight == 1
    first, best, *_, limit = frontiers(found, OPTIONS)
    assert (best.share_of_hindsight, limit.share_of_hindsight) == (0, 1)
    assert first.share_of_hindsight == pytest.approx(
        float(first.equal.saved.mean) / float(limit.equal.saved.mean)
    )


def test_tokens_with_the_verifiers_count_what_is_drawn_and_only_for_rules_that_read_scores():
    rng = np.random.default_rng(1)
    shape = (20, 6)
    read = rng.integers(10, 50, shape)
    pool = Pool.from_arrays(
        scores=rng.random(shape), tokens=rng.integers(1, 9, shape), correct=rng.random(shape) < 0.5
    )
    orders = {"key": jax.random.key(OPTIONS.seed), "num_permutations": 4}
    results = {"best-of-N": [replay(pool, policies.best_of_n(n), **orders) for n in (2, 6)]}
    known = dataclasses.replace(pool, signals={"verifier_tokens": read.astype(np.float32)})
    for reads in (True, False):
        outcomes = Outcomes.from_results(pool, results, caps={"best-of-N": (2, 6)})
        (method,) = outcomes.methods
        methods = [dataclasses.replace(method, reads_scores=reads)]
        outcomes = dataclasses.replace(outcomes, methods=methods)
        two, six = rows = compare(outcomes, [2, 6], OPTIONS)
        got = tokens_with_verifier(outcomes, rows, known, OPTIONS.seed)
        first = permutations(pool, jax.random.key(OPTIONS.seed), 4)[..., :2]
        of_two = np.take_along_axis(read[None], first, -1).sum(-1).mean()
        want = (of_two, read.sum(1).mean()) if reads else (0, 0)
        assert got == pytest.approx([two.cost.mean + want[0], six.cost.mean + want[1]])
        unknown = tokens_with_verifier(outcomes, rows, pool, OPTIONS.seed)
        assert np.isnan(unknown).all() == reads


def test_the_roc_is_that_of_all_pairs_of_right_and_wrong():
    rng = np.random.default_rng(2)
    mask = np.arange(9) < rng.integers(1, 10, (12, 1))
    scores = rng.integers(0, 4, mask.shape) / 4
    pool = Pool.from_arrays(scores=scores, correct=rng.random(mask.shape) < 0.5, mask=mask)
    roc = roc_of(pool, OPTIONS)

    def area(right, wrong):
        more = right[:, None] - wrong
        return np.mean((more > 0) + 0.5 * (more == 0))

    split = [
        (row[c & m], row[~c & m]) for row, c, m in zip(scores, pool.correct, mask, strict=True)
    ]
    both = [area(right, wrong) for right, wrong in split if right.size and wrong.size]
    assert roc.num_problems == len(both)
    assert roc.auc_within.mean == pytest.approx(np.mean(both))
    pooled = area(*(np.concatenate(part) for part in zip(*split, strict=True)))
    assert roc.auc == pytest.approx(pooled)
    # The curves' areas, to the width of a step.
    for curve, want in ((roc.pooled, pooled), (roc.within, np.mean(both))):
        assert np.mean(curve) == pytest.approx(want, abs=1 / len(curve))
    flat = dataclasses.replace(pool, correct=np.ones_like(pool.correct))
    assert roc_of(flat, OPTIONS) is None


def test_sensitivity_holds_the_other_argument(run):
    parts = sensitivity(run, "s_min", {"alpha": 0.94}, OPTIONS)
    assert [(p.label, p.cap) for p in parts] == [("OptScale⁰", 8), ("OptScale⁰", 16)]
    method = run.methods[0]
    for part in parts:
        assert part.fixed == {"alpha": 0.95}
        assert part.x.tolist() == list(S_MIN)
        for x, value, cost in zip(part.x, part.value, part.cost, strict=True):
            (at,) = (
                i
                for i, s in enumerate(method.settings)
                if (s["s_min"], s["alpha"], s["max_samples"]) == (x, 0.95, part.cap)
            )
            assert value == pytest.approx(run.value(method)[at].mean())
            assert cost == pytest.approx(run.cost(method)[at].mean())


def test_without_a_baseline_differences_are_not_known(run):
    rows = compare(dataclasses.replace(run, methods=run.methods[:1]), [8], OPTIONS)
    assert rows[0].baseline is None
    assert np.isnan(rows[0].difference.mean)
    assert np.isnan(rows[0].saved)


def test_unknown_lengths_are_counted_in_completions_and_scores_stand_for_correctness(run):
    first, *others = run.methods
    tokens, score = first.tokens.copy(), first.score.copy()
    tokens[0, 0, 0], score[0, 0, 0] = -1, np.nan
    first = dataclasses.replace(first, tokens=tokens, score=score)
    methods = [dataclasses.replace(method, correct=None) for method in (first, *others)]
    unknown = dataclasses.replace(run, methods=methods)
    assert unknown.kinds == ("score", "samples")
    assert unknown.value(methods[0])[0, 0, 0] == 0
    np.testing.assert_array_equal(unknown.cost(methods[0])[0], first.num_samples[0])


# Tables -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(table_rows):
    kinds = {"pool": ("accuracy", "tokens")}
    return paper_table("Title", {"pool": table_rows}, kinds, notes=["100% of a_b"])


def test_the_best_of_each_n_is_bold_and_the_oracle_does_not_compete(table, table_rows):
    assert len(table.rows) == len(table_rows)
    for (cap, label, knobs, value, cost), row in zip(table.rows, table_rows, strict=True):
        assert (cap, label) == (str(row.cap), row.method.label)
        # s_min and alpha; N is given.
        assert knobs == ("2" if label == "OptScale⁰" else "0")
        competing = [r for r in table_rows if r.cap == row.cap and r.method.label != "oracle"]
        best = max(round(100 * float(r.value.mean), 1) for r in competing)
        cheapest = min(float(r.cost.mean) for r in competing)
        oracle = label == "oracle"
        assert value.best == (not oracle and round(100 * float(row.value.mean), 1) == best)
        assert cost.best == (not oracle and float(row.cost.mean) == cheapest)
        assert value.number == pytest.approx(100 * float(row.value.mean))
        assert cost.number == float(row.cost.mean)


def test_one_table_in_every_format(table):
    text = table.to_markdown()
    bold = re.findall(r"\*\*([^*]+)\*\*", text)
    assert len(bold) - 1 == table.to_latex().count(r"\textbf{")
    assert text.splitlines()[2] == "| N | method | knobs | pool: accuracy, % | pool: tokens |"
    assert text.splitlines()[3] == "| ---: | --- | ---: | ---: | ---: |"
    # The first cell stands once for its block.
    assert [line.split(" | ")[0] for line in text.splitlines()[4:10]] == [
        *("| 8", "| ", "| "),
        *("| 16", "| ", "| "),
    ]
    rows = list(csv.DictReader(table.to_csv().splitlines()))
    assert [row["N"] for row in rows] == ["8"] * 3 + ["16"] * 3
    assert sum(int(row["pool: tokens, best"]) for row in rows) == 2
    source = table.to_latex()
    assert source.count(r"\midrule") == 2
    assert r"\multirow{3}{*}{16} & OptScale$^0$ & " in source
    assert r"100\% of a\_b" in source
    for line in source.splitlines():
        if line.endswith(r"\\") and "multicolumn" not in line:
            assert line.count(" & ") == 4


def test_latex_escapes():
    assert latex("a_b & 50% ±1 {x}") == r"a\_b \& 50\% $\pm$1 \{x\}"


# The command --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    runs = [write_run(folder / "a"), write_run(folder / "b", seed=1)]
    arguments = ["--runs", *map(str, runs), "--out", str(folder / "out"), "--resamples", "100"]
    assert command.main(arguments) == 0
    return folder / "out"


def test_files_are_there_and_the_page_needs_no_other(written):
    files = {str(p.relative_to(written)) for p in written.rglob("*") if p.is_file()}
    assert files == {
        "index.html",
        *command.TABLES,
        *(f"{run}/{name}.{suffix}" for run in "ab" for name in DRAWN for suffix in ("png", "pdf")),
    }
    text = (written / "index.html").read_text()
    assert text.count("<svg ") == 8
    assert not re.search(r'(?:src|href)="(?!#)|url\((?!#)|@import', text)
    # Names are of one figure each, and every link leads to one.
    names = re.findall(r' id="([^"]+)"', text)
    assert len(set(names)) == len(names)
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= {*names}
    table = (written / "table.md").read_text()
    assert text.count("<b>") == table.count("**") // 2 - 1  # the title is bold too
    assert text.count("Tuned on the test set, these would claim at most") == 2


@pytest.mark.browser
def test_the_page_answers_first_and_sorts_folds_and_tells_in_a_browser(written):
    url = (written / "index.html").as_uri()
    with chromium() as browser:
        for width, dark in ((1400, False), (390, True)):
            with opened(browser, url, width=width, dark=dark) as page:
                asked = []
                page.on("request", lambda request, asked=asked: asked.append(request.url))
                assert fits(page)
                # The answer and its figure stand before anything that is folded or a table.
                first = page.locator("section").first
                assert first.locator(".lead").inner_text().startswith("Use ")
                figure = first.locator("figure").first
                assert figure.bounding_box()["y"] < first.locator("table").first.evaluate(
                    "each => each.closest('details').getBoundingClientRect().top"
                )
                # A point tells its setting; a curve can be hidden.
                point = figure.locator("use:has(title)").first
                words = point.locator("title").text_content()
                point.dispatch_event("click")
                assert page.locator("#tip").inner_text() == words
                assert words.startswith("OptScale⁰ (s_min=")
                figure.get_by_label("best-of-N").uncheck()
                assert figure.locator("g.curve-1").first.is_hidden()
                assert figure.locator("g.curve-0").first.is_visible()
                # A folded table unfolds, and a heading sorts it, up and then down.
                details = first.locator("details", has_text="What each method reaches")
                assert not details.locator("table").is_visible()
                details.locator("summary").click()
                head = details.locator("th", has_text="knobs")
                shown = []
                for _ in range(2):
                    head.get_by_role("button").click()
                    index = head.evaluate("each => each.cellIndex") + 1
                    cells = details.locator(f"tbody td:nth-child({index})")
                    shown.append([int(text) for text in cells.all_inner_texts()])
                assert shown == [sorted(shown[0]), sorted(shown[0], reverse=True)]
                assert len({*shown[0]}) > 1
                assert fits(page)
                assert asked == []


def test_table_has_the_papers_layout(written):
    rows = read_csv(written / "table.csv")
    columns = ["N", "method", "knobs"]
    for name in ("a", "b"):
        for what in ("accuracy, %", "tokens"):
            columns += [f"{name}: {what}", f"{name}: {what}, best"]
    assert list(rows[0]) == columns
    assert [row["method"] for row in rows] == ["OptScale⁰", "best-of-N", "oracle"] * 2


def test_comparison_and_curves_hold_the_numbers_of_the_table(written):
    rows = read_csv(written / "comparison.csv")
    table = read_csv(written / "table.csv")
    for row in rows:
        match = next(t for t in table if (t["N"], t["method"]) == (row["N"], row["method"]))
        assert 100 * float(row["accuracy"]) == pytest.approx(
            float(match[f"{row['pool']}: accuracy, %"])
        )
        assert float(row["tokens"]) == pytest.approx(float(match[f"{row['pool']}: tokens"]))
        peeking = float(row["on_test_set_value"]) - float(row["accuracy"])
        assert float(row["optimism_value"]) == pytest.approx(peeking, abs=1e-12)
    curves = read_csv(written / "curves.csv")
    assert [row["method"] for row in curves] == ["OptScale⁰", "best-of-N", "oracle"] * 2
    own = {(row["pool"], row["method"]): row for row in curves}
    pairs = read_csv(written / "pairs.csv")
    assert {(p["method"], p["against"]) for p in pairs} == set(
        itertools.permutations(["OptScale⁰", "best-of-N"])
    )
    for row in pairs:
        ours, theirs = (own[row["pool"], row[name]] for name in ("method", "against"))
        for part in ("value", "cost"):
            low, mean, high = (
                float(row[f"{part}_difference{end}"]) for end in ("_low", "", "_high")
            )
            means = (float(each[f"{row['aim']}_{part}"]) for each in (ours, theirs))
            assert mean == pytest.approx(operator.sub(*means), abs=1e-9)
            assert low <= high
    # The best fixed n is best-of-N's for its aim, so that these are its paired differences too.
    for row in pairs:
        if row["aim"] == "as_good_as_best_n" and row["against"] == "best-of-N":
            curve = own[row["pool"], row["method"]]
            for end in ("_low", "", "_high"):
                assert float(row[f"value_difference{end}"]) == pytest.approx(
                    float(curve[f"as_good_as_best_n_difference{end}"]), abs=1e-9
                )


def test_runs_of_one_name_share_their_columns_and_names_are_text(tmp_path):
    """Two methods in one folder, one in another, under a name that would be HTML."""
    optscale, best, oracle = outcomes().methods
    both = write_run(tmp_path / "a", methods=[optscale, best])
    other = write_run(tmp_path / "b", methods=[oracle])
    out, name = tmp_path / "out", "<script>alert('&')</script>"
    arguments = ["--runs", str(both), str(other), "--names", name, name, "--out", str(out)]
    assert command.main([*arguments, "--resamples", "50"]) == 0
    rows = read_csv(out / "table.csv")
    assert [row["method"] for row in rows] == ["OptScale⁰", "best-of-N", "oracle"] * 2
    assert sum(heading.startswith(f"{name}: ") for heading in rows[0]) == 4
    folders = {path.name for path in out.iterdir() if path.is_dir()}
    assert len(folders) == 2
    assert {folder.removesuffix(".2") for folder in folders} == {"_script_alert_______script_"}
    text = (out / "index.html").read_text()
    assert text.count("<script") == 1  # the page's own
    assert "&lt;script&gt;alert(&#39;&amp;&#39;)" in text


def test_a_pool_that_is_gone_or_another_costs_its_figures_only(tmp_path):
    file = tmp_path / "some.npz"
    scores = np.random.default_rng(0).random((PROBLEMS, 16))
    Pool.from_arrays(scores=scores).save(file)
    folder = write_run(tmp_path / "a", source=PoolSource(str(file)).with_checksum())
    found = command._read_run(folder)
    assert found.pool is not None
    np.testing.assert_array_equal(found.pool.scores, scores.astype(np.float32))
    Pool.from_arrays(scores=scores / 2).save(file)
    changed = command._read_run(folder)
    assert changed.pool is None
    assert changed.notes == [f"its pool, {file}, is another one now: no figures of scores"]
    file.unlink()
    gone = command._read_run(folder)
    assert gone.notes == [f"its pool, {file}, is no longer there: no figures of scores"]
    # What was replayed is reported on all the same, and the page says what is missing.
    found = find(gone.outcomes, None, OPTIONS, notes=gone.notes)
    assert found.fit is None
    shown = section(found, anchor="a")
    assert {each.name for each in shown.drawings} == set(DRAWN)
    text = page("title", table_of([found], OPTIONS), [shown._replace(drawings=())])
    assert gone.notes[0] in text
    assert "warning" not in text.partition("</style>")[2].partition("<script>")[0]


def refuse(tmp_path, capsys, arguments, *words):
    out = tmp_path / "refused"
    assert command.main([*map(str, arguments), "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("error: ")
    for word in words:
        assert str(word) in captured.err, captured.err
    assert not out.exists()


def test_what_cannot_be_reported_on(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    refuse(tmp_path, capsys, [], "nothing to report on")
    refuse(tmp_path, capsys, ["--runs", tmp_path / "none"], tmp_path / "none", "no such folder")
    refuse(tmp_path, capsys, ["--runs", tmp_path], "no outcomes.npz is in it", "--outcomes true")
    refuse(tmp_path, capsys, ["--runs", run, run], "is there twice", "--names")
    refuse(tmp_path, capsys, ["--runs", run, "--names", "a", "b"], "names are 2")
    refuse(tmp_path, capsys, ["--runs", run, "--n", "32"], "no method has an N")
    refuse(tmp_path, capsys, ["--runs", run, "--folds", "1"], "folds is 1")
    both = ["--aim.max_loss", "0.1", "--aim.max_tokens", "5"]
    refuse(tmp_path, capsys, ["--runs", run, *both], "exactly one")
    data = (run / "outcomes.npz").read_bytes()
    (run / "outcomes.npz").write_bytes(data[: len(data) // 2])
    refuse(tmp_path, capsys, ["--runs", run], run / "outcomes.npz")


def test_one_problem_leaves_none_to_tune_on(tmp_path, capsys):
    outcomes(problems=1).save(tmp_path / "outcomes.npz")
    refuse(tmp_path, capsys, ["--runs", tmp_path], "pool: it has one problem", "at least two")
    file = tmp_path / "one.npz"
    Pool.from_arrays(scores=np.full((1, 64), 0.5)).save(file)
    refuse(tmp_path, capsys, ["--pools", file], f"{file}: it has one problem", "at least two")


@dataclasses.dataclass
class Text:
    problems: int = 30
    completions: int = 64


def official(folder: Path, shape=Text()):  # noqa: B008
    """A pool in the published code's format, and what went in."""
    rng = np.random.default_rng(4)
    size = (shape.problems, shape.completions)
    answers = rng.integers(0, 4, size)
    scores = np.round(rng.beta(8, 2, size), 4)
    tokens = rng.integers(50, 900, size)
    records = [
        {
            "id": p,
            "n": shape.completions,
            "output": "",
            "score": {
                "problem": [f"question {p}"],
                "completions": [[f"so it is \\boxed{{{a}}}" for a in answers[p]]],
                "scores": [scores[p].tolist()],
                "last_scores": [scores[p].tolist()],
                "pred": [""],
                "completion_tokens": [tokens[p].tolist()],
            },
        }
        for p in range(shape.problems)
    ]
    prompts = [{"problem": f"question {p}", "answer": "0"} for p in range(shape.problems)]
    (folder / "par.json").write_text(json.dumps(records))
    (folder / "prompts.json").write_text(json.dumps(prompts))
    return answers, scores.astype(np.float32), tokens


def test_official_pools_parallel_and_sequential_make_one_table(tmp_path):
    """30 x 64 in the official format: what goes in comes out, in the paper's layout."""
    answers, scores, tokens = official(tmp_path)
    comparison = {
        "policy": {"name": "best_of_n", "label": "best-of-N", "n": [8, 64]},
        "compare": [{"name": "mr_thinking", "label": "MR-Thinking", "rounds": [8, 64]}],
        "leave_out": True,
    }
    (tmp_path / "comparison.yaml").write_text(yaml.safe_dump(comparison))
    arguments = ["--pools", tmp_path / "par.json", "--prompts", tmp_path / "prompts.json"]
    arguments += ["--comparison", tmp_path / "comparison.yaml", "--resamples", 50, "--names", "x"]
    for kind in ("parallel", "sequential"):
        out = tmp_path / kind
        assert command.main([*map(str, arguments), "--kind", kind, "--out", str(out)]) == 0
    # Both kinds under one heading, from the folders that the two reports left.
    runs = [command._read_run(tmp_path / kind / "x") for kind in ("parallel", "sequential")]
    sources = command._named(runs, ["x", "x"])
    table = table_of([find(each.outcomes, None, OPTIONS) for each in sources], OPTIONS)
    rows = list(csv.DictReader(table.to_csv().splitlines()))
    assert [(row["N"], row["method"]) for row in rows] == [
        (n, m) for n in ("8", "64") for m in ("best-of-N", "MR-Thinking")
    ]
    best = answers[np.arange(30), scores.argmax(1)] == 0
    assert float(rows[2]["x: accuracy, %"]) == pytest.approx(100 * best.mean())
    assert float(rows[2]["x: tokens"]) == pytest.approx(tokens.sum(1).mean())
    assert float(rows[3]["x: accuracy, %"]) == pytest.approx(100 * (answers[:, -1] == 0).mean())
    assert "MR-Thinking is left out" in (tmp_path / "parallel" / "table.md").read_text()
    for name in ("calibration", "roc"):
        assert (tmp_path / "parallel" / "x" / f"{name}.png").stat().st_size > 5000
    # What is right is known, so the limit is there beside best-of-N, and so is what to use.
    text = (tmp_path / "parallel" / "table.md").read_text()
    assert "hindsight oracle" in text
    assert "x: Use best-of-N (n=" in text
    (first, *_) = read_csv(tmp_path / "parallel" / "roc.csv")
    pairs = roc_of(Pool.from_arrays(scores=scores, correct=answers == 0), OPTIONS)
    assert float(first["auc"]) == pytest.approx(pairs.auc)
    assert (
        "what the verifier reads is not known" in (tmp_path / "parallel" / "index.html").read_text()
    )


def test_a_few_problems_without_gold_are_said_to_be_that(tmp_path):
    pool = synthetic_pool(jax.random.key(2), num_problems=5, num_samples=8)
    dataclasses.replace(pool, correct=None, gold=None).save(tmp_path / "few.npz")
    comparison = {
        "policy": {"name": "best_of_n", "label": "best-of-N", "n": [1, 2, 4, 8]},
        "baseline": "best-of-N",
        "permutations": 3,
    }
    (tmp_path / "comparison.yaml").write_text(yaml.safe_dump(comparison))
    arguments = ["--pools", tmp_path / "few.npz", "--comparison", tmp_path / "comparison.yaml"]
    arguments += ["--resamples", 50, "--laws", "[]", "--out", tmp_path / "out"]
    assert command.main([*map(str, arguments)]) == 0
    text = (tmp_path / "out" / "table.md").read_text()
    assert "few: which completions are right is not known" in text
    assert "few: 5 problems are too few to go by; take tens, better hundreds. Use best-of-N" in text
    # As many orders as the comparison asks for, where the command does not say.
    assert "in 3 random orders" in (tmp_path / "out" / "index.html").read_text()
