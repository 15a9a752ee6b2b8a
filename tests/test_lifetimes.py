"""Processes that end with their parent, and the cores that they run on."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from optscale_jax.backends import cores, vllm_engine
from optscale_jax.backends.cores import leave_workers_their_cores, with_all_cores
from tests.test_layers import ROOT

# A process that starts another that starts another; each says its number once it is at work.
PARENT = """
import multiprocessing, os, sys, time
from optscale_jax.backends.lifetimes import bound_to_this_process

def work(method, depth):
    if depth:
        multiprocessing.get_context(method).Process(target=work, args=(method, depth - 1)).start()
    os.write(1, f"{os.getpid()} {os.getpgid(0)}\\n".encode())
    time.sleep(300)

if __name__ == "__main__":
    with bound_to_this_process():
        multiprocessing.get_context(sys.argv[1]).Process(target=work, args=(sys.argv[1], 1)).start()
    time.sleep(300)
"""


def alive(numbers):
    running = (psutil.Process(one) for one in numbers if psutil.pid_exists(one))
    return [one.pid for one in running if one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.usefixtures("hangups")
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("ended", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
def test_children_and_theirs_end_with_a_parent_that_is_ended(tmp_path, method, ended):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(script), method]
    with subprocess.Popen(command, stdout=-1, env=environment, text=True) as parent:
        assert parent.stdout is not None
        told = [[int(part) for part in parent.stdout.readline().split()] for _ in range(2)]
        numbers = [number for number, _ in told]
        assert alive(numbers) == numbers
        # Each leads a group of its own, which a terminal's signals do not reach.
        assert all(number == group for number, group in told)
        parent.send_signal(ended)
        parent.wait()
        deadline = time.monotonic() + 30
        while alive(numbers) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not alive(numbers)


def test_a_child_that_is_still_starting_ends_with_its_parent(tmp_path):
    script = tmp_path / "parent.py"
    # What a spawned process imports first takes it longer than the test.
    script.write_text("import time, sys\nif __name__ != '__main__': time.sleep(300)\n" + PARENT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen([sys.executable, str(script), "spawn"], env=environment) as parent:
        children = []
        while not [one for one in children if "spawn_main" in " ".join(one.cmdline())]:
            time.sleep(0.05)
            children = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
        _, left = psutil.wait_procs(children, timeout=30)
        assert not left


def test_others_that_hold_the_gpus_memory_are_named(tmp_path, monkeypatch):
    told = tmp_path / "nvidia-smi"
    held = f"{os.getpid()}, python, 9000 MiB\n1, VLLM::EngineCore, 7000 MiB"
    told.write_text(f"#!/bin/sh\nprintf '{held}\\n'\n")
    told.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    expected = "; GPU memory of others is in the way: 1, VLLM::EngineCore, 7000 MiB"
    assert vllm_engine._memory_of_others() == expected
    told.write_text("#!/bin/sh\nexit 9\n")
    assert vllm_engine._memory_of_others() == ""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="of Linux")
def test_a_process_has_all_its_cores_again_where_no_engine_runs(monkeypatch):
    monkeypatch.setattr(cores, "_all", None)
    whole = os.sched_getaffinity(0)
    leave_workers_their_cores()
    try:
        assert os.sched_getaffinity(0) == whole  # until an engine starts
        for thread in psutil.Process().threads():
            os.sched_setaffinity(thread.id, {min(whole)})
        with with_all_cores():
            assert os.sched_getaffinity(0) == whole
        for thread in psutil.Process().threads():
            assert os.sched_getaffinity(thread.id) == whole
    finally:
        for thread in psutil.Process().threads():
            os.sched_setaffinity(thread.id, whole)
