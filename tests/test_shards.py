"""Shards of a run on Ray: what they decide, what survives of those that are killed, bad input."""

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import pytest

from eval import check_decisions, sample, show, solve
from optscale_jax import Pool, synthetic_pool
from optscale_jax.live.runs import Run
from optscale_jax.readers import read_pool

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[1]
N = 12
# One completion of a problem at a time: what is spent does not hang on what ends first.
RULE = ["--policy.name=first_hit", "--policy.s_min=0.9", f"--policy.max_samples={N}"]
RULE += ["--max_ahead=1"]
# Slowly enough that one shard alone is at it for 20 s: another that begins, or begins again,
# seconds later has its part of the work.
SLOWLY = ["--recorded.seconds_per_token=5e-4", "--max_in_flight=4"]
VOTE = ["--policy.name=calibrated_vote", "--policy.calibration=scores", f"--policy.max_samples={N}"]


@pytest.fixture(scope="module")
def pool_file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("pool") / "pool.npz"
    synthetic_pool(jax.random.key(1), num_problems=40, num_samples=N).save(path)
    return str(path)


@pytest.fixture(scope="module")
def alone(pool_file, tmp_path_factory) -> Path:
    """The run of one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    assert solve.main(["--recorded.pool", pool_file, *RULE, "--out", str(out)]) == 0
    return out


CLUSTER = """
import ray
ray.init(address="local", num_cpus=8, include_dashboard=False, object_store_memory=80 << 20)
print(ray.get_runtime_context().gcs_address, flush=True)
input()
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster's."""
    # Before the first import of ray, which reads them.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", CLUSTER], env=environment, **pipes) as process:
        yield process.stdout.readline().strip()
        process.communicate("\n")


def on_ray(address, shards, out):
    return [f"--ray.address={address}", f"--ray.shards={shards}", "--out", str(out)]


def rows(out):
    with open(out / "per_problem.csv", newline="") as file:
        return list(csv.DictReader(file))


def decisions(out):
    return {one["problem_id"]: one for one in records(out / "decisions.jsonl")}


