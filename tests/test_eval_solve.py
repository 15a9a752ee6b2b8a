"""eval.solve and eval.sample: their files, their agreement with eval.replay, and bad input."""

import asyncio
import csv
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from eval import check_decisions, replay, sample, solve
from optscale_jax import Pool, synthetic_pool
from optscale_jax.backends.recorded import RecordedSampler, RecordedVerifier, recorded_problems
from optscale_jax.cli import live as live_command
from optscale_jax.cli import parse
from optscale_jax.live.config import SampleConfig, SolveConfig
from optscale_jax.live.session import Engines
from optscale_jax.problems import BENCHMARKS
from optscale_jax.readers import read_pool
from optscale_jax.report.live import OUTPUTS
from train import labels

ROOT = Path(__file__).resolve().parents[1]
N = 12
FIRST_HIT = ["--policy.name=first_hit", "--policy.s_min=0.9", f"--policy.max_samples={N}"]
# One rule and one number of problems wherever a prior is needed, so that its fit compiles once.
OPTSCALE = ["--policy.name=optscale", "--policy.s_min=0.9", "--policy.alpha=0.9"]
OPTSCALE += ["--policy.max_samples=8", "--policy.min_samples=2", "--limit=3"]


@pytest.fixture(scope="module")
def pool_file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("pool") / "pool.npz"
    synthetic_pool(jax.random.key(1), num_problems=40, num_samples=N).save(path)
    return str(path)


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_recorded_pool_and_labels_are_read_as_asked(tmp_path):
    pool = tmp_path / "pool.jsonl"
    lines = [
        {"problem_id": "p", "score": score, "completion": text, "gold": "1/2"}
        for score, text in ((-1.0, "Of 3 it is 0.7"), (2.0, "Of 4 it is 1/2"), (1.0, "0.5"))
    ]
    pool.write_text("".join(json.dumps(line) + "\n" for line in lines))
    read = ["rescale=sigmoid", "extract=last_number", "equal=math"]
    asked = [f"--recorded.{one}" for one in read]
    command = ["--recorded.pool", str(pool), *asked, "--policy.name=best_of_n", "--policy.n=3"]
    assert solve.main([*command, "--out", str(tmp_path / "out")]) == 0
    (row,) = rows(tmp_path / "out" / "per_problem.csv")
    assert (row["selected_index"], row["correct"]) == ("1", "1")
    out = tmp_path / "labels.jsonl"
    asked = [f"--{one}" for one in read]
    assert labels.main(["--pool", str(pool), *asked, "--out", str(out)]) == 0
    expected = 1 / (1 + np.exp([1.0, -2.0, -1.0]))
    found = json.loads(out.read_text())
    assert found["mean"] == pytest.approx(expected.mean(), rel=1e-6)


def test_per_problem_rows_are_those_of_replay(pool_file, tmp_path, capsys):
    out, replayed = tmp_path / "live", tmp_path / "replayed"
    command = ["--recorded.pool", pool_file, *FIRST_HIT, "--out", str(out)]
    assert solve.main(command) == 0
    assert "40 problems, up to 12 completions each" in capsys.readouterr().out
    for name in OUTPUTS:
        assert (out / name).is_file()
    options = ["--pool", pool_file, "--permutations=0", "--out", str(replayed)]
    assert replay.main([*FIRST_HIT, *options]) == 0
    assert rows(out / "per_problem.csv") == rows(replayed / "per_problem.csv")
    (row,), (expected,) = rows(out / "results.csv"), rows(replayed / "results.csv")
    assert expected.items() <= row.items()
    assert float(row["mean_total_tokens"]) >= float(row["mean_tokens"]) > 0
    # The pool of the run is what was decided on.
    drawn = [int(each["n_samples"]) for each in rows(out / "per_problem.csv")]
    assert Pool.load(out / "pool.npz").samples_per_problem.tolist() == drawn

    # The same command again draws nothing and shows the same.
    before = {name: (out / name).read_bytes() for name in (*OUTPUTS, "samples.jsonl")}
    capsys.readouterr()
    assert solve.main(command) == 0
    assert "drawn" not in capsys.readouterr().out
    assert before == {name: (out / name).read_bytes() for name in before}
    # With another setting it is refused, and with what changes nothing it is not.
    assert solve.main([*command, "--policy.s_min=0.8"]) == 2
    error = capsys.readouterr().err
    assert "policy.s_min is 0.9, now 0.8" in error
    assert error.count("\n") == 1
    assert solve.main([*command, "--max_in_flight=3"]) == 0

    capsys.readouterr()
    assert check_decisions.main([str(out)]) == 0
    assert capsys.readouterr().out.endswith(": 40 of 40\n")
    lines = (out / "decisions.jsonl").read_text().splitlines(keepends=True)
    changed = json.loads(lines[3])
    changed["selected_index"] += 1
    lines[3] = json.dumps(changed) + "\n"
    (out / "decisions.jsonl").write_text("".join(lines))
    assert check_decisions.main([str(out)]) == 1
    assert ": 39 of 40" in capsys.readouterr().out


