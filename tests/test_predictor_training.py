"""Training: what it learns, that it goes on bit for bit, and that devices do not change it."""

import csv
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

from eval import compare_priors, predict, replay, report
from optscale_jax import Prior, ScoreStats, TruncatedNormal, synthetic_pool
from optscale_jax.empirical_bayes import predictive, predictive_spread
from optscale_jax.predictor.errors import PredictorError
from optscale_jax.predictor.features import FeatureConfig, Recipe
from optscale_jax.predictor.head import HeadConfig
from optscale_jax.predictor.losses import LossConfig
from optscale_jax.predictor.predictor import FILES, Predictor
from optscale_jax.predictor.training import Points, SplitConfig, split, train
from tests.checkpoints import save_model
from tests.predictor_problems import CONFIG, problems
from train import labels as train_labels
from train import predictor as train_predictor

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
    for name, value in trained[0].params.items():
        np.testing.assert_array_equal(again.params[name], value, err_msg=name)


def start(*arguments: str, devices: int = 1) -> subprocess.Popen:
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-m", "tests.predictor_problems", *arguments],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-2000:]
    return json.loads(out.splitlines()[-1])


def test_eight_devices_have_the_loss_curve_of_one(trained):
    found = result(start(devices=8))
    assert found["devices"] == 8
    np.testing.assert_allclose(found["losses"], trained[1], atol=1e-5)


def test_two_processes_have_the_loss_curve_of_one(trained):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    both = [start(address, "2", str(index)) for index in range(2)]
    for process in both:
        found = result(process)
        assert found["devices"] == 2
        np.testing.assert_allclose(found["losses"], trained[1], atol=1e-5)


def test_attention_learns_from_tokens():
    config = dataclasses.replace(
        CONFIG,
        head=HeadConfig(pooling="attention", hidden=[16], dropout=[0.0], towers=2),
        loss=LossConfig(marginal=1.0, squared_error=0.0),
    )
    quality = train(*problems(160, tokens=True), config).quality
    assert quality["test"]["head"].nll < quality["test"]["pooled"].nll


def test_exported_predictor_comes_back(trained, tmp_path):
    head = CONFIG.head
    made = Predictor.of(trained[0], FeatureConfig(), RECIPE, head, {"seed": 0})
    made.save(tmp_path)
    again = Predictor.load(tmp_path)
    assert (again.recipe, again.head, again.features) == (RECIPE, head, FeatureConfig())
    assert again.points == trained[0].points
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


def test_damaged_predictors_are_refused(trained, tmp_path):
    with pytest.raises(PredictorError, match=r"no predictor\.json"):
        Predictor.load(tmp_path)
    Predictor.of(trained[0], FeatureConfig(), RECIPE, CONFIG.head, {}).save(tmp_path)
    weights, described = (tmp_path / name for name in FILES)
    text = described.read_text()
    described.write_text(text.replace('"version": 3', '"version": 9'))
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
    _, labels = problems(60)
    twice = dataclasses.replace(labels, texts=labels.texts[:30] * 2)
    parts = split(twice, SplitConfig(), 0)
    assert sorted(np.concatenate([parts.train, parts.test])) == list(range(60))
    assert set(parts.fold[parts.train]) == set(range(5))
    np.testing.assert_array_equal(parts.fold[:30], parts.fold[30:])
    assert set(parts.fold[parts.test]) == {-1}


def test_what_cannot_be_trained_on_is_refused(monkeypatch):
    features, labels = problems(60)
    with pytest.raises(PredictorError, match="1 of 8 problems for a fold"):
        train(features, labels.take(slice(8)), CONFIG)
    monkeypatch.setattr(jax, "devices", lambda: [jax.local_devices()[0]] * 64)
    with pytest.raises(PredictorError, match="54 problems to train on for 64 devices"):
        train(features, labels, CONFIG)
    monkeypatch.undo()
    features.rows[7][0, 0] = np.nan
    with pytest.raises(PredictorError, match="features of problem 'synthetic/7' are not finite"):
        train(features, labels, CONFIG)


# Commands -----------------------------------------------------------------------------------------


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """A predictor that the command trained, on texts whose numbers are the difficulty."""
    folder = tmp_path_factory.mktemp("command")
    model = save_model(folder / "model")
    pool = synthetic_pool(jax.random.key(1), num_problems=60, num_samples=16)
    pool.save(folder / "pool.npz")
    texts = [{"id": str(name), "problem": f"problem {name}"} for name in pool.problem_ids]
    (folder / "problems.jsonl").write_text("".join(json.dumps(t) + "\n" for t in texts))
    assert not train_labels.main(
        [
            *("--pool", str(folder / "pool.npz"), "--out", str(folder / "labels.jsonl")),
            *("--problems", str(folder / "problems.jsonl")),
        ]
    )
    arguments = [
        *("--labels", str(folder / "labels.jsonl"), "--cache", str(folder / "cache")),
        *("--features.model", str(model), "--out", str(folder / "out")),
        *("--training.head.hidden", "[8]", "--training.head.dropout", "[0]"),
        *("--training.epochs", "2", "--training.members", "1", "--training.batch_size", "20"),
    ]
    assert train_predictor.main(arguments) == 0
    return folder, arguments


