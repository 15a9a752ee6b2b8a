"""Training: what it learns, that it goes on bit for bit, and that devices do not change it."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from optscale_jax import Prior, ScoreStats
from optscale_jax.empirical_bayes import predictive, predictive_spread
from optscale_jax.errors import PredictorError
from optscale_jax.predictor.calibration import Offsets, Points
from optscale_jax.predictor.data import SplitConfig, split
from optscale_jax.predictor.features import FeatureConfig, Recipe
from optscale_jax.predictor.head import HeadConfig
from optscale_jax.predictor.losses import LossConfig
from optscale_jax.predictor.predictor import FILES, Predictor
from optscale_jax.predictor.training import train
from tests import plainly
from tests.predictor_problems import CONFIG, problems

ROOT = Path(__file__).resolve().parents[1]
RECIPE = Recipe("model", "fingerprint", (1,), "mean", 8, "float32")


@pytest.fixture(scope="module")
def trained():
    losses = []
    fitted = train(*problems(), CONFIG, log=lambda numbers: losses.append(numbers["loss"]))
    return fitted, losses


def test_head_beats_the_pooled_prior_on_problems_not_trained_on(trained):
    fitted, losses = trained
    assert losses[-1] < losses[0]
    for name in ("held_out", "test"):
        head, pooled = fitted.quality[name]["head"], fitted.quality[name]["pooled"]
        assert head.nll < pooled.nll - 0.2
        assert head.mean_error < 0.6 * pooled.mean_error
        assert head.mean_rank > 0.6
        assert np.isnan(pooled.mean_rank)
    # Calibrated on these problems themselves, to the nearest of them.
    held_out = fitted.quality["held_out"]["head"]
    assert abs(held_out.coverage - 0.8) <= 2 / held_out.problems


class Crash(Exception):
    pass


def test_training_that_was_cut_off_ends_with_the_same_weights(trained, tmp_path):
    epoch = 2

    def crash(numbers):
        if numbers["epoch"] == epoch:
            raise Crash

    with pytest.raises(Crash):
        train(*problems(), CONFIG, checkpoints=tmp_path / "checkpoints", log=crash)
    resumed, losses = [], []
    again = train(
        *problems(),
        CONFIG,
        checkpoints=tmp_path / "checkpoints",
        log=lambda numbers: losses.append(numbers["loss"]),
        resumed=resumed.append,
    )
    assert resumed == [epoch]
    assert losses == trained[1][epoch:]
    assert again.epochs == trained[0].epochs
    assert again.offsets == trained[0].offsets
    for name, value in trained[0].params.items():
        np.testing.assert_array_equal(again.params[name], value, err_msg=name)


def test_eight_devices_of_two_processes_have_the_loss_curve_of_one(trained):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count=4 {plainly.FLAGS}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.predictor_problems", address, "2", str(index)],
            cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    found = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=1200)
            assert process.returncode == 0, err[-2000:]
            found.append(json.loads(out.splitlines()[-1]))
    finally:
        for process in processes:  # one that has failed leaves the other waiting
            with process:
                process.kill()
    for one in found:
        assert one["devices"] == 8
        np.testing.assert_allclose(one["losses"], trained[1], atol=1e-5)
    assert found[0] == found[1]


def test_attention_learns_from_tokens():
    config = dataclasses.replace(
        CONFIG,
        head=HeadConfig(pooling="attention", hidden=[16], dropout=[0.0], towers=2),
        loss=LossConfig(marginal=1.0, squared_error=0.0),
    )
    quality = train(*problems(tokens=True), config).quality
    assert quality["test"]["head"].nll < quality["test"]["pooled"].nll


def test_exported_predictor_comes_back(trained, tmp_path):
    head = CONFIG.head
    made = Predictor.of(trained[0], FeatureConfig(), RECIPE, {"seed": 0})
    made.save(tmp_path)
    again = Predictor.load(tmp_path)
    assert (again.recipe, again.head, again.features) == (RECIPE, head, FeatureConfig())
    assert (again.points, again.offsets) == (trained[0].points, trained[0].offsets)
    assert any(again.offsets)
    assert again.record["quality"]["test"]["pooled"]["mean_rank"] is None
    for name, value in made.params.items():
        np.testing.assert_array_equal(again.params[name], value)
    pooled = again.predict(["any", "text"], kind="pooled")
    np.testing.assert_allclose(pooled.prior.loc, trained[0].reference.loc)
    assert pooled.tokens.tolist() == [0, 0]


def test_point_predictions_are_put_right_by_least_squares():
    random = np.random.default_rng(0)
    count = 2000
    loc, scale = random.uniform(0.4, 1.2, count), random.uniform(0.05, 0.3, count)
    widths = random.uniform(0.02, 0.1, count), random.uniform(0.005, 0.03, count)
    prior = jax.tree.map(np.float32, Prior(loc, scale, *widths))
    columns = np.stack([*predictive(prior), *predictive_spread(prior)], axis=-1)
    # Means that the priors are too bold about; sds that they expect too small, less so where they
    # are sure of the mean.
    mean = 0.3 + 0.5 * columns[:, 0] + 0.002 * random.normal(size=count)
    sd = 0.01 + columns @ [0.02, 0.9, 0.3, -0.2] + 0.002 * random.normal(size=count)
    points = Points.fit(prior, ScoreStats(np.full(count, 64.0), mean, 64 * sd**2))
    for index, own, used in ((0, mean, columns[:, :1]), (1, sd, columns)):
        # By another way; the ridge is worth one problem in two thousand.
        design = np.column_stack([np.ones(count), used])
        best = design @ np.linalg.lstsq(design, own)[0]
        np.testing.assert_allclose(points(prior)[index], best, atol=3e-4)
        before = predictive(prior)[index]
        assert np.mean((best - own) ** 2) < 0.1 * np.mean((before - own) ** 2)
    # Without regressions, what the priors expect.
    np.testing.assert_allclose(Points()(prior), predictive(prior), atol=1e-6)
    # Priors that are all the same predict the average.
    same = jax.tree.map(lambda v: np.full(count, v[0]), prior)
    flat_mean, flat_sd = Points.fit(same, ScoreStats(np.full(count, 64.0), mean, 64 * sd**2))(same)
    np.testing.assert_allclose(flat_mean, mean.mean(), atol=1e-5)
    np.testing.assert_allclose(flat_sd, sd.mean(), atol=1e-5)
    # Never outside what scores in [0, 1] can have.
    wild = Points((-3.0, 6.0), (-3.0, 0.0, 30.0, 0.0, 0.0))(prior)
    for values, most in zip(wild, (1.0, 0.5), strict=True):
        assert (values.min(), values.max()) == (0.0, most)


def test_a_predictor_of_the_version_before_is_read(trained, tmp_path, monkeypatch):
    """Its offsets are in the biases of the heads' outputs."""
    fitted = trained[0]
    made = Predictor.of(fitted, FeatureConfig(), RECIPE)
    bias = fitted.params["towers.0.output.bias"] + np.array(fitted.offsets, np.float32)
    old = {**fitted.params, "towers.0.output.bias": bias}
    dataclasses.replace(made, params=old).save(tmp_path)
    described = json.loads((tmp_path / FILES[1]).read_text())
    del described["offsets"], described["head"]["name"]
    (tmp_path / FILES[1]).write_text(json.dumps({**described, "version": 3}))
    again = Predictor.load(tmp_path)
    assert (again.offsets, again.head) == (Offsets(), CONFIG.head)
    features, labels = problems()
    monkeypatch.setattr(
        "optscale_jax.predictor.predictor.extract", lambda *_, **__: (features, RECIPE)
    )
    texts = [text for text in labels.texts if text]
    one, other = made.predict(texts), again.predict(texts)
    for name in ("loc", "scale", "loc_sd", "scale_sd"):
        # The biases are added in another order.
        expected = getattr(one.prior, name)
        np.testing.assert_allclose(getattr(other.prior, name), expected, rtol=2e-5)


