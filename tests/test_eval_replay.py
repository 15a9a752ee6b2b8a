"""The replay command: what it writes, what it shows, and how it refuses."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from eval import replay as command
from optscale_jax import Pool, SyntheticConfig, cli, policies, replay, synthetic_pool
from optscale_jax.errors import InputError
from optscale_jax.replay import permutations
from optscale_jax.study import registry as grid
from optscale_jax.study.config import ReplayConfig

ROOT = Path(__file__).resolve().parents[1]
PROBLEMS, SAMPLES, ORDERS = 12, 8, 3
S_MIN, ALPHA = (0.85, 0.95), (0.9, 0.95)

GRID = {
    "policy": {
        "name": "optscale",
        "label": "OptScale⁰",
        "s_min": list(S_MIN),
        "alpha": list(ALPHA),
        "max_samples": SAMPLES,
    },
    "compare": [
        {"name": "first_hit", "s_min": list(S_MIN), "max_samples": SAMPLES},
        {"name": "best_of_n", "n": [2, SAMPLES]},
    ],
    "baseline": "best_of_n",
    "permutations": ORDERS,
    "resamples": 200,
}
# Compiles in no time, for tests of everything but OptScale.
SIMPLE = {
    "policy": {"name": "first_hit", "s_min": 0.9, "max_samples": SAMPLES},
    "compare": [{"name": "best_of_n", "n": SAMPLES}],
    "baseline": "best_of_n",
    "permutations": 2,
    "resamples": 50,
}


def tiny_pool() -> Pool:
    config = SyntheticConfig(score_logit=2.0, answerless=0.1)
    return synthetic_pool(
        jax.random.key(3), num_problems=PROBLEMS, num_samples=SAMPLES, config=config
    )


def arrays(pool: Pool) -> dict[str, np.ndarray]:
    names = ("scores", "correct", "tokens", "answers", "gold", "problem_ids")
    return {name: getattr(pool, name) for name in names}


@pytest.fixture(scope="module")
def pool() -> Pool:
    return tiny_pool()


@pytest.fixture
def pool_path(tmp_path, pool) -> Path:
    pool.save(tmp_path / "pool.npz")
    return tmp_path / "pool.npz"


def write_config(folder: Path, config: dict, name: str = "config.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def numbers(table: list[dict[str, str]], column: str) -> np.ndarray:
    return np.array([float(row[column]) for row in table])


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, pool) -> Path:
    """The outputs of a run of the grid."""
    folder = tmp_path_factory.mktemp("run")
    pool.save(folder / "pool.npz")
    config = write_config(folder, GRID)
    arguments = ["--config", config, "--pool", folder / "pool.npz", "--out", folder / "out"]
    assert command.main([str(argument) for argument in arguments]) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def recomputed(pool) -> dict:
    """The same settings, replayed by the library, in the command's order."""
    options = {"key": jax.random.key(0), "num_permutations": ORDERS}
    s_min, alpha = (np.ravel(v) for v in np.meshgrid(S_MIN, ALPHA, indexing="ij"))
    rules = {
        "optscale": [policies.optscale(s, a, SAMPLES) for s, a in zip(s_min, alpha, strict=True)],
        "first_hit": [policies.first_hit(s, SAMPLES) for s in S_MIN],
        "best_of_n": [policies.best_of_n(n) for n in (2, SAMPLES)],
    }
    return {name: replay(pool, policies.stack(each), **options) for name, each in rules.items()}


# What is written ----------------------------------------------------------------------------------


def test_all_files_are_there_and_nothing_else(whole_run):
    assert sorted(path.name for path in whole_run.iterdir()) == sorted(command.OUTPUTS)
    assert [path.name for path in whole_run.parent.glob(".*")] == []


@pytest.mark.parametrize("name", ["optscale", "first_hit", "best_of_n"])
def test_per_problem_is_what_the_library_says(whole_run, recomputed, pool, name):
    found = [row for row in rows(whole_run / "per_problem.csv") if row["policy"] == name]
    result = recomputed[name]
    assert numbers(found, "n_samples").tolist() == result.num_samples.ravel().tolist()
    assert numbers(found, "tokens").tolist() == result.tokens.ravel().tolist()
    assert numbers(found, "correct").tolist() == result.correct.ravel().tolist()
    selected = [int(row["selected_index"] or -1) for row in found]
    assert selected == result.selected_index.ravel().tolist()
    settings = result.num_samples.shape[0]
    assert [row["problem_id"] for row in found] == pool.problem_ids.tolist() * settings * ORDERS
    each = np.repeat(np.arange(1, ORDERS + 1), PROBLEMS)
    assert numbers(found, "permutation").tolist() == np.tile(each, settings).tolist()
    reasons = [policies.StopReason(reason).name.lower() for reason in result.stop_reason.ravel()]
    assert [row["stop_reason"] for row in found] == reasons


