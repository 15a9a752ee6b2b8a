"""The record of outcomes: kept in a file without loss, and made of one's own replays."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from optscale_jax import Pool, policies, replay, synthetic_pool
from optscale_jax.errors import InputError
from optscale_jax.study import (
    Method,
    Options,
    Outcomes,
    PolicyConfig,
    compare,
    entries_of,
    leave_out,
    replay_comparison,
    summarise_methods,
)
from optscale_jax.study.entries import in_words
from optscale_jax.study.pools import PoolSource, ReadConfig, SyntheticPoolConfig

PROBLEMS, SAMPLES, ORDERS = 20, 8, 3
CONFIGS = [
    PolicyConfig("first_hit", label="first hit", s_min=[0.8, 0.9], max_samples=[4, SAMPLES]),
    PolicyConfig("best_of_n", label="best-of-N", n=[4, SAMPLES]),
]
OPTIONS = {"key": jax.random.key(0), "num_permutations": ORDERS}


@pytest.fixture(scope="module")
def pool() -> Pool:
    return synthetic_pool(jax.random.key(1), num_problems=PROBLEMS, num_samples=SAMPLES)


@pytest.fixture(scope="module")
def best(pool):
    return replay(pool, policies.best_of_n(SAMPLES), **OPTIONS)


@pytest.fixture(scope="module")
def outcomes(pool) -> Outcomes:
    source = PoolSource("synthetic", synthetic=SyntheticPoolConfig(num_problems=PROBLEMS))
    entries = entries_of(CONFIGS)
    return replay_comparison(pool, entries, seed=0, num_permutations=ORDERS, source=source)


def same(one: Outcomes, other: Outcomes) -> None:
    for field in ("name", "stored_order", "source"):
        assert getattr(one, field) == getattr(other, field)
    assert list(one.baselines) == list(other.baselines)
    np.testing.assert_array_equal(one.problem_ids, other.problem_ids)
    for mine, its in zip(one.methods, other.methods, strict=True):
        for field in dataclasses.fields(Method):
            a, b = getattr(mine, field.name), getattr(its, field.name)
            if isinstance(a, np.ndarray):
                np.testing.assert_array_equal(a, b, err_msg=field.name)
                assert a.dtype == b.dtype
            else:
                assert a == b, field.name


def test_a_file_keeps_everything(outcomes, tmp_path):
    outcomes.save(tmp_path / "outcomes.npz")
    same(Outcomes.load(tmp_path), outcomes)
    same(Outcomes.load(tmp_path / "outcomes.npz"), outcomes)
    bare = [dataclasses.replace(method, correct=None) for method in outcomes.methods]
    read = PoolSource("some/pool.json", ReadConfig(clip=True, aggregation="min"), sha256="ab")
    other = dataclasses.replace(outcomes, methods=bare, source=read, stored_order=True)
    other.save(tmp_path / "bare.npz")
    same(Outcomes.load(tmp_path / "bare.npz"), other)


def test_settings_are_described_and_varied_as_they_were_asked_for(outcomes):
    first, best = outcomes.methods
    assert [first.describe(i) for i in range(4)] == [
        f"s_min={s} max_samples={n}" for n in (4, 8) for s in (0.8, 0.9)
    ]
    assert first.describe(0, without=("max_samples",)) == "s_min=0.8"
    assert (first.varying, best.varying) == (["s_min", "max_samples"], ["n"])
    assert outcomes.caps == [4, 8]
    assert list(outcomes.baselines) == ["best-of-N"]


def test_ones_own_results_are_the_same_record(pool, outcomes):
    """replay by hand, and the one call that makes a record of it, agree with the configured."""
    results = {
        "first hit": [
            replay(pool, policies.first_hit(s, n), **OPTIONS) for n in (4, 8) for s in (0.8, 0.9)
        ],
        "best-of-N": [replay(pool, policies.best_of_n(n), **OPTIONS) for n in (4, 8)],
    }
    own = Outcomes.from_results(
        pool,
        results,
        caps={"first hit": [4, 4, 8, 8], "best-of-N": [4, 8]},
        baselines=["best-of-N"],
    )
    for mine, its in zip(own.methods, outcomes.methods, strict=True):
        np.testing.assert_array_equal(mine.caps, its.caps)
        for field in ("num_samples", "tokens", "score", "correct", "selected_index", "stop_reason"):
            np.testing.assert_array_equal(getattr(mine, field), getattr(its, field))
    options = Options(num_resamples=50)
    for mine, its in zip(
        compare(own, options=options), compare(outcomes, options=options), strict=True
    ):
        assert mine.method.label == its.method.label
        assert mine.value == its.value
        assert mine.saved == its.saved
    summaries = summarise_methods(own, baseline="best-of-N", options=options)
    assert [len(s.difference["accuracy"].mean) for s in summaries] == [4, 2]


def test_the_example_of_the_page_on_reports_runs_as_it_stands(tmp_path, monkeypatch):
    """docs/report.md shows how one's own replays become the paper's table."""
    page = Path(__file__).resolve().parents[1] / "docs" / "report.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    monkeypatch.chdir(tmp_path)
    synthetic_pool(jax.random.key(0), num_problems=30, num_samples=16).save("pool.npz")
    found: dict = {}
    exec(example, found)
    table, section = found["table"], found["found"]
    assert [row[:2] for row in table.rows] == [
        [n, label]
        for n in ("8", "16")
        for label in ("best-of-N", "first hit at 0.9", "hindsight oracle")
    ]
    assert "| 8 | best-of-N | " in table.to_markdown()
    assert section.about == "30 problems x 16 completions, in 20 random orders"
    assert set(section.subsets) == {"pass@1", "pass@16", "best@16", "maj@16"}
    assert section.fit.verdict.trusted == (section.fit.verdict.reasons == ())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"caps": {"none": 8}}, "'none' is not among the results"),
        ({"caps": [4, 8, 8]}, "1 settings were replayed, but caps are 3"),
        ({"caps": 8, "settings": {"best": [{}, {}]}}, "settings 2"),
        ({"caps": 8, "baselines": ["who"]}, "'who' is not among the results: best"),
    ],
)
def test_results_that_do_not_match_what_is_said_of_them(pool, best, options, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        Outcomes.from_results(pool, {"best": best}, **options)


def test_results_of_other_orders_or_another_pool_are_refused(pool, best):
    stored = jax.tree.map(lambda field: field[:1], best)
    with pytest.raises(ValueError, match=r"stored has \(1, 20\) permutations and problems"):
        Outcomes.from_results(pool, {"best": best, "stored": stored}, caps=SAMPLES)
    other = Pool.from_arrays(scores=pool.scores[:3])
    with pytest.raises(ValueError, match="the pool 3 problems"):
        Outcomes.from_results(other, {"best": best}, caps=SAMPLES)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 0}, "an earlier version of this package; run eval.replay again"),
        ({"version": 99}, "a later version"),
        ({"methods": []}, "not what eval.replay writes"),
    ],
)
def test_files_of_other_versions_are_refused_in_one_line(outcomes, tmp_path, change, says):
    file = tmp_path / "outcomes.npz"
    outcomes.save(file)
    with np.load(file) as archive:
        arrays = dict(archive)
    about = json.loads(str(arrays["about"])) | change
    np.savez(file, **(arrays | {"about": np.array(json.dumps(about))}))
    with pytest.raises(InputError, match=says) as refused:
        Outcomes.load(tmp_path)
    assert str(refused.value).startswith(f"{file}: ")
    assert "\n" not in str(refused.value)
    # Before there were versions, the methods stood by themselves.
    np.savez(file, methods=np.array("[]"), **{k: v for k, v in arrays.items() if k != "about"})
    with pytest.raises(InputError, match="an earlier version"):
        Outcomes.load(tmp_path)


def test_what_is_left_out_says_why_without_what_to_do(pool):
    bare = Pool.from_arrays(scores=None, answers=pool.answers, gold=pool.gold)
    configs = [*CONFIGS, PolicyConfig("self_consistency", label="SC", n=[4, 2 * SAMPLES])]
    kept, left_out = leave_out(entries_of(configs), bare, ORDERS)
    assert in_words(left_out)[0].startswith("first hit; best-of-N are left out: it has no verifier")
    assert in_words(left_out)[1:] == [str(left_out[2])]
    assert [entry.label for entry in kept] == ["SC"]
    assert [each.label for each in left_out] == ["first hit", "best-of-N", "SC"]
    assert left_out[0].caps == ()
    assert left_out[0].reason.startswith(
        "it has no verifier scores, which this policy needs (where"
    )
    assert left_out[2].caps == (2 * SAMPLES,)
    assert str(left_out[2]).startswith(f"SC at N = {2 * SAMPLES} is left out: problem ")
    assert "deeper pool" not in left_out[2].reason