def test_damaged_predictors_are_refused(trained, tmp_path):
    with pytest.raises(PredictorError, match=r"no predictor\.json"):
        Predictor.load(tmp_path)
    Predictor.of(trained[0], FeatureConfig(), RECIPE).save(tmp_path)
    weights, described = (tmp_path / name for name in FILES)
    text = described.read_text()
    described.write_text(text.replace('"version": 4', '"version": 9'))
    with pytest.raises(PredictorError, match="version 9"):
        Predictor.load(tmp_path)
    other = json.loads(text)
    other["head"]["hidden"] = [17]
    described.write_text(json.dumps(other))
    with pytest.raises(PredictorError, match="not those of the head"):
        Predictor.load(tmp_path)
    described.write_text(text)
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(PredictorError, match="damaged"):
        Predictor.load(tmp_path)


def test_problems_with_one_text_stay_together():
    labels = problems()[1].take(slice(60))
    twice = dataclasses.replace(labels, texts=labels.texts[:30] * 2)
    parts = split(twice, SplitConfig(), 0)
    assert sorted(np.concatenate([parts.train, parts.test])) == list(range(60))
    assert set(parts.fold[parts.train]) == set(range(5))
    np.testing.assert_array_equal(parts.fold[:30], parts.fold[30:])
    assert set(parts.fold[parts.test]) == {-1}


def test_what_cannot_be_trained_on_is_refused(monkeypatch):
    features, labels = problems()
    with pytest.raises(PredictorError, match="1 of 6 problems for a fold"):
        train(features, labels.take(slice(6)), CONFIG)
    monkeypatch.setattr(jax, "devices", lambda: [jax.local_devices()[0]] * 256)
    with pytest.raises(PredictorError, match="160 problems to train on for 256 devices"):
        train(features, labels, CONFIG)
    monkeypatch.undo()
    features.rows[7][0, 0] = np.nan
    with pytest.raises(PredictorError, match="features of problem 'synthetic/7' are not finite"):
        train(features, labels, CONFIG)