def test_first_hit_is_what_a_plain_loop_says(whole_run, pool):
    found = iter(r for r in rows(whole_run / "per_problem.csv") if r["policy"] == "first_hit")
    orders = permutations(pool, jax.random.key(0), ORDERS)
    for s_min in np.float32(S_MIN):
        for order in orders:
            for problem in range(PROBLEMS):
                best, drawn = None, 0
                for column in order[problem]:
                    drawn += 1
                    score = pool.scores[problem, column]
                    if pool.eligible[problem, column] and (
                        best is None or score > pool.scores[problem, best]
                    ):
                        best = column
                    if best is not None and pool.scores[problem, best] >= s_min:
                        break
                row = next(found)
                assert int(row["n_samples"]) == drawn
                assert int(row["selected_index"]) == best
                assert int(row["tokens"]) == pool.tokens[problem, order[problem, :drawn]].sum()


def test_results_are_means_over_problems(whole_run, recomputed):
    table = rows(whole_run / "results.csv")
    for name, result in recomputed.items():
        found = [row for row in table if row["policy"] == name]
        for column, values in (
            ("accuracy", result.correct),
            ("mean_samples", result.num_samples),
            ("mean_tokens", result.tokens),
            ("mean_score", result.score.astype(float)),
        ):
            # A problem whose completions all lack an answer returns none, and has no score.
            mean = np.nanmean(values, axis=-1).ravel()
            np.testing.assert_allclose(numbers(found, column), mean, rtol=1e-12)
    first = table[0]
    assert (first["s_min"], first["alpha"]) == ("0.85", "0.9")
    assert (first["max_samples"], first["min_samples"], first["n"]) == ("8", "3", "")
    assert first["setting"] == "s_min=0.85 alpha=0.9 max_samples=8 min_samples=3"
    assert first["label"] == "OptScale⁰"


def test_summary_has_intervals_and_differences(whole_run, recomputed):
    table = rows(whole_run / "summary.csv")
    baseline = recomputed["best_of_n"].correct[1].mean()
    for name, result in recomputed.items():
        found = [row for row in table if row["policy"] == name]
        mean = result.correct.mean((1, 2))
        np.testing.assert_allclose(numbers(found, "accuracy"), mean)
        np.testing.assert_allclose(
            numbers(found, "accuracy_difference"), mean - baseline, atol=1e-12
        )
        assert np.all(numbers(found, "accuracy_low") <= mean)
        assert np.all(numbers(found, "accuracy_high") >= mean)
    assert {row["baseline_setting"] for row in table} == {f"n={SAMPLES}"}
    deepest = table[-1]
    assert float(deepest["accuracy_difference_low"]) == 0
    assert float(deepest["accuracy_difference_high"]) == 0


def test_policy_and_setting_tell_all_rows_apart(whole_run):
    table = rows(whole_run / "results.csv")
    keys = {(row["policy"], row["setting"], row["permutation"]) for row in table}
    assert len(keys) == len(table) == (4 + 2 + 2) * ORDERS


def test_figure_and_versions(whole_run, pool):
    assert (whole_run / "accuracy_vs_tokens.png").read_bytes().startswith(b"\x89PNG")
    assert (whole_run / "accuracy_vs_tokens.pdf").read_bytes().startswith(b"%PDF")
    versions = json.loads((whole_run / "versions.json").read_text())
    assert versions["packages"]["jax"] == jax.__version__
    assert versions["pool"]["problems"] == pool.num_problems
    assert len(versions["pool"]["sha256"]) == 64