def records(*files):
    """Those of logs that may be written to: a last line may not be whole."""
    lines = [line for file in files for line in file.read_bytes().splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def drawn(*files):
    return sorted((one["problem_id"], one["index"]) for one in records(*files))


@pytest.fixture
def gathered(monkeypatch):
    """What the logs of a run and of its shards hold, each time before they become one."""
    found, gather = [], Run._gather

    def seen(run):
        logs = [run.path, *sorted((run.path / "shards").glob("*"))]
        found.append(drawn(*(log / "samples.jsonl" for log in logs)))
        gather(run)

    monkeypatch.setattr(Run, "_gather", seen)
    return found


def same(out, expected):
    """That a run is as another to the last token, and nothing is left of its shards."""
    assert rows(out) == rows(expected)
    assert decisions(out) == decisions(expected)
    assert drawn(out / "samples.jsonl") == drawn(expected / "samples.jsonl")
    assert not (out / "shards").exists()
    assert check_decisions.main([str(out)]) == 0


def until(true):
    end = time.monotonic() + 180
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def kept(part):
    with contextlib.suppress(FileNotFoundError):
        return (part / "samples.jsonl").read_bytes().count(b"\n")
    return 0


@contextlib.contextmanager
def killing(times):
    """Kills the shard at each of these parts so many times, each once it has drawn more."""

    def kill(part):
        last = 0
        for _ in range(times[part]):
            until(lambda last=last: kept(part) > last + 2)
            os.kill(int((part / "lock").read_text()), signal.SIGKILL)
            last = kept(part)

    with ThreadPoolExecutor() as pool:
        killed = [pool.submit(kill, part) for part in times]
        yield
        for one in killed:
            one.result()


def test_shards_that_are_killed_go_on_and_the_run_is_that_of_one_process(
    pool_file, alone, address, tmp_path, capfd, gathered, monkeypatch
):
    # However long they take to begin again, no other takes over what they have begun.
    monkeypatch.setattr("optscale_jax.live.shards._PATIENCE_SECONDS", 600.0)
    out = tmp_path / "run"
    first, second = (out / "shards" / name for name in ("00", "01"))
    command = ["--recorded.pool", pool_file, *RULE, *SLOWLY]
    with killing({first: 2, second: 1}):
        assert solve.main([*command, *on_ray(address, 3, out)]) == 0
    same(out, alone)
    assert gathered == [drawn(out / "samples.jsonl")]  # nothing that was kept was drawn again
    capfd.readouterr()
    # Nothing is to be done.
    assert solve.main([*command, *on_ray(address, 2, out)]) == 0
    assert "drawn" not in capfd.readouterr().out


NODES = """
from ray.cluster_utils import Cluster
small = {"object_store_memory": 80 << 20}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **small})
node = cluster.add_node(num_cpus=2, **small)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
input()
cluster.remove_node(node, allow_graceful=False)
input()
cluster.shutdown()
"""


@pytest.mark.slow
def test_problems_of_a_node_that_goes_for_good_are_taken_over(
    pool_file, alone, tmp_path, capfd, gathered, monkeypatch
):
    monkeypatch.setattr("optscale_jax.live.shards._PATIENCE_SECONDS", 2.0)
    out = tmp_path / "run"
    parts = [out / "shards" / name for name in ("00", "01", "02")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", NODES], env=environment, **pipes) as cluster:

        def kill():
            until(lambda: all(kept(part) > 2 for part in parts))
            cluster.stdin.write("\n")
            cluster.stdin.flush()

        address = cluster.stdout.readline().strip()
        command = ["--recorded.pool", pool_file, *RULE, *SLOWLY, *on_ray(address, 3, out)]
        with ThreadPoolExecutor() as pool:
            killed = pool.submit(kill)
            assert solve.main(command) == 0
            killed.result()
        cluster.communicate("\n")
    said = re.findall(r"note: shard (\d) of 3 has no process", capfd.readouterr().err)
    assert len(set(said)) == 2  # there is no room for them elsewhere
    same(out, alone)
    assert gathered == [drawn(out / "samples.jsonl")]  # nothing that was kept was drawn again


@pytest.mark.slow
def test_a_driver_that_is_killed_goes_on_in_other_shards_or_alone(
    pool_file, alone, address, tmp_path, capfd, gathered
):
    out, other = tmp_path / "run", tmp_path / "other"
    asked = ["--recorded.pool", pool_file, *RULE, "--max_in_flight=4"]
    command = [sys.executable, "-m", "eval.solve", *asked, *SLOWLY, *on_ray(address, 2, out)]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    parts = [out / "shards" / name for name in ("00", "01")]
    until(lambda: all(kept(part) > 5 for part in parts))
    process.kill()
    process.wait()
    for place, how in ((other, ["--out", str(other)]), (out, on_ray(address, 1, out))):
        if place == other:
            until(
                lambda: all(
                    not Path(f"/proc/{(p / 'lock').read_text().strip()}").exists() for p in parts
                )
            )
            shutil.copytree(out, other)
            before = drawn(*(part / "samples.jsonl" for part in parts))
            assert len(before) == len(set(before)) > 10
            assert 0 < read_pool(out).num_problems <= 40
            assert show.main([str(out)]) == 0
            assert "of 40 problems decided" in capfd.readouterr().out
        assert solve.main([*asked, *how]) == 0
        goes_on = "1 shard" if place == out else "one process"
        said = capfd.readouterr()
        assert f"begun in 2 shards, goes on in {goes_on}" in said.err
        same(place, alone)
        assert gathered.pop() == drawn(place / "samples.jsonl")
        new = len(drawn(place / "samples.jsonl")) - len(before)
        assert f"{new} completions drawn" in said.out


def test_a_budget_over_shards_is_spent_as_in_one_process(pool_file, address, tmp_path):
    budget = int(0.3 * Pool.load(pool_file).tokens.sum())
    command = ["--recorded.pool", pool_file, *VOTE, f"--budget={budget}", "--batch=8"]
    expected, out = tmp_path / "alone", tmp_path / "run"
    assert solve.main([*command, "--out", str(expected)]) == 0

    def kill():
        until(lambda: kept(out) > 10)
        os.kill(int((out / "shards" / "00" / "lock").read_text()), signal.SIGKILL)

    slowly = [*command, "--recorded.seconds_per_token=2e-4"]
    with ThreadPoolExecutor() as pool:
        killed = pool.submit(kill)
        assert solve.main([*slowly, *on_ray(address, 2, out)]) == 0
        killed.result()
    same(out, expected)


def test_a_shard_that_may_not_be_started_again_ends_the_run_in_one_line(
    pool_file, address, tmp_path, capfd
):
    out = tmp_path / "run"
    command = ["--recorded.pool", pool_file, f"--n={N}", *SLOWLY, "--ray.restarts=0"]
    with killing({out / "shards" / "00": 1}):
        assert sample.main([*command, *on_ray(address, 2, out)]) == 2
    (line,) = (one for one in capfd.readouterr().err.splitlines() if one.startswith("error"))
    assert "shard 0 of 2 has died more often than ray.restarts allows" in line
    assert re.search(rf"[0-9]+ completions are kept in {out}: run the same command to go on", line)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--ray.gpus_per_shard=2"], "2 shards of 2 GPU and 1 CPU each do not fit the cluster"),
        (["--ray.shards=9"], "which has room for 8 (its nodes have 8 CPU); lower it"),
        (["--ray.shards=0"], "ray.shards is 0; it must be at least 1"),
        (["--recorded.pool=null", "--problems=arithmetic-1"], "sampler.model is not given"),
        (
            ["--ray.address=127.0.0.1:1"],
            "ray.address: 127.0.0.1:1: no Ray there (Connection refused",
        ),
        (["--ray.address=nowhere"], "ray.address: nowhere: no Ray there"),
    ],
)
def test_bad_input_is_one_line(arguments, says, pool_file, address, tmp_path, capfd):
    given = ["--recorded.pool", pool_file, *RULE, *on_ray(address, 2, tmp_path / "run")]
    before = signal.getsignal(signal.SIGTERM)
    assert solve.main([*given, *arguments]) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert says in error
    assert error.count("\n") == 1
    assert signal.getsignal(signal.SIGTERM) == before
