"""The report: what it computes from outcomes, its tables in every format, and how it refuses."""

import csv
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from eval import report as command
from optscale_jax import Pool
from optscale_jax.report.comparison import paper_table, section, table_of
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
from optscale_jax.study.pools import PoolSource
from optscale_jax.study.tuning import cross_fit

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
    for (cap, label, value, cost), row in zip(table.rows, table_rows, strict=True):
        assert (cap, label) == (str(row.cap), row.method.label)
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
    assert text.splitlines()[2] == "| N | method | pool: accuracy, % | pool: tokens |"
    assert text.splitlines()[3] == "| ---: | --- | ---: | ---: |"
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
            assert line.count(" & ") == 3


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
    assert text.count("data:image/png;base64,") == 8
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    assert "MR-Thinking is left out" in text
    table = (written / "table.md").read_text()
    assert text.count("<b>") == table.count("**") // 2 - 1  # the title is bold too
    assert "Tuned on the test set it would claim" in text


def test_table_has_the_papers_layout(written):
    rows = read_csv(written / "table.csv")
    columns = ["N", "method"]
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
    assert "<script" not in text
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
    assert "warning" not in text.partition("</style>")[2]


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
    assert (tmp_path / "parallel" / "x" / "calibration.png").stat().st_size > 5000