def test_runs_that_share_their_models_start_them_once_and_decide_as_ever(
    pool_file, tmp_path, monkeypatch, capsys
):
    pool, seen = Pool.load(pool_file), {"loops": set(), "started": 0, "closed": 0}

    class Sampler(RecordedSampler):
        def sample(self, *given, **more):
            seen["loops"].add(asyncio.get_running_loop())
            return super().sample(*given, **more)

        async def close(self):
            seen["closed"] += 1

    def start(*_):
        seen["started"] += 1
        return Sampler(pool), RecordedVerifier(pool)

    monkeypatch.setattr(live_command, "start_models", start)
    problems = tmp_path / "problems.jsonl"
    lines = ({"id": p.id, "problem": p.text, "answer": p.answer} for p in recorded_problems(pool))
    problems.write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = [*FIRST_HIT, "--problems", str(problems), "--out"]
    before = signal.getsignal(signal.SIGTERM)
    with Engines() as engines:
        for name in ("one", "two"):
            config = parse(SolveConfig, [*asked, str(tmp_path / name)])
            live_command.live(config, engines)
        assert seen["closed"] == 0
        assert signal.getsignal(signal.SIGTERM) == before  # what a command has set
    assert (len(seen.pop("loops")), seen) == (1, {"started": 1, "closed": 1})
    monkeypatch.undo()
    alone = ["--recorded.pool", pool_file, *FIRST_HIT, "--out", str(tmp_path / "alone")]
    assert solve.main(alone) == 0
    expected = rows(tmp_path / "alone" / "per_problem.csv")
    assert rows(tmp_path / "one" / "per_problem.csv") == expected
    assert rows(tmp_path / "two" / "per_problem.csv") == expected


def test_a_recorded_pool_has_its_own_problems_whatever_a_configuration_names(
    pool_file, tmp_path, capsys
):
    given = ["--config", "tiny", "--recorded.pool", pool_file, *FIRST_HIT, "--limit=2"]
    assert solve.main([*given, "--out", str(tmp_path / "out")]) == 0
    assert "note: problems are those of the recorded pool" in capsys.readouterr().err
    assert len(rows(tmp_path / "out" / "per_problem.csv")) == 2


def test_a_fixed_pool_is_drawn_whole(pool_file, tmp_path):
    out = tmp_path / "pool"
    assert sample.main(["--recorded.pool", pool_file, "--n=5", "--out", str(out)]) == 0
    whole, drawn = Pool.load(pool_file), Pool.load(out / "pool.npz")
    assert drawn.mask.all()
    for name in ("scores", "correct", "tokens"):
        assert (getattr(drawn, name) == getattr(whole, name)[:, :5]).all(), name
    assert check_decisions.main([str(out)]) == 0
    in_order = read_pool(out).subset(whole.problem_ids)
    assert (in_order.scores == whole.scores[:, :5]).all()


