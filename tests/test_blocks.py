"""Pools of several blocks: their numbers are those of the whole, read from memory or from disk."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import psutil
import pytest

from eval.convert import main as convert
from eval.replay import main as eval_replay
from eval.report import main as eval_report
from optscale_jax import Pool, policies, pool_directory, replay, synthetic, synthetic_pool
from optscale_jax.policies import stack
from optscale_jax.pool_directory import PoolDirectory, PoolWriter
from optscale_jax.readers import jsonl, read_pool, write_jsonl
from optscale_jax.replay import block_key, blocks_to_replay, permutations
from optscale_jax.study import blocks, entries, pools
from optscale_jax.study.blocks import groups, sample_of, sample_of_folds
from optscale_jax.study.comparison import Options, compare
from optscale_jax.study.entries import entries_of, replay_comparison
from optscale_jax.study.goodness_of_fit import fitted_law
from optscale_jax.study.hindsight import with_hindsight
from optscale_jax.study.learning import cross_fitted, learn_calibration
from optscale_jax.study.outcomes import Outcomes
from optscale_jax.study.registry import PolicyConfig
from optscale_jax.study.tuning import folds
from optscale_jax.study.verifier import tokens_with_verifier
from tests.test_pool import assert_equal
from train.calibration import main as train_calibration

BLOCK, PROBLEMS, SAMPLES = 16, 41, 6
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    for module in (replay_module(), synthetic, jsonl, blocks, entries, pools):
        monkeypatch.setattr(module, "BLOCK", BLOCK)


def replay_module():
    import sys

    return sys.modules["optscale_jax.replay"]  # the package has a function of the name


@pytest.fixture
def pool() -> Pool:
    """41 problems in blocks of 16; some completions without an answer, some problems short."""
    whole = synthetic_pool(KEY, num_problems=PROBLEMS, num_samples=SAMPLES)
    rng = np.random.default_rng(0)
    answers = np.where(rng.random(whole.mask.shape) < 0.4, -1, whole.answers)
    return Pool.from_arrays(
        scores=whole.scores,
        answers=answers,
        gold=whole.gold,
        tokens=whole.tokens,
        problem_ids=whole.problem_ids,
        mask=np.arange(SAMPLES) < rng.integers(4, SAMPLES + 1, PROBLEMS)[:, None],
        signals={"judge": rng.random(whole.mask.shape)},
    )


@pytest.fixture
def directory(pool, tmp_path) -> PoolDirectory:
    with PoolWriter(tmp_path / "large", part_size=7) as writer:
        for block in pool.blocks(5):
            writer.add(block)
    return PoolDirectory(tmp_path / "large")


def compared() -> list:
    return entries_of(
        [
            PolicyConfig("optscale", s_min=[0.8, 0.9], max_samples=[2, 4], alpha=0.9),
            PolicyConfig("known_law", s_min=[0.8, 0.9], max_samples=4, alpha=0.9),
            PolicyConfig("best_of_n", n=[1, 2, 4]),
            PolicyConfig("self_consistency", n=[4]),
        ]
    )


def arrays_of(outcomes: Outcomes) -> dict[str, np.ndarray]:
    names = ("num_samples", "tokens", "score", "correct", "share_scored")
    return {f"{m.label} {n}": getattr(m, n) for m in outcomes.methods for n in names}


def assert_same(one: Outcomes, other: Outcomes) -> None:
    for (name, own), theirs in zip(arrays_of(one).items(), arrays_of(other).values(), strict=True):
        np.testing.assert_array_equal(own, theirs, err_msg=name)


# Orders and replays -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["optscale", "self_consistency"])
def test_a_replay_of_the_whole_is_that_of_its_blocks(pool, name):
    rules = {
        "optscale": stack([policies.optscale(s, 0.9, 4) for s in (0.8, 0.9)]),
        "self_consistency": policies.self_consistency(4),
    }
    whole = replay(pool, rules[name], key=KEY, num_permutations=2)
    for block in blocks_to_replay(pool):
        key = block_key(KEY, block.index)
        own = replay(block.pool, rules[name], key=key, num_permutations=2)
        assert block.pool.num_problems == BLOCK
        # What fills the last block up is of no interest.
        rows = block.rows[: block.num_problems]
        orders = permutations(block.pool, key, 2)[:, : block.num_problems]
        np.testing.assert_array_equal(orders, permutations(pool, KEY, 2)[:, rows])
        for field in ("num_samples", "tokens", "selected_index", "score", "correct"):
            np.testing.assert_array_equal(
                getattr(own, field)[..., : block.num_problems],
                getattr(whole, field)[..., rows],
                err_msg=field,
            )


def test_synthetic_blocks_are_the_pool(pool):
    whole = synthetic_pool(KEY, num_problems=PROBLEMS, num_samples=SAMPLES)
    parts = list(synthetic.synthetic_blocks(KEY, num_problems=PROBLEMS, num_samples=SAMPLES))
    assert [part.num_problems for part in parts] == [16, 16, 9]
    for name in ("scores", "correct", "tokens", "answers", "problem_ids"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole, name))
    first = synthetic_pool(KEY, num_problems=BLOCK, num_samples=SAMPLES)
    assert first.scores.shape == (BLOCK, SAMPLES)


# Groups -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [17, 40, 41, 1000, 1009])
def test_groups_are_of_nearly_equal_size(count):
    sizes = np.bincount(groups(count))
    assert BLOCK // 4 <= len(sizes) <= BLOCK // 2
    assert np.ptp(sizes) <= 1
    assert (sizes == sizes.max()).sum() <= max(count % len(sizes), 1) or np.ptp(sizes) == 0
    np.testing.assert_array_equal(groups(count), groups(count))


def test_from_disk_and_from_memory_are_the_same_and_their_means_those_of_all(pool, directory):
    options = {"seed": 3, "num_permutations": 2}
    found = replay_comparison(pool, compared(), **options)
    assert_same(replay_comparison(directory, compared(), **options), found)
    assert (found.num_problems, found.num_permutations) == (PROBLEMS, 2)
    assert found.cost_kind == "tokens"
    key = jax.random.key(3)
    for entry, method in zip(compared(), found.methods, strict=True):
        prior = fitted_law(pool) if entry.name == "known_law" else None
        for index, policy in enumerate(entry.policies):
            own = replay(pool, policy, key=key, num_permutations=2, prior=prior)
            for metric, values in (
                ("samples", own.num_samples),
                ("tokens", own.tokens),
                ("accuracy", own.correct),
            ):
                means = np.asarray(values, float).mean(-1)
                np.testing.assert_allclose(
                    method.metric(metric)[index].mean(-1), means, rtol=1e-12, err_msg=metric
                )
            np.testing.assert_allclose(
                method.metric("score")[index].mean(-1), np.nanmean(own.score, -1), rtol=1e-6
            )
            np.testing.assert_allclose(
                method.share_scored[index], (~np.isnan(own.score)).mean(-1), rtol=1e-12
            )


def test_the_hindsight_oracle_is_gathered_alike(pool, directory):
    found = replay_comparison(pool, compared(), seed=3, num_permutations=2)
    limit = with_hindsight(found, directory, 3)
    assert_same(limit, with_hindsight(found, pool, 3))
    method = limit.methods[-1]
    assert method.num_samples.shape == (3, 2, groups(PROBLEMS).max() + 1)
    for one in found.methods:
        for index, cap in enumerate(one.caps):
            best = method.correct[list(method.caps).index(cap)].mean()
            assert one.correct[index].mean() <= best + 1e-12


def test_scores_stand_in_with_nothing_for_what_is_not_returned(pool):
    blind = dataclasses.replace(pool, correct=None, gold=None)
    found = replay_comparison(blind, compared(), seed=3, num_permutations=1)
    assert found.value_kind == "score"
    entry, method = compared()[2], found.methods[2]
    own = replay(blind, entry.policies[0], key=jax.random.key(3), num_permutations=1)
    assert np.isnan(own.score).any()
    np.testing.assert_allclose(
        found.value(method)[0].mean(), np.nan_to_num(own.score).mean(), rtol=1e-6
    )


def test_the_verifiers_tokens_are_counted_in_groups_too(pool):
    read = np.random.default_rng(1).integers(10, 50, pool.mask.shape).astype(np.float32)
    signal = np.where(pool.mask, read, np.float32(np.nan))
    counted = dataclasses.replace(pool, signals={"verifier_tokens": signal})
    found = replay_comparison(counted, compared(), seed=3, num_permutations=2)
    orders = permutations(pool, jax.random.key(3), 2)
    spent = np.cumsum(read[np.arange(PROBLEMS)[:, None], orders], axis=-1)
    np.testing.assert_allclose(
        found.methods[2].verifier_tokens.mean(-1), spent[..., [0, 1, 3]].mean(1).T, rtol=1e-6
    )
    rows = compare(found, [4], Options(num_folds=2, num_resamples=20))
    both = tokens_with_verifier(found, rows, sample_of(counted), 3)
    assert [row.method.reads_scores for row in rows] == [True, True, True, False]
    for row, total in zip(rows, both, strict=True):
        more = row.verifier_tokens.mean() if row.method.reads_scores else 0
        assert total == pytest.approx(row.cost.mean + more)


def test_an_unknown_length_makes_the_settings_tokens_unknown(pool):
    tokens = pool.tokens.copy()
    tokens[40, 0] = -1
    found = replay_comparison(
        dataclasses.replace(pool, tokens=tokens), compared(), seed=3, num_permutations=1
    )
    assert found.cost_kind == "samples"
    deepest = found.methods[2].metric("tokens")
    assert np.isnan(deepest[2]).all()


def test_outcomes_of_groups_are_kept_in_a_file(pool, tmp_path):
    found = replay_comparison(pool, compared(), seed=3, num_permutations=2)
    found.save(tmp_path / "outcomes.npz")
    again = Outcomes.load(tmp_path)
    assert_same(again, found)
    assert again.num_problems == PROBLEMS
    assert again.methods[0].selected_index is None


def test_intervals_over_groups_are_those_over_problems(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 1024)
    rng = np.random.default_rng(0)
    values = (rng.random((2, 1, 20_000)) < [[[0.3]], [[0.8]]]).astype(float)
    group = groups(20_000)
    means = np.stack([np.bincount(group, row[0]) / np.bincount(group) for row in values])[:, None]
    options = Options(num_resamples=2000)
    over_groups, over_problems = options.interval(means), options.interval(values)
    np.testing.assert_allclose(over_groups.mean, over_problems.mean, rtol=1e-12)
    widths = [interval.high - interval.low for interval in (over_groups, over_problems)]
    # An end of an interval, a 2.5% quantile of R resamples, is off by sqrt(.025 x .975 / R) / .058
    # standard deviations; the ratio of two widths by .03 then, of which this is three times.
    np.testing.assert_allclose(*widths, rtol=0.09)


# What is learnt -----------------------------------------------------------------------------------


def test_a_large_pool_teaches_by_a_block_of_its_problems(pool, directory):
    taught = sample_of(pool)
    assert taught.num_problems == BLOCK
    assert set(taught.problem_ids) < set(pool.problem_ids)
    found, *others = [learn_calibration(p, num_folds=2) for p in (directory, pool, taught)]
    assert found.num_problems == BLOCK
    for other in others:
        assert found.weights == other.weights
        np.testing.assert_array_equal(found.tables["score"], other.tables["score"])


def test_a_rule_learns_on_problems_of_other_folds_than_the_one_it_is_used_on(pool, directory):
    taught, places = sample_of_folds(directory, 2, 5)
    fold = folds(int(groups(PROBLEMS).max()) + 1, 2, seed=5)[groups(PROBLEMS)]
    own = folds(BLOCK // 2, 2, seed=5)
    np.testing.assert_array_equal(own[places], fold)
    names = dict(zip(pool.problem_ids.tolist(), fold, strict=True))
    assert [names[name] for name in taught.problem_ids.tolist()] == own.tolist()
    vote = entries_of([PolicyConfig("calibrated_vote", budget=[2, 4], max_samples=4)])
    options = {"seed": 5, "num_permutations": 1, "num_folds": 2}
    found = replay_comparison(directory, vote, **options)
    assert_same(found, replay_comparison(pool, vote, **options))
    learnt = jax.tree.map(lambda f: f[places], cross_fitted(taught, own, seed=5))
    rules, key = stack(vote[0].policies), jax.random.key(5)
    each = replay(pool, rules, key=key, num_permutations=1, prior=learnt)
    np.testing.assert_allclose(
        found.methods[0].num_samples.mean(-1), each.num_samples.mean(-1), rtol=1e-12
    )


@pytest.mark.parametrize("count", [17, 18, 19, 23, 31, 40])
def test_no_fold_has_too_few_problems_to_learn_on(pool, count):
    some = synthetic_pool(KEY, num_problems=count, num_samples=2)
    taught, places = sample_of_folds(some, 4, 1)
    assert (taught.num_problems, len(places)) == (BLOCK // 2, count)


# Commands -----------------------------------------------------------------------------------------


def run(main, *arguments) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def contents(folder: Path, *names: str) -> list[str]:
    return [(folder / name).read_text() for name in names]


def test_commands_say_the_same_of_a_directory_as_of_a_file(pool, directory, tmp_path, capsys):
    pool.save(tmp_path / "large.npz")
    config = tmp_path / "comparison.yaml"
    config.write_text(
        "policy: {name: optscale, s_min: [0.8, 0.9], alpha: 0.9, max_samples: [2, 4]}\n"
        "compare: [{name: best_of_n, n: [1, 2, 4]}]\nbaseline: best_of_n\npermutations: 2\n"
    )
    for name in ("large", "large.npz"):
        path = tmp_path / name
        run(eval_replay, "--config", config, "--pool", path, "--out", tmp_path / f"{name}.replay")
        run(
            *(eval_report, "--pools", path, "--comparison", config, "--folds", 2),
            *("--laws", "[]", "--out", tmp_path / f"{name}.report"),
        )
        run(train_calibration, "--pool", path, "--folds", 2, "--out", tmp_path / f"{name}.json")
    assert not (tmp_path / "large.replay" / "per_problem.csv").exists()
    files = ("results.csv", "summary.csv", "summary.md")
    assert contents(tmp_path / "large.replay", *files) == contents(
        tmp_path / "large.npz.replay", *files
    )
    files = ("table.csv", "comparison.csv", "curves.csv", "roc.csv")
    assert contents(tmp_path / "large.report", *files) == contents(
        tmp_path / "large.npz.report", *files
    )
    run(eval_report, "--runs", tmp_path / "large.replay", "--folds", 2, "--laws", "[]",
        "--out", tmp_path / "again")  # fmt: skip
    assert contents(tmp_path / "again", "curves.csv") == contents(
        tmp_path / "large.report", "curves.csv"
    )
    assert json.loads((tmp_path / "large.json").read_text()) == json.loads(
        (tmp_path / "large.npz.json").read_text()
    )
    assert "intervals are over" in " ".join(capsys.readouterr().out.split())


def test_convert_writes_every_form_and_they_hold_the_same(pool, tmp_path, capsys):
    pool.save(tmp_path / "pool.npz")
    run(convert, tmp_path / "pool.npz", "--out", tmp_path / "directory")
    run(convert, tmp_path / "directory", "--out", tmp_path / "pool.jsonl")
    run(convert, tmp_path / "pool.jsonl", "--out", tmp_path / "streamed")
    run(convert, tmp_path / "streamed", "--out", tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "pool.npz").read_bytes()
    assert capsys.readouterr().out.count("41 problems") == 4
    run(convert, "synthetic", "--synthetic.num_problems", 20, "--out", tmp_path / "made")
    assert read_pool(tmp_path / "made").problem_ids[-1] == "synthetic/19"


def test_a_live_run_is_converted_while_problems_are_drawn_at_the_same_time(tmp_path):
    rng = np.random.default_rng(0)
    run_of, counts = tmp_path / "run", rng.integers(1, 5, PROBLEMS)
    run_of.mkdir()
    drawn = [(p, i) for p in range(PROBLEMS) for i in range(counts[p] + (p % 3 == 0))]
    # Up to four problems at once, and some completions beyond those decided on.
    drawn.sort(key=lambda each: each[0] + rng.integers(0, 4))
    lines = [
        {"problem_id": f"p{p}", "index": i, "score": rng.random(), "answer_id": 0, "gold_id": p % 2}
        for p, i in drawn
    ]
    decisions = [{"problem_id": f"p{p}", "num_samples": int(n)} for p, n in enumerate(counts)]
    for name, own in (("samples", lines), ("decisions", decisions[:-1])):
        text = "".join(json.dumps(line) + "\n" for line in own)
        (run_of / f"{name}.jsonl").write_text(text)
    run(convert, run_of, "--out", tmp_path / "directory")
    found, whole = read_pool(tmp_path / "directory"), read_pool(run_of)
    assert found.num_problems == PROBLEMS
    place = {name: at for at, name in enumerate(found.problem_ids.tolist())}
    assert_equal(found.subset([place[name] for name in whole.problem_ids.tolist()]), whole)


def test_what_cannot_be_converted_is_one_line(pool, tmp_path, capsys):
    write_jsonl(pool, tmp_path / "pool.jsonl")
    lines = (tmp_path / "pool.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "apart.jsonl").write_text("".join(lines[1:] + lines[:1]))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for arguments, says in (
        ([], "pool is not given"),
        ([tmp_path / "pool.jsonl"], "out is not given"),
        ([tmp_path / "no.jsonl", "--out", tmp_path / "new"], "no such file"),
        ([tmp_path / "pool.jsonl", "--out", tmp_path / "full"], "full: has other files in it"),
        ([tmp_path / "apart.jsonl", "--out", tmp_path / "new"], "problem 'synthetic/0' has no ind"),
    ):
        assert convert([str(argument) for argument in arguments]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1, error
        assert not (tmp_path / "new").exists()
        # Nor is a file left open until Python's collector comes by.
        assert not [one for one in psutil.Process().open_files() if str(tmp_path) in one.path]
    assert pool_directory.MANIFEST not in {file.name for file in (tmp_path / "full").iterdir()}
