"""The gateway under load: what it adds to a request, and what it does when all goes wrong.

    python -m eval.bench.serve [--quick true] [--out DIR]

The load comes from this process, and the gateway is one of its own on the loopback. What it adds is
measured on a recorded pool without latency, beside the live loop on the same pool in this process.
Failures are those of a server in this process that cuts streams and answers 500 and 429, while
clients hang up. The exit code is 1 where a figure demanded is missed.
"""

import asyncio
import contextlib
import dataclasses
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from optscale_jax import policies
from optscale_jax.backends.recorded import RecordedSampler, RecordedVerifier, recorded_problems
from optscale_jax.checks import at_least, positive
from optscale_jax.cli import command
from optscale_jax.live.engine import solve_async
from optscale_jax.readers import read_pool
from optscale_jax.tiny import pool_path

from .rows import Limit, Report, finish

POLICY = {"name": "optscale", "s_min": 0.7, "alpha": 0.95, "max_samples": 32, "min_samples": 4}


@dataclasses.dataclass(frozen=True)
class BenchServeConfig:
    """What to measure.

    Attributes:
        requests: Requests of each number of clients, at least 1.
        clients: Clients at once where all goes wrong, at least 1.
        seconds: How long that lasts, above 0.
        quick: Whether to take a quarter of the requests and of that time.
        out: Folder for bench_serve.json and bench_serve.md, made if it does not exist. null: none.
    """

    requests: int = 800
    clients: int = 500
    seconds: float = 60.0
    quick: bool = False
    out: str | None = None

    def __post_init__(self) -> None:
        """Refuses numbers outside their domain."""
        at_least(self, 1, "requests", "clients")
        positive(self, "seconds")


@contextlib.contextmanager
def gateway(**config: Any) -> Iterator[tuple[str, psutil.Process]]:
    """The URL of a gateway, and its process."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "serve.yaml"
        file.write_text(json.dumps(config))
        words = [sys.executable, "-m", "eval.serve", "--config", str(file), "--port", "0"]
        with subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            try:
                assert process.stdout is not None
                said = process.stdout.readline()
                yield said.split()[-1], psutil.Process(process.pid)
            finally:
                process.terminate()


def recorded(seconds_per_token: float, **model: Any) -> dict[str, Any]:
    """A model of the shipped pool."""
    pool = {"pool": str(pool_path()), "seconds_per_token": seconds_per_token}
    return {"name": "m", "recorded": pool, "policies": [POLICY], "equal": "text", **model}


async def ask(client: httpx.AsyncClient, url: str, text: str, **fields: Any) -> httpx.Response:
    """One chat."""
    body = {"model": "m", "messages": [{"role": "user", "content": text}], **fields}
    return await client.post(f"{url}/chat/completions", json=body)


async def load(url: str, names: list[str], clients: int) -> tuple[list[float], int, float]:
    """Seconds of each request, completions in all, and the seconds of the whole."""
    queue, took, drawn = iter(names), list[float](), 0

    async def work(client: httpx.AsyncClient) -> None:
        nonlocal drawn
        for name in queue:
            began = time.perf_counter()
            found = (await ask(client, url, name)).json()
            took.append(time.perf_counter() - began)
            drawn += found["usage"]["optscale"]["candidates"]

    async with connected() as client:
        await ask(client, url, names[0])
        began = time.perf_counter()
        await asyncio.gather(*(work(client) for _ in range(clients)))
        return took, drawn, time.perf_counter() - began


def connected() -> httpx.AsyncClient:
    """A client for any number of requests; each that is made loads certificates, for 30 ms."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(timeout=60, limits=limits)