def test_a_budget_for_all_problems_is_spent_and_said(pool_file, tmp_path, capsys):
    out = tmp_path / "run"
    vote = ["--policy.name=calibrated_vote", "--policy.calibration=scores"]
    command = ["--recorded.pool", pool_file, *vote, f"--policy.max_samples={N}"]
    lengths = Pool.load(pool_file).tokens
    budget = int(0.3 * lengths.sum())
    assert solve.main([*command, f"--budget={budget}", "--out", str(out)]) == 0
    spent = sum(int(row["tokens"]) for row in rows(out / "per_problem.csv"))
    assert budget - lengths.max() < spent <= budget
    summary = (out / "summary.md").read_text()
    assert f"budget: {budget:,} tokens, {spent:,} of them spent; price 0." in summary
    assert solve.main([*command, f"--budget={budget}", "--out", str(out)]) == 0
    assert (out / "summary.md").read_text() == summary
    assert check_decisions.main([str(out)]) == 0
    capsys.readouterr()
    assert solve.main([*command, "--budget=2000", "--out", str(tmp_path / "less")]) == 2
    assert "budget: 2,000 tokens are not enough for one completion" in capsys.readouterr().err
    first_hit = ["--recorded.pool", pool_file, *FIRST_HIT, "--budget=100000"]
    assert solve.main([*first_hit, "--out", str(tmp_path / "none")]) == 2
    assert "FirstHit does not say what one more completion gains" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_prior_for_each_problem_is_read_and_its_tokens_counted(pool_file, tmp_path, capsys):
    names = Pool.load(pool_file).problem_ids.tolist()
    prior = {"loc": 0.8, "scale": 0.1, "loc_sd": 0.1, "scale_sd": 0.1, "tokens": 37}
    file = tmp_path / "priors.jsonl"

    def solved(*lines):
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        paths = ["--priors", str(file), "--out", str(tmp_path / "run")]
        code = solve.main(["--recorded.pool", pool_file, *OPTSCALE, *paths])
        return code, capsys.readouterr().err

    lines = [{"problem_id": name, **prior} for name in names]
    assert solved(*lines[:2]) == (
        2,
        f"error: {file}: no prior for problem {names[2]!r}; predict them for these problems "
        "(python -m eval.predict)\n",
    )
    for wrong, says in [({"scale": 0}, "prior.scale is 0"), ({"loc": "x"}, "line 1: loc is 'x'")]:
        code, error = solved({**lines[0], **wrong}, *lines[1:])
        assert code == 2
        assert says in error
    assert solved(*lines) == (0, "")
    (row,) = rows(tmp_path / "run" / "results.csv")
    assert float(row["mean_predictor_tokens"]) == 37
    assert check_decisions.main([str(tmp_path / "run")]) == 0