def test_the_written_config_runs_again_to_the_same_bytes(whole_run, capsys, tmp_path):
    again = ["--config", str(whole_run / "config.yaml"), "--out", str(tmp_path / "again")]
    assert command.main(again) == 0
    for name in set(command.OUTPUTS) - {"config.yaml"}:
        assert (tmp_path / "again" / name).read_bytes() == (whole_run / name).read_bytes(), name
    # The terminal shows the stated alpha, and says where the rest is.
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("s_min=0.85") == 2
    assert "alpha=0.95 max_samples=8 min_samples=3; 2 more settings in summary.csv" in shown
    assert "alpha=0.9 " not in shown


def run_simple(tmp_path, pool_path, *arguments, config=SIMPLE) -> Path:
    path = write_config(tmp_path, config)
    out = tmp_path / "out"
    given = ["--config", str(path), "--pool", str(pool_path), "--out", str(out), *arguments]
    assert command.main(given) == 0
    return out


def test_no_permutations_replays_the_stored_order(tmp_path, pool_path, pool):
    out = run_simple(tmp_path, pool_path, "--permutations", "0")
    found = [row for row in rows(out / "per_problem.csv") if row["policy"] == "first_hit"]
    hits = (pool.scores >= np.float32(0.9)) & pool.eligible
    first = np.where(hits.any(1), hits.argmax(1) + 1, SAMPLES)
    assert numbers(found, "n_samples").tolist() == first.tolist()
    assert {row["permutation"] for row in found} == {"0"}
    assert len(rows(out / "results.csv")) == 2


def test_without_correctness_accuracy_is_left_out(tmp_path, pool, capsys):
    Pool.from_arrays(scores=pool.scores, tokens=pool.tokens).save(tmp_path / "scores.npz")
    out = run_simple(tmp_path, tmp_path / "scores.npz")
    shown = capsys.readouterr().out
    assert "accuracy" not in shown
    assert "score" in shown
    assert {row["correct"] for row in rows(out / "per_problem.csv")} == {""}
    for row in rows(out / "results.csv"):
        assert row["accuracy"] == ""
        assert float(row["mean_score"]) > 0.5
    assert rows(out / "summary.csv")[0]["accuracy_low"] == ""
    assert float(rows(out / "summary.csv")[0]["score_difference"]) <= 0


def test_unknown_tokens_are_left_out(tmp_path, pool, capsys):
    given = arrays(pool) | {"tokens": np.full((PROBLEMS, SAMPLES), -1)}
    Pool.from_arrays(**given).save(tmp_path / "unknown.npz")
    out = run_simple(tmp_path, tmp_path / "unknown.npz")
    shown = " ".join(capsys.readouterr().out.split("results:")[0].split())
    assert "tokens" not in shown
    assert "samples saved" in shown
    assert {row["tokens"] for row in rows(out / "per_problem.csv")} == {""}
    assert {row["mean_tokens"] for row in rows(out / "results.csv")} == {""}


def test_a_later_run_replaces_its_own_files_and_leaves_others(tmp_path, pool_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "results.csv").write_text("old")
    (out / "per_problem.csv").write_text("old")
    run_simple(tmp_path, pool_path, "--per_problem", "false")
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "results.csv").read_text() != "old"
    assert not (out / "per_problem.csv").exists()


# Configuration ------------------------------------------------------------------------------------


def parse(*arguments) -> ReplayConfig:
    given = [str(argument) for argument in arguments]
    return cli.parse(ReplayConfig, given, prog="replay", description="")


def test_overrides_win_wherever_they_stand(tmp_path):
    config = write_config(tmp_path, GRID)
    assert parse("--config", config, "--policy.alpha", "0.9").policy.alpha == 0.9
    assert parse("--policy.alpha", "0.9", "--config", config).policy.alpha == 0.9
    several = parse("--config", config, "--policy.alpha", "[0.9,0.95]")
    assert several.policy.alpha == [0.9, 0.95]
    prior = parse("--config", config, "--policy.prior.loc", "0.8", "--policy.prior.scale", "0.1")
    assert prior.policy.prior == grid.PriorConfig(0.8, 0.1)


def test_print_config_round_trips(tmp_path, capsys):
    config = write_config(tmp_path, GRID)
    given = ["--config", str(config), "--policy.alpha", "0.9", "--synthetic.score_scale", "0.2"]
    with pytest.raises(SystemExit) as stop:
        command.main([*given, "--print_config"])
    assert stop.value.code == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert parse("--config", printed) == parse(*given)