def test_commands_lead_from_a_pool_to_priors(command):
    folder, _ = command
    out = folder / "priors.jsonl"
    common = [
        *("--checkpoint", str(folder / "out"), "--problems", str(folder / "problems.jsonl")),
        *("--cache", str(folder / "cache"), "--out", str(out)),
    ]
    assert predict.main(common) == 0
    records = lines_of(out)
    problems = lines_of(folder / "problems.jsonl")
    assert [r["problem_id"] for r in records] == [p["id"] for p in problems]
    for record, problem in zip(records, problems, strict=True):
        assert record["tokens"] == len(problem["problem"])  # bytes are the tokens
        assert record["mean_low"] < record["mean"] < record["mean_high"]
        law = TruncatedNormal(record["loc"], record["scale"])
        assert 0 < law.mean() < 1
    assert [m["epoch"] for m in lines_of(folder / "out" / "metrics.jsonl")] == [1, 2]
    assert list((folder / "out" / "tensorboard").iterdir())

    assert predict.main([*common, "--kind", "paper"]) == 0
    for paper, learned in zip(lines_of(out), records, strict=True):
        assert (paper["loc"], paper["scale"]) == (learned["mean"], learned["sd"])
        np.testing.assert_allclose([paper["loc_sd"], paper["scale_sd"]], 0.1)


def test_a_finished_training_is_not_done_again(command, capsys):
    folder, arguments = command
    weights = (folder / "out" / FILES[0]).read_bytes()
    assert train_predictor.main(arguments) == 0
    assert "going on after epoch 2" in capsys.readouterr().err
    assert (folder / "out" / FILES[0]).read_bytes() == weights
    assert len(lines_of(folder / "out" / "metrics.jsonl")) == 2


def test_replay_reads_priors_and_counts_their_tokens(command, tmp_path):
    folder, _ = command
    names = [record["id"] for record in lines_of(folder / "problems.jsonl")]
    record = {"loc": 0.8, "scale": 0.1, "loc_sd": 0.1, "scale_sd": 0.1, "tokens": 7}
    priors = tmp_path / "priors.jsonl"
    priors.write_text(
        "".join(json.dumps({"problem_id": name, **record}) + "\n" for name in reversed(names))
    )
    config = tmp_path / "config.yaml"
    policy = "{name: optscale, s_min: 0.9, alpha: 0.9, max_samples: 8, prior: {%s}}"
    numbers = "loc: 0.8, scale: 0.1"
    config.write_text(
        f"policy: {policy % f'file: {priors}'}\n"
        f"compare: [{policy % numbers}]\n"
        f"permutations: 1\nresamples: 1\npool: {folder / 'pool.npz'}\n"
    )
    config.write_text(config.read_text().replace("compare: [{", "compare: [{label: fixed, "))
    assert replay.main(["--config", str(config), "--out", str(tmp_path / "out")]) == 0
    with open(tmp_path / "out" / "per_problem.csv") as file:
        rows = list(csv.DictReader(file))
    own, fixed = rows[:60], rows[60:]
    for one, other in zip(own, fixed, strict=True):
        assert one["n_samples"] == other["n_samples"]
        assert int(one["tokens"]) == int(other["tokens"]) + 7

    priors.write_text(json.dumps({"problem_id": names[0], **record}) + "\n")
    assert replay.main(["--config", str(config), "--out", str(tmp_path / "other")]) == 2


