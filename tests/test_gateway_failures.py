"""Processes that are killed under load: an upstream server, and a replica of Ray Serve."""

import contextlib
import json
import os
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
# A server as small as they come: it says its list of models, and answers after a moment.
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
        time.sleep(0.1)
        choice = {"message": {"content": "\\\\boxed{4}"}, "finish_reason": "stop"}
        self.say({"choices": [choice], "usage": {"completion_tokens": 5, "prompt_tokens": 5}})

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def until(condition, seconds):
    last = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < last
        time.sleep(0.05)


def answers(url, path):
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url + path, timeout=5, verify=False).status_code == 200
    return False


def killed_under_load(url, pid, question, *, clients, seconds):
    """Kills a process amid requests; of each its beginning and end since then, and status."""
    found, stop = [], threading.Event()

    def ask():
        body = {"messages": [{"role": "user", "content": question}]}
        with httpx.Client(timeout=60) as client:
            while not stop.is_set():
                began = time.monotonic()
                status = client.post(f"{url}/v1/chat/completions", json=body).status_code
                found.append((began, time.monotonic(), status))

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for one in threads:
        one.start()
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    at = time.monotonic()
    time.sleep(seconds)
    stop.set()
    for one in threads:
        one.join()
    assert {status for *_, status in found if status == 200}
    return [(began - at, ended - at, status) for began, ended, status in found]


def test_no_request_fails_where_one_of_two_servers_is_killed():
    ports = [free_port(), free_port()]
    with contextlib.ExitStack() as stack:
        command = [sys.executable, "-c", UPSTREAM]
        servers = [stack.enter_context(subprocess.Popen([*command, str(port)])) for port in ports]
        for one in servers:
            stack.callback(one.kill)
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        for url in urls:
            until(lambda url=url: answers(url, "/"), 20)
        at = ServerConfig(base_urls=urls, backoff=0.05, vllm=False)
        sampler = SamplerConfig(kind="server", model="m", server=at)
        vote = PolicyConfig("self_consistency", n=4)

        def make():
            return ServeConfig(models=[served("http://unused", sampler=sampler, policies=(vote,))])

        with gateway(make_config=make) as running:
            found = killed_under_load(
                running.url, servers[0].pid, "What is 2 + 2?", clients=8, seconds=1
            )
    assert {status for *_, status in found} == {200}
    # Those that were on their way, and later ones.
    assert sum(began < 0 < ended for began, ended, _ in found) == 8
    assert sum(began > 0 for began, *_ in found) > 8


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
    command = [sys.executable, "-m", "ray.serve.scripts", "run", str(file)]
    url, log = f"http://127.0.0.1:{port}", tmp_path / "log"
    with open(log, "w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        until(lambda: answers(url, "/readyz") or process.poll() is not None, 120)
        assert process.poll() is None, log.read_text()
        replicas = [
            one
            for one in psutil.Process(process.pid).children(recursive=True)
            if "ServeReplica:gateway" in " ".join(one.cmdline())
        ]
        assert len(replicas) == 2
        found = killed_under_load(url, replicas[0].pid, "arithmetic-5/7", clients=8, seconds=3)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    failed = [one for one in found if one[-1] != 200]
    assert len(failed) < 8
    # All of them on their way when it died, and told so soon; those that it had not begun, Ray
    # gives to the other.
    assert all(began < 0 and ended < 5 for began, ended, _ in failed)