def test_resolved_config_round_trips(tmp_path):
    config = parse("--config", write_config(tmp_path, GRID))
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(cli.to_yaml(config))
    assert parse("--config", resolved) == config


def test_help_explains_every_field(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "Probability of reaching it, inside (0, 1).",
        "Random orders of the completions to replay",
        "Mean of the prior on the law's loc, in units of score.",
        "Scores to look at before the first decision",
        "Median length of a right completion at average difficulty",
    ):
        assert words in text


def test_shipped_configs_parse_and_expand():
    files = sorted((ROOT / "configs" / "replay").glob("*.yaml"))
    assert files
    for file in files:
        assert file.read_text().startswith("# ")
        config = parse("--config", file)
        for policy in [config.policy, *config.compare]:
            grid.expand(policy, "policy")


def test_what_a_pool_cannot_serve_is_left_out_on_request(tmp_path, pool, capsys):
    given = arrays(pool) | {"scores": np.full(pool.scores.shape, np.nan)}
    np.savez(tmp_path / "votes.npz", **given)
    config = SIMPLE | {
        "compare": [
            {"name": "self_consistency", "label": "SC", "n": [4, 8, 16]},
            {"name": "mr_thinking", "rounds": 4},
        ],
        "baseline": None,
    }
    arguments = ["--config", write_config(tmp_path, config), "--pool", tmp_path / "votes.npz"]
    arguments += ["--out", tmp_path / "out"]
    assert command.main(list(map(str, arguments))) == 2
    capsys.readouterr()
    assert command.main([*map(str, arguments), "--leave_out", "true"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "first_hit is left out: it has no verifier scores" in text
    assert f"N = 16 is compared at N = {SAMPLES}: problem " in text
    assert "mr_thinking is left out" in text
    written = rows(tmp_path / "out" / "summary.csv")
    assert [(row["policy"], row["n"]) for row in written] == [
        ("self_consistency", "4"),
        ("self_consistency", "8"),
    ]


def test_any_format_is_read(tmp_path, pool, pool_path):
    from optscale_jax.readers import write_jsonl

    write_jsonl(pool, tmp_path / "pool.jsonl")
    config = write_config(tmp_path, SIMPLE)
    for path in (pool_path, tmp_path / "pool.jsonl"):
        out = tmp_path / path.suffix[1:]
        arguments = ["--config", config, "--pool", path, "--out", out]
        assert command.main(list(map(str, arguments))) == 0
    assert (tmp_path / "npz" / "results.csv").read_bytes() == (
        tmp_path / "jsonl" / "results.csv"
    ).read_bytes()


# Bad input ----------------------------------------------------------------------------------------


def refuse(tmp_path, capsys, arguments, *words) -> None:
    out = tmp_path / "refused"
    assert command.main([*map(str, arguments), "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("error: ")
    for word in words:
        assert str(word) in captured.err, captured.err
    assert not out.exists()
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scores": np.full((2, 2), 0.5)}, ["correct", "shape"]),
        ({"scores": (0, 1, np.nan)}, ["scores", "NaN"]),
        ({"scores": (0, 1, np.inf)}, ["scores"]),
        ({"scores": (2, 3, 1.5)}, ["scores", "1.5"]),
        ({"scores": (2, 3, -0.5)}, ["scores", "-0.5"]),
        ("empty", ["pool.npz"]),
        ("not a pool", ["pool.npz", ".npz"]),
        ("no verifier", ["verifier"]),
    ],
    ids=str,
)
def test_pools_that_cannot_be_used(tmp_path, capsys, pool, changes, words):
    path, given = tmp_path / "pool.npz", arrays(pool)
    if changes == "empty":
        given = {"scores": np.zeros((0, SAMPLES), np.float32)}
    elif changes == "no verifier":
        given["scores"] = np.full((PROBLEMS, SAMPLES), np.nan)
    elif isinstance(changes, dict):
        for name, change in changes.items():
            if isinstance(change, tuple):
                given[name] = given[name].copy()
                given[name][change[:2]] = change[2]
            else:
                given[name] = change
    np.savez(path, **given)
    if changes == "not a pool":
        path.write_text("hello")
    config = write_config(tmp_path, SIMPLE)
    refuse(tmp_path, capsys, ["--config", config, "--pool", path], path, *words)


def test_missing_pool(tmp_path, capsys):
    config = write_config(tmp_path, SIMPLE)
    missing = tmp_path / "none.npz"
    refuse(tmp_path, capsys, ["--config", config, "--pool", missing], missing, "no such file")
    refuse(tmp_path, capsys, ["--config", config], "pool is not given")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("policy: {name: first_hit, s_mim: 0.9}", [":1: policy.s_mim", "did you mean s_min"]),
        ("policy: {name: best_of_n}\n\nfoo: 1", [":3: foo: no such key"]),
        ("policy: {name: a}\ncompare:\n- {name: b}\n- {bar: 3}", [":4: compare[1].bar"]),
        ("policy: {name: a}\nsynthetic: {score_skale: 3}", [":2: synthetic.score_skale"]),
        ("policy: {name: a, prior: {lok: 3}}", [":1: policy.prior.lok"]),
        ("policy: {name: a}\npolicy: {name: b}", [":2: policy: given twice"]),
        ("policy: {name: a, n: [1\nfoo: b", [":2: not valid YAML"]),
        ("policy: {name: a, s_min: high}", [":1: policy.s_min is 'high'", "a number"]),
        ("policy: {name: a, n: 3.5}", [":1: policy.n is 3.5", "an integer"]),
        ("policy: {name: a}\ncompare: [{name: a, n: x}]", [":2: compare[0].n is 'x'"]),
        ("policy: {name: a, decide: never}", ["policy.decide is 'never'", "'once'"]),
        ("policy: best_of_n", [":1: policy must be a mapping"]),
        ("compare: 3\npolicy: {name: a}", [":1: compare is 3", "a list"]),
        ("- 1\n- 2", [":1: the configuration must be a mapping"]),
        ("", ["empty"]),
    ],
)
def test_configs_that_cannot_be_read(tmp_path, capsys, text, words):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    refuse(tmp_path, capsys, ["--config", path], path, *words)