def test_kinds_of_prior_are_compared_on_what_replay_finds(command, tmp_path):
    folder, _ = command
    arguments = [
        *("--checkpoint", str(folder / "out"), "--problems", str(folder / "problems.jsonl")),
        *("--pool", str(folder / "pool.npz"), "--cache", str(folder / "cache")),
        *("--n", "[4,8]", "--s_min", "[0.9]", "--alpha", "[0.9]", "--min_samples", "[3]"),
        *("--permutations", "2", "--resamples", "50", "--out", str(tmp_path / "out")),
    ]
    assert compare_priors.main(arguments) == 0
    with open(tmp_path / "out" / "comparison.csv") as file:
        rows = {(row["N"], row["prior"]): row for row in csv.DictReader(file)}
    kinds = {"OptScale⁰": None, "pooled prior": "pooled", "authors' widths": "paper"}
    kinds["OptScaleᵗ"] = "learned"
    others = ["law known", "best-of-N"]
    assert rows.keys() == {(n, prior) for n in "48" for prior in [*kinds, *others]}
    assert (tmp_path / "out" / "saving.png").stat().st_size > 0

    # With one setting there is nothing to choose, and the orders are the same.
    policies = []
    for label, kind in kinds.items():
        prior = "" if kind is None else f", prior: {{file: {tmp_path / 'out' / kind}.jsonl}}"
        policies.append(
            f'{{name: optscale, label: "{label}", s_min: 0.9, alpha: 0.9, max_samples: [4, 8], '
            f"min_samples: 3{prior}}}"
        )
    config = tmp_path / "config.yaml"
    config.write_text(
        f"policy: {policies[0]}\ncompare: [{', '.join(policies[1:])}]\n"
        f"permutations: 2\nresamples: 1\npool: {folder / 'pool.npz'}\n"
    )
    assert replay.main(["--config", str(config), "--out", str(tmp_path / "replay")]) == 0
    found: dict[tuple[str, str], list[int]] = {}
    with open(tmp_path / "replay" / "per_problem.csv") as file:
        for number, row in enumerate(csv.DictReader(file)):
            # Policies follow each other, two caps each, 2 orders x 60 problems.
            label = list(kinds)[number // 240]
            found.setdefault(("48"[number // 120 % 2], label), []).append(int(row["tokens"]))
    for key, tokens in found.items():
        assert float(rows[key]["cost"]) == pytest.approx(np.mean(tokens))
        base = np.mean(found[key[0], "OptScale⁰"])
        more = rows[key]["cost_against_optscale0"]
        assert (more == "") == (key[1] == "OptScale⁰")
        if more:
            assert float(more) == pytest.approx(np.mean(tokens) / base - 1, abs=1e-9)


def test_the_report_has_optscale_t_where_there_are_priors(command, tmp_path):
    folder, _ = command
    out = tmp_path / "priors.jsonl"
    checkpoint = ["--checkpoint", str(folder / "out"), "--cache", str(folder / "cache")]
    problems = ["--problems", str(folder / "problems.jsonl"), "--out", str(out)]
    assert predict.main([*checkpoint, *problems]) == 0
    config = tmp_path / "config.yaml"
    config.write_text(
        "policy: {name: optscale, label: OptScale⁰, s_min: [0.8, 0.9], alpha: 0.9, "
        "max_samples: 8}\n"
        "compare: [{name: best_of_n, label: best-of-N, n: 8}]\nbaseline: best-of-N\n"
    )
    arguments = ["--pools", f"[{folder / 'pool.npz'}]", "--comparison", str(config)]
    arguments += ["--permutations", "2", "--resamples", "20", "--out", str(tmp_path / "report")]
    assert report.main([*arguments, "--priors", str(out)]) == 0
    with open(tmp_path / "report" / "comparison.csv") as file:
        costs = {row["method"]: float(row["tokens"]) for row in csv.DictReader(file)}
    assert costs.keys() == {"OptScale⁰", "OptScaleᵗ", "best-of-N"}
    assert costs["OptScaleᵗ"] != costs["OptScale⁰"]

    config.write_text(config.read_text().replace("name: optscale,", "name: first_hit,", 1))
    config.write_text(config.read_text().replace(" alpha: 0.9,", "", 1))
    assert report.main([*arguments, "--priors", str(out)]) == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--training.epochs", "3"], "holds a run with other training (epochs is 2 there, 3 here)"),
        (["--features.layers", "[1]"], "holds a run with other features (layers is"),
        (["--labels", "no.jsonl"], "no.jsonl"),
        (["--problems", "no.jsonl"], "no such file"),
        (["--training.split.folds", "50"], "problems for a fold"),
        (["--training.members", "6"], "members is 6; it must be from 1 to split.folds, 5"),
        (["--training.head.hidden", "[8,8]"], "head.dropout has 1 numbers"),
        (["--distributed.processes", "2"], "distributed.coordinator is not given"),
    ],
)
def test_training_says_in_one_line_what_is_wrong(command, capsys, change, says):
    _, arguments = command
    assert train_predictor.main([*arguments, *change]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.strip().splitlines()) == 1


def test_a_predictor_of_another_model_is_refused(command, tmp_path, capsys):
    folder, _ = command
    other = save_model(tmp_path / "model", seed=3)
    arguments = ["--checkpoint", str(folder / "out"), "--problems", str(folder / "problems.jsonl")]
    out = tmp_path / "priors.jsonl"
    assert predict.main([*arguments, "--model", str(other), "--out", str(out)]) == 2
    assert "trained on other features: fingerprint" in capsys.readouterr().err
    assert not out.exists()
