"""Processes that are killed under load: an upstream server, and a replica of Ray Serve."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

from optscale_jax.backends.config import SamplerConfig, ServerConfig
from optscale_jax.gateway.config import ServeConfig
from optscale_jax.study.registry import PolicyConfig
from tests.gateway import gateway, served
from tests.loopback import free_port

ROOT = Path(__file__).resolve().parents[1]
# A server as small as they come: it says its list of models, writes a line for each question, and
# answers at once or, as "silent", never.
UPSTREAM = """
import http.server, json, sys, time

class Handler(http.server.BaseHTTPRequestHandler):
    def say(self, body):
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.say({"data": [{"id": "m"}]})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        print("asked", flush=True)
        if sys.argv[2] == "silent":
            time.sleep(3600)
        choice = {"message": {"content": "\\\\boxed{4}"}, "finish_reason": "stop"}
        self.say({"choices": [choice], "usage": {"completion_tokens": 5, "prompt_tokens": 5}})

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def until(condition, seconds=60.0):
    last = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < last
        time.sleep(0.05)


def answers(url, path):
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url + path, timeout=5, verify=False).status_code == 200
    return False


def killed_under_load(url, pid, question, *, clients, when):
    """Kills a process amid requests, and goes on until each client had two more answers.

    Args:
        when: Of the statuses of each client's answers until now, whether to kill it.

    Returns:
        Of each request its beginning, in seconds since the process is gone, its end, in seconds
        since it was to be killed, a moment before, and its status.
    """
    found, stop = [[] for _ in range(clients)], threading.Event()

    def ask(mine):
        body = {"messages": [{"role": "user", "content": question}]}
        with httpx.Client(timeout=120) as client:
            while not stop.is_set():
                began = time.monotonic()
                status = client.post(f"{url}/v1/chat/completions", json=body).status_code
                mine.append((began, time.monotonic(), status))

    threads = [threading.Thread(target=ask, args=[mine]) for mine in found]
    for one in threads:
        one.start()
    try:
        until(lambda: when([[status for *_, status in mine] for mine in found]))
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        gone = time.monotonic()
        until(lambda: all(sum(began > gone for began, *_ in mine) >= 2 for mine in found), 120)
    finally:
        stop.set()
        for one in threads:
            one.join()
    return [
        (began - gone, ended - killed, status) for mine in found for began, ended, status in mine
    ]


def test_no_request_fails_where_one_of_two_servers_is_killed(tmp_path):
    ports, lines = [free_port(), free_port()], tmp_path / "lines"
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(open(lines, "w"))
        for port, kind in zip(ports, ["silent", "quick"], strict=True):
            command = [sys.executable, "-c", UPSTREAM, str(port), kind]
            one = subprocess.Popen(
                command, stdout=output if kind == "silent" else subprocess.DEVNULL
            )
            stack.enter_context(one)
            stack.callback(one.kill)
            if kind == "silent":
                pid = one.pid
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        for url in urls:
            until(lambda url=url: answers(url, "/"))
        at = ServerConfig(base_urls=urls, backoff=0.05, vllm=False)
        sampler = SamplerConfig(kind="server", model="m", server=at)
        vote = PolicyConfig("self_consistency", n=4)

        def make():
            return ServeConfig(models=[served("http://unused", sampler=sampler, policies=(vote,))])

        with gateway(make_config=make) as running:
            found = killed_under_load(
                running.url,
                pid,
                "What is 2 + 2?",
                clients=8,
                when=lambda _: lines.read_text().count("asked") >= 8,
            )
    assert {status for *_, status in found} == {200}
    # It answered none of the completions that it was asked for: they were asked for again.
    assert any(began < 0 < ended for began, ended, _ in found)


@pytest.mark.slow
@pytest.mark.ray
def test_where_one_of_two_ray_replicas_is_killed_only_its_own_requests_fail(tmp_path):
    port, file = free_port(), tmp_path / "ray.yaml"
    arguments = {"config": "recorded", "num_replicas": 2, "heartbeat_seconds": 1}
    deployed = {"name": "gateway", "import_path": "optscale_jax.serve.ray:app", "args": arguments}
    http = {"host": "127.0.0.1", "port": port}
    file.write_text(json.dumps({"http_options": http, "applications": [deployed]}))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    environment["RAY_ADDRESS"] = "local"  # and not a cluster that happens to be there
    environment["RAY_DEDUP_LOGS"] = "0"  # each replica's line for each request
    command = [sys.executable, "-m", "ray.serve.scripts", "run", str(file)]
    url, log = f"http://127.0.0.1:{port}", tmp_path / "log"
    with open(log, "w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        until(lambda: answers(url, "/readyz") or process.poll() is not None, 400)
        assert process.poll() is None, log.read_text()
        replicas = [
            one
            for one in psutil.Process(process.pid).children(recursive=True)
            if "ServeReplica:gateway" in " ".join(one.cmdline())
        ]
        assert len(replicas) == 2

        def both():
            """Whether both have answered, of which each has a line of its own."""
            answers(url, "/readyz")
            said = log.read_text()
            return all(re.search(rf"pid={one.pid}\).*GET .* 200 ", said) for one in replicas)

        until(both, 200)
        found = killed_under_load(
            url,
            replicas[0].pid,
            "arithmetic-5/7",
            clients=8,
            when=lambda statuses: all(200 in mine for mine in statuses),
        )
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    # Only those on their way when it died, which are told so soon, far from any time-out; what it
    # had not begun, Ray gives to the other.
    failed = [one for one in found if one[-1] != 200]
    assert all(began < 0 < ended < 30 for began, ended, _ in failed)