def test_config_that_is_no_text(tmp_path, capsys):
    (tmp_path / "bad.yaml").write_bytes(bytes(range(128, 256)))
    refuse(tmp_path, capsys, ["--config", tmp_path / "bad.yaml"], "bad.yaml", "UTF-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policy.s_min", "1.5"], ["policy", "s_min", "1.5"]),
        (["--policy.s_min", "high"], ["policy.s_min is 'high'", "a number"]),
        (["--policy.s_min", "[]"], ["policy.s_min", "empty list"]),
        (["--policy.s_min", "[0.9,0.9]"], ["policy.s_min", "twice"]),
        (["--policy.max_samples", "0"], ["policy", "max_samples"]),
        (["--policy.alpha", "0.9"], ["policy.alpha: first_hit does not take it"]),
        (["--policy.name", "worst_of_n"], ["policy.name", "worst_of_n", "best_of_n"]),
        (["--policy.name", "optscale"], ["policy.alpha: optscale needs it"]),
        (
            ["--policy.name", "optscale", "--policy.alpha", "1.0"],
            ["policy", "alpha", "(0, 1)"],
        ),
        (
            ["--policy.name", "optscale", "--policy.alpha", "0.9", "--policy.min_samples", "9"],
            ["policy", "min_samples", "9"],
        ),
        (
            [
                *["--policy.name", "optscale", "--policy.alpha", "0.9"],
                *["--policy.prior.loc", "0.8", "--policy.prior.scale", "0"],
            ],
            ["policy: prior.scale is 0.0", "above 0"],
        ),
        (["--policy.alfa", "0.9"], ["--policy.alfa"]),
        (["--synthetic.score_scale", "0"], ["score_scale is 0.0", "above 0"]),
        (["--permutations", "-1"], ["permutations is -1"]),
        (["--level", "1.0"], ["level is 1.0"]),
        (["--baseline", "nobody"], ["baseline is 'nobody'", "best_of_n"]),
        (["--policy.label", "best_of_n"], ["label", "best_of_n"]),
        (["--show.over", "n"], ["show.over is 'n'"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "No such file"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_arguments_that_cannot_be_used(tmp_path, capsys, pool_path, arguments, words):
    config = write_config(tmp_path, SIMPLE)
    given = ["--config", config, "--pool", pool_path, *arguments]
    refuse(tmp_path, capsys, given, *words)


def test_ambiguous_baseline(tmp_path, capsys, pool_path):
    config = write_config(tmp_path, GRID | {"baseline": "OptScale⁰"})
    words = ("baseline: OptScale⁰ has several settings",)
    refuse(tmp_path, capsys, ["--config", config, "--pool", pool_path], *words)


def test_out_that_is_a_file(tmp_path, capsys, pool_path):
    config = write_config(tmp_path, SIMPLE)
    (tmp_path / "taken").write_text("mine")
    given = ["--config", str(config), "--pool", str(pool_path), "--out", str(tmp_path / "taken")]
    assert command.main(given) == 2
    assert "taken is a file" in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt, 130), (InputError("late"), 2), (KeyError, None)]
)
def test_an_error_half_way_leaves_nothing(tmp_path, pool_path, monkeypatch, capsys, error, code):
    def fail(*arguments):
        raise error

    out = tmp_path / "out"
    out.mkdir()
    (out / "results.csv").write_text("earlier run")
    monkeypatch.setattr(command, "write_per_problem", fail)
    config = write_config(tmp_path, SIMPLE)
    given = ["--config", str(config), "--pool", str(pool_path), "--out", str(out)]
    if code is None:
        # What nobody foresaw keeps its traceback.
        with pytest.raises(KeyError):
            command.main(given)
    else:
        assert command.main(given) == code
        assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in out.iterdir()] == ["results.csv"]
    assert (out / "results.csv").read_text() == "earlier run"
    assert list(tmp_path.glob(".*")) == []