async def loop_alone(count: int, in_flight: int) -> tuple[float, float]:
    """Completions a second of the live loop itself, and its seconds a problem."""
    pool = read_pool(pool_path())
    problems = (recorded_problems(pool) * (1 + count // pool.num_problems))[:count]
    problems = problems[: pool.num_problems]
    rule = policies.optscale(**{k: v for k, v in POLICY.items() if k != "name"})
    given = RecordedSampler(pool), RecordedVerifier(pool), rule
    await solve_async(problems[:4], *given)
    began = time.perf_counter()
    solved = await solve_async(problems, *given, max_in_flight=in_flight)
    seconds = time.perf_counter() - began
    return sum(one.drawn for one in solved) / seconds, seconds / len(problems)


def bench_overhead(report: Report, requests: int) -> None:
    """What a request takes above the decisions themselves, and completions a second."""
    names = [f"arithmetic-5/{i % 400}" for i in range(requests)]
    with gateway(models=[recorded(0.0)], max_concurrent=512) as (url, _):
        for clients in (1, 32, 256):
            alone, decision = asyncio.run(loop_alone(requests, clients))
            took, drawn, seconds = asyncio.run(load(url, names, clients))
            p50, p99 = np.quantile(took, [0.5, 0.99])
            share = drawn / seconds / alone
            limits: dict[str, Any] = {"share": share}
            if clients == 1:
                limits["overhead"] = Limit(1e3 * (p50 - decision), "<=", 5.0, " ms")
            report.add(
                f"{clients} clients, {requests} requests, no latency",
                f"p50 {1e3 * p50:.1f} ms, p99 {1e3 * p99:.1f} ms, of which the decisions "
                f"{1e3 * decision:.1f} ms; {share:.2f} of the live loop's completions/s",
                **limits,
            )


def bench_deadline(report: Report, requests: int) -> None:
    """Answers at a deadline of 2 s, of completions that take up to some ten."""

    async def run(url: str) -> list[tuple[float, dict[str, Any]]]:
        async def one(client: httpx.AsyncClient, index: int) -> tuple[float, dict[str, Any]]:
            began = time.perf_counter()
            given = {"optscale": {"seconds": 2}}
            found = (await ask(client, url, f"arithmetic-5/{index}", **given)).json()
            return time.perf_counter() - began, found

        async with connected() as client:
            await one(client, 0)
            return await asyncio.gather(*(one(client, index) for index in range(requests)))

    with gateway(models=[recorded(0.03)]) as (url, _):
        found = asyncio.run(run(url))
    answered = [took for took, body in found if "choices" in body]
    reasons = Counter(
        b["choices"][0]["optscale"]["stop_reason"] for _, b in found if "choices" in b
    )
    report.add(
        f"deadline of 2 s, {requests} requests at once of a slow model",
        f"{len(answered)} answered, {requests - len(answered)} with none yet; the last after "
        f"{max(took for took, _ in found):.2f} s; {dict(reasons)}",
        last=Limit(max(took for took, _ in found), "<=", 2.2, " s"),
    )


class Failing:
    """A server of which 1 answer in 20 is 500, 429 or a cut stream; it knows who is waiting."""

    def __init__(self) -> None:
        self.asked = self.open = 0
        self.late: list[float] = []
        self.gone: dict[str, float] = {}

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers a connection's one request."""
        self.open += 1
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET"):
                writer.write(_plain(200, {"data": [{"id": "m", "max_model_len": 100}]}))
                return
            length = re.search(rb"(?i)content-length: (\d+)", head)
            body = json.loads(await reader.readexactly(int(length[1] if length else 0)))
            self.asked += 1
            name, luck = body["messages"][0]["content"], random.random()
            if luck < 0.03:
                writer.write(_plain(500 if luck < 0.015 else 429, {"error": {"message": "no"}}))
                return
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
            writer.write(b"Connection: close\r\n\r\n")
            await self._until_gone(reader, name, random.uniform(0.2, 2.0))
            delta = {"content": f"\\boxed{{{random.randrange(3)}}}"}
            writer.write(_event({"delta": delta}))
            if luck > 0.05:
                usage = {"completion_tokens": 10, "prompt_tokens": 5}
                writer.write(_event({"delta": {}, "finish_reason": "stop"}, usage=usage))
                writer.write(b"data: [DONE]\n\n")
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()

    async def _until_gone(self, reader: asyncio.StreamReader, name: str, seconds: float) -> None:
        """Waits, and keeps how long after its client the connection has gone."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reader.read(), seconds)
            if name in self.gone:
                self.late.append(time.perf_counter() - self.gone[name])
            raise ConnectionError
        if name in self.gone and time.perf_counter() - self.gone[name] > 1:
            self.late.append(seconds)


def _plain(status: int, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    return head.encode() + data


def _event(choice: dict[str, Any], **more: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [choice], **more}).encode() + b"\n\n"


def bench_failures(report: Report, clients: int, seconds: float) -> None:
    """Clients that hang up and a server that fails: who is answered, and what is left behind."""

    async def run() -> None:
        failing, met = Failing(), Counter[Any]()
        server = await asyncio.start_server(failing, "127.0.0.1", 0, backlog=4096)
        upstream = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        at = {"base_urls": [upstream], "backoff": 0.05, "concurrency": 4096}
        model = {
            "name": "m",
            "sampler": {"kind": "server", "model": "m", "server": at},
            "verify": False,
            "equal": "text",
            "policies": [{"name": "self_consistency", "n": 4}],
        }
        with contextlib.ExitStack() as stack:
            # In a thread: it looks at the server, which is this loop's.
            served = gateway(models=[model], max_concurrent=clients)
            url, process = await asyncio.to_thread(stack.enter_context, served)
            before = await asyncio.to_thread(_held, process)
            last = time.perf_counter() + seconds

            async def work(client: httpx.AsyncClient, who: int) -> None:
                turn = 0
                while time.perf_counter() < last:
                    turn += 1
                    name = f"{who}-{turn}"
                    asking = asyncio.create_task(ask(client, url, name))
                    if random.random() < 0.05:
                        await asyncio.sleep(random.uniform(0, 1))
                        if not asking.done():
                            failing.gone[name] = time.perf_counter()
                            asking.cancel()
                            met["hung up"] += 1
                            continue
                    try:
                        met[(await asking).status_code] += 1
                    except httpx.HTTPError as error:
                        met[type(error).__name__] += 1

            async with connected() as client:
                await asyncio.gather(*(work(client, who) for who in range(clients)))
            await asyncio.sleep(3)
            after = await asyncio.to_thread(_held, process)
            answers = sum(count for status, count in met.items() if status != "hung up")
            lost = answers - met[200]
            report.add(
                f"{clients} clients for {seconds:g} s, 5% hang up, 5% of the server's answers fail",
                f"{dict(met)}; {failing.asked} asked of the server; sockets {before[0]} before and "
                f"{after[0]} after, {before[1]:.0f} MiB and {after[1]:.0f} MiB; "
                f"{len(failing.late)} requests of gone clients aborted, the last after "
                f"{max(failing.late, default=0):.2f} s",
                lost=Limit(lost, "==", 0),
                left=Limit(failing.open, "==", 0),
                late=Limit(max(failing.late, default=0.0), "<=", 1.0, " s"),
            )
        server.close()

    asyncio.run(run())


def _held(process: psutil.Process) -> tuple[int, float]:
    """Open sockets and MiB of memory."""
    return len(process.net_connections()), process.memory_info().rss / 2**20


def bench(config: BenchServeConfig) -> int:
    """Measures everything, shows and writes it; returns 1 where a figure is missed."""
    return finish(lambda: measure(config), config.out, "bench_serve", "gateway")


def measure(config: BenchServeConfig) -> Report:
    """All measurements."""
    report, part = Report(), 4 if config.quick else 1
    bench_overhead(report, max(1, config.requests // part))
    bench_deadline(report, 100)
    bench_failures(report, config.clients, config.seconds / part)
    return report


main = command(BenchServeConfig, bench, __name__)

if __name__ == "__main__":
    sys.exit(main())
