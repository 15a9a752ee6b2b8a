"""The baselines of the bench are right, so that its ratios compare equals."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from eval.bench.core import (
    grid_stepping,
    main,
    objective,
    scipy_fit,
    scipy_objective,
    seconds_a_run,
)
from eval.bench.live import BenchLiveConfig, models
from eval.bench.rows import Limit, Report
from optscale_jax import TruncatedNormal, policies, required_samples, synthetic_pool
from optscale_jax.errors import InputError
from optscale_jax.tiny import verifier_path

SCORES = np.array([0.62, 0.71, 0.88, 0.54, 0.93, 0.77])
PRIOR = (0.7, 0.15, 0.1, 0.1)


@pytest.mark.parametrize("prior", [None, PRIOR])
def test_the_two_objectives_differ_by_a_constant(prior):
    points = np.array([(0.7, 0.2), (0.9, 0.1), (1.1, 0.3)])
    beliefs = None if prior is None else np.broadcast_to(prior, (3, 4))
    ours = objective(points, np.broadcast_to(SCORES, (3, 6)), beliefs)
    gaps = [scipy_objective(p, SCORES, prior) for p in points] - ours
    # 6 / 2 log(2 pi) of the density, and as much of the mass: nothing is left of either.
    np.testing.assert_allclose(gaps, gaps[0], atol=1e-9)


@pytest.mark.parametrize("prior", [None, PRIOR])
def test_the_baseline_descends(prior):
    fit = scipy_fit(SCORES, prior)
    start = (SCORES.mean(), SCORES.std()) if prior is None else prior[:2]
    assert fit.fun < scipy_objective(start, SCORES, prior)


@pytest.mark.parametrize(("loc", "scale"), [(0.6, 0.1), (0.3, 0.4), (1.2, 0.2)])
def test_grid_stepping_brackets_the_bound(loc, scale):
    with jax.enable_x64(True):
        law = TruncatedNormal(loc, scale)
        # The grid rounds s_min by up to one of its 999 steps, one way or the other.
        step = 1 / 999
        low, high = (
            int(required_samples(law, s, 0.95, 1024)) for s in (0.9 - 2 * step, 0.9 + 2 * step)
        )
    assert low <= grid_stepping(loc, scale, 0.9, 0.95) <= high


def test_grid_stepping_stops_at_its_cap():
    assert grid_stepping(0.2, 0.01, 0.99, 0.95, cap=7) == 7


def test_the_report_says_what_was_missed():
    report = Report()
    report.add("speed", "3 x", ratio=Limit(3, ">=", 5000, " x"), other=7)
    assert not report.met
    assert report.rows[0]["ratio"] == 3
    assert report.table("a bench").rows == [("speed", "3 x", ">= 5,000 x", "MISSED")]
    report.add("time", "1 s", first=Limit(1, "<", 10, " s"), peak=Limit(2, "<=", 2, " GB"))
    assert report.table("a bench").rows[1] == ("time", "1 s", "< 10 s and <= 2 GB", "ok")


def test_an_output_that_cannot_be_made_is_refused_before_anything_is_measured(tmp_path, capsys):
    file = tmp_path / "taken"
    file.write_text("")
    assert main(["--out", str(file)]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: --out: {file} is a file; give a folder\n"
    assert captured.out == ""


@pytest.mark.parametrize(
    "policy",
    [
        policies.optscale(0.9, 0.9, 4),
        policies.difficulty_adaptive_self_consistency(0.95, 4, window=2, judge_window=2),
    ],
    ids=["optscale", "couples problems"],
)
def test_the_plain_loop_runs_a_policy_over_problems(policy):
    pool = synthetic_pool(jax.random.key(0), num_problems=4, num_samples=8)
    assert seconds_a_run(policy, pool, 2, None) > 0


def test_a_shape_is_a_checkpoint_of_its_sizes_without_weights():
    with models(BenchLiveConfig(shape="qwen2.5-7b")) as (sampling, scoring):
        folder = Path(sampling.model)
        config = json.loads((folder / "config.json").read_text())
        assert (config["hidden_size"], config["num_hidden_layers"]) == (3584, 28)
        assert config["vocab_size"] == 266
        assert (folder / "tokenizer.json").exists()
        assert not list(folder.glob("*.safetensors"))
        assert sampling.engine.extra == {"load_format": "dummy"}
        assert scoring.model == str(verifier_path())
        assert scoring.engine.extra == {}
    assert not folder.exists()


def test_an_unknown_shape_is_refused():
    with pytest.raises(InputError, match="prm_shape is 'big'; it must be one of tiny, qwen"):
        BenchLiveConfig(prm_shape="big")