# The real thing -----------------------------------------------------------------------------------


def run_command(*arguments) -> subprocess.CompletedProcess[str]:
    given = [sys.executable, "-m", "eval.replay", *map(str, arguments)]
    return subprocess.run(given, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_process_runs_and_says_where_the_results_are(tmp_path, pool_path):
    config, out = write_config(tmp_path, SIMPLE), tmp_path / "out"
    run = run_command("--config", config, "--pool", pool_path, "--out", out)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert f"results: {out}" in run.stdout
    assert (out / "results.csv").exists()


def test_a_process_refuses_with_exit_code_2_and_one_line(tmp_path):
    config = tmp_path / "bad.yaml"
    config.write_text("policy: {name: best_of_n, alfa: 0.9}\n")
    run = run_command("--config", config, "--out", tmp_path / "out")
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.splitlines() == [
        f"error: {config}:1: policy.alfa: no such key; did you mean alpha?"
    ]
    assert not (tmp_path / "out").exists()


# Answers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "accuracy", "note"),
    [
        # The text comparison knows no roots, so the one vote that counts is that for 3.
        ([], 0.0, "2 of 4 completions have no answer"),
        (["--equal", "math"], 1.0, "2 of 4 completions have no answer"),
        (["--extract", "boxed"], 0.0, "WARNING: 3 of 4 completions have no answer, so"),
        (["--extract", "last_number"], 0.0, "2 of 4 completions have no answer"),
    ],
)
def test_answers_are_read_and_compared_as_asked(tmp_path, monkeypatch, options, accuracy, note):
    monkeypatch.setenv("OPTSCALE_CACHE", str(tmp_path / "cache"))
    texts = [r"\boxed{\frac{\sqrt{4}}{4}}", "nothing", "The answer is 3.", "I do not know"]
    lines = [{"problem_id": 1, "gold": "1/2", "completion": text} for text in texts]
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "out"
    arguments = ["--policy.name", "self_consistency", "--policy.n", "4", "--permutations", "0"]
    arguments += ["--pool", str(tmp_path / "pool.jsonl"), "--out", str(out), *options]
    assert command.main(arguments) == 0
    assert note in (out / "summary.md").read_text()
    with open(out / "results.csv", newline="") as file:
        assert float(next(csv.DictReader(file))["accuracy"]) == accuracy


def test_an_unknown_comparison_is_one_line(tmp_path, capsys):
    (tmp_path / "pool.jsonl").write_text('{"problem_id": 1, "gold": "1", "answer": "2"}')
    arguments = ["--policy.name", "self_consistency", "--policy.n", "1", "--equal", "maths"]
    assert command.main([*arguments, "--pool", str(tmp_path / "pool.jsonl")]) == 2
    assert "no such equal" in capsys.readouterr().err