def test_priors_may_be_the_policys_own_file(pool_file, tmp_path, capsys):
    sure = {"loc": 0.3, "scale": 0.05, "loc_sd": 1e-3, "scale_sd": 1e-3}
    file = tmp_path / "priors.jsonl"
    names = Pool.load(pool_file).problem_ids.tolist()
    file.write_text("".join(json.dumps({"problem_id": n, **sure}) + "\n" for n in names))
    out = ["--recorded.pool", pool_file, "--out", str(tmp_path / "run")]
    assert solve.main([*out, *OPTSCALE, f"--policy.prior.file={file}"]) == 0
    # Whoever is sure that scores are near 0.3 draws all that he may.
    assert {int(row["n_samples"]) for row in rows(tmp_path / "run" / "per_problem.csv")} == {8}
    assert check_decisions.main([str(tmp_path / "run")]) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--policy.alpha=0.9"], "policy.s_min: optscale needs it"),
        ([*FIRST_HIT], "problems is not given"),
        ([*FIRST_HIT, "--problems=nothing.jsonl"], "no such file, and no benchmark of that name"),
        ([*FIRST_HIT, "--problems=arithmetic-1"], "sampler.model is not given"),
        ([*FIRST_HIT, "--recorded.pool=nothing.npz"], "nothing.npz"),
        ([*FIRST_HIT, "--policy.s_min=[0.8,0.9]"], "a list stands for several settings"),
        ([*FIRST_HIT, "--limit=0"], "limit is 0; it must be at least 1"),
        ([*FIRST_HIT, "--verify=false"], "verify is false, but first_hit reads scores"),
        ([*FIRST_HIT, "--sampler.temperature=-1"], "temperature is -1"),
        (
            [
                "--policy.name=difficulty_adaptive_self_consistency",
                "--policy.threshold=0.9",
                "--policy.max_samples=8",
            ],
            "couples all problems",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Later ones win.
    assert solve.main(["--out=run", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert (
        not (tmp_path / "run" / "samples.jsonl").exists()
        or not (tmp_path / "run" / "samples.jsonl").read_bytes()
    )


def test_a_pool_that_is_too_shallow_is_said_and_what_was_drawn_is_kept(pool_file, tmp_path, capsys):
    command = ["--recorded.pool", pool_file, "--n=13", "--out", str(tmp_path / "run")]
    assert sample.main(command) == 2
    assert "has 12 completions, and the policy asks for 13" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(pool_file, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "eval.sample", "--recorded.pool", pool_file, "--n=12"]
    command += ["--recorded.seconds_per_token=1e-4", "--out", str(out)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}

    def run(*command):
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    full = run("sh", "-c", 'ulimit -f 40; exec "$@"', "sh", *command)
    assert full.returncode == 2
    assert "cannot be written (File too large)" in full.stderr
    assert full.stderr.count("\n") == 1
    kept = {name: (out / name).read_bytes() for name in ("samples.jsonl", "drawn.jsonl")}
    assert all(log.endswith(b"\n") for log in kept.values() if log)
    assert kept["drawn.jsonl"].count(b"\n") > 50
    assert run(*command).returncode == 0
    assert (out / "samples.jsonl").read_bytes().startswith(kept["samples.jsonl"])
    assert Pool.load(out / "pool.npz").mask.all()


@pytest.mark.usefixtures("hangups")
def test_a_terminal_that_goes_ends_a_run_which_keeps_what_it_drew_and_goes_on(pool_file, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "eval.sample", "--recorded.pool", pool_file, "--n=12"]
    command += ["--recorded.seconds_per_token=1e-3", "--max_in_flight=2", "--out", str(out)]
    terminal, there = pty.openpty()
    # Whoever leads a session and opens a terminal is that terminal's.
    opened = ["sh", "-c", f'exec "$@" <{os.ttyname(there)} >{os.ttyname(there)} 2>&1', "sh"]
    process = subprocess.Popen([*opened, *command], cwd=ROOT, start_new_session=True)
    while not (out / "samples.jsonl").exists() or (out / "samples.jsonl").stat().st_size < 2000:
        # A terminal that nobody reads is full some time.
        if select.select([terminal], [], [], 0.01)[0]:
            os.read(terminal, 1 << 16)
    os.close(terminal)
    os.close(there)
    assert process.wait(60) == 143
    kept = (out / "samples.jsonl").read_bytes()
    assert kept.endswith(b"\n")
    assert kept.count(b"\n") < 480
    command.remove("--recorded.seconds_per_token=1e-3")
    # Under nohup a hang-up is ignored.
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    ignored = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    signal.signal(signal.SIGHUP, before)
    while ignored.poll() is None:
        ignored.send_signal(signal.SIGHUP)
        time.sleep(0.1)
    assert ignored.returncode == 0
    assert (out / "samples.jsonl").read_bytes().startswith(kept)
    assert Pool.load(out / "pool.npz").mask.all()


# Shipped configurations ---------------------------------------------------------------------------

CONFIGS = ROOT / "configs" / "solve"
GENERATORS = {
    "math500_r1_qwen7b": ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", 1),
    "math500_qwq_32b": ("Qwen/QwQ-32B", 2),
    "math500_llama31_8b": ("meta-llama/Llama-3.1-8B-Instruct", 1),
}


def shipped(generator: str, benchmark: str) -> SolveConfig:
    files = [CONFIGS / f"{generator}.yaml"]
    if benchmark != "math500":
        files.append(CONFIGS / f"{benchmark}.yaml")
    arguments = [part for file in files for part in ("--config", str(file))]
    return parse(SolveConfig, arguments, prog="solve", description="")


@pytest.mark.parametrize("benchmark", BENCHMARKS)
@pytest.mark.parametrize("generator", GENERATORS)
def test_the_papers_configurations_say_what_the_paper_did(generator, benchmark):
    config = shipped(generator, benchmark)
    assert config.problems == benchmark
    sampler, verifier = config.sampler, config.verifier
    assert (sampler.model, sampler.engine.tensor_parallel_size) == GENERATORS[generator]
    assert (sampler.temperature, sampler.top_p) == (0.7, 0.95)
    assert sampler.max_tokens == (16_000 if "aime" in benchmark else 10_000)
    # Prompt and completion fit.
    assert sampler.engine.max_model_len is not None
    assert sampler.engine.max_model_len >= sampler.max_tokens + 2048
    assert verifier.model == "Qwen/Qwen2.5-Math-PRM-7B"
    assert verifier.aggregate == "mean"
    # Both on one GPU.
    shares = sampler.engine.gpu_memory_utilization + verifier.engine.gpu_memory_utilization
    assert shares <= 0.9
    configured = config.configured_policy()
    assert configured.policy.max_samples == 64
    assert configured.setting["min_samples"] == 20


def test_the_small_configurations_are_comparable():
    live = parse(
        SolveConfig, ["--config", str(CONFIGS / "tiny.yaml")], prog="solve", description=""
    )
    file = ROOT / "configs" / "sample" / "tiny.yaml"
    fixed = parse(SampleConfig, ["--config", str(file)], prog="sample", description="")
    for name in ("problems", "limit", "seed", "sampler", "verifier"):
        assert getattr(live, name) == getattr(fixed, name)
    assert live.policy.max_samples == fixed.n
