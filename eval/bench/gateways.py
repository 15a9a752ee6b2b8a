"""The gateway beside its_hub's and optillm's at a fixed number, on the same completions.

    python -m eval.bench.gateways [--python OTHER/bin/python] [--problems 100] [--out DIR]

All of them ask one server in this process, which hands out the shipped pool's completions in their
order without latency, and rates them with the recorded scores where it is asked to. its_hub and
optillm are looked for in the environment of `python`; one that is not there is left out.
"""

import asyncio
import collections
import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np

from optscale_jax.checks import at_least
from optscale_jax.cli import command
from optscale_jax.pool import Pool
from optscale_jax.readers import read_pool
from optscale_jax.tiny import pool_path

from .rows import Report, finish
from .serve import gateway, recorded

# Each client that is made loads certificates, for 30 ms; one serves any number of requests.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None)
KEY = {"OPENAI_API_KEY": "none"}


@dataclasses.dataclass(frozen=True)
class BenchGatewaysConfig:
    """What to compare.

    Attributes:
        python: The interpreter of an environment that has its_hub[iaas] or optillm. null: this one.
        problems: Problems to ask, at least 1; the pool has 400.
        samples: Completions of a problem, at least 4: the fixed number, and the most of others;
            the pool has 64.
        out: Folder for bench_gateways.json and bench_gateways.md, made if it does not exist. null:
            none.
    """

    python: str | None = None
    problems: int = 100
    samples: int = 16
    out: str | None = None

    def __post_init__(self) -> None:
        """Refuses numbers outside their domain."""
        at_least(self, 1, "problems")
        at_least(self, 4, "samples")


class StandIn:
    """An OpenAI-compatible server of a pool's completions; it counts what it hands out.

    Attributes:
        calls: Requests, those for ratings included.
        tokens: Of the completions.
    """

    def __init__(self, pool: Pool):
        self._pool = pool
        self._rows = {str(name): row for row, name in enumerate(pool.problem_ids)}
        self.restart()

    def restart(self) -> None:
        """Begins with each problem's first completion again."""
        self._next: collections.Counter[int] = collections.Counter()
        self.calls = self.tokens = 0

    def answer(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The choices of a chat."""
        self.calls += 1
        texts = [str(message.get("content")) for message in body["messages"]]
        # A gateway may put words of its own around the question.
        words = [word for text in texts for word in text.split() if word in self._rows]
        row = self._rows[words[0]]
        if texts[-1].startswith("Rate the above"):
            return [_choice(0, f"{10 * self._score(row, texts[-2]):.6f}")]
        return [_choice(index, self._drawn(row)) for index in range(body.get("n") or 1)]

    def _drawn(self, row: int) -> str:
        index = self._next[row]
        self._next[row] += 1
        self.tokens += int(self._pool.tokens[row, index])
        return f"\\boxed{{{self._pool.answers[row, index]}}}"  # type: ignore[index]

    def _score(self, row: int, text: str) -> float:
        answer = _answer(text)
        for index in range(self._next[row]):
            if str(self._pool.answers[row, index]) == answer:  # type: ignore[index]
                return float(self._pool.scores[row, index])  # type: ignore[index]
        return 0.0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers a connection's requests."""
        # Cancelled at the end of the loop, which Python 3.11 would report.
        over = ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError
        with contextlib.suppress(*over):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                found = re.search(rb"(?i)content-length: (\d+)", head)
                body = await reader.readexactly(int(found[1]) if found else 0)
                said: dict[str, Any] = {"data": [{"id": "m"}], "object": "list"}
                if head.startswith(b"POST"):
                    before, choices = self.tokens, self.answer(json.loads(body))
                    spent = {"completion_tokens": self.tokens - before, "prompt_tokens": 1}
                    said = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
                    said |= {"choices": choices, "usage": spent | {"total_tokens": 1}}
                data = json.dumps(said).encode()
                kind = b"Content-Type: application/json\r\n"
                writer.write(b"HTTP/1.1 200 OK\r\n" + kind)
                writer.write(f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
        writer.close()


def _choice(index: int, text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {"index": index, "message": message, "finish_reason": "stop", "logprobs": None}


def _answer(text: str) -> str | None:
    found = re.findall(r"\\boxed\{(-?\d+)\}", text)
    return found[-1] if found else None


@contextlib.asynccontextmanager
async def process(words: list[str], url: str) -> AsyncIterator[None]:
    """A server of another project, once it answers at its URL."""
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    one = subprocess.Popen(words, env={**os.environ, **KEY}, **quiet)
    try:
        async with httpx.AsyncClient(timeout=60, limits=LIMITS) as client:
            for _ in range(600):
                with contextlib.suppress(httpx.HTTPError):
                    await client.get(f"{url}/models")
                    break
                if one.poll() is not None:
                    raise RuntimeError(f"{words[2]} ends with {one.returncode}")
                await asyncio.sleep(0.1)
        yield
    finally:
        one.terminate()
        await asyncio.to_thread(one.wait)


async def measure_one(
    report: Report,
    name: str,
    url: str,
    model: str,
    stand_in: StandIn | None,
    pool: Pool,
    count: int,
) -> None:
    """Asks all problems, one after another."""
    assert pool.gold is not None
    if stand_in is not None:
        stand_in.restart()
    right, took, told = [], [], 0
    async with httpx.AsyncClient(timeout=60, limits=LIMITS) as client:
        for row in range(count + 1):
            text = str(pool.problem_ids[row])
            body = {"model": model, "messages": [{"role": "user", "content": text}]}
            began = time.perf_counter()
            found = (await client.post(f"{url}/chat/completions", json=body)).json()
            if row == 0:  # which warms it up
                if stand_in is not None:
                    stand_in.restart()
                continue
            took.append(time.perf_counter() - began)
            told += found["usage"]["completion_tokens"]
            message = found["choices"][0]["message"]["content"] or ""
            right.append(_answer(message) == str(pool.gold[row]))
    spent = told if stand_in is None else stand_in.tokens
    calls = "" if stand_in is None else f"{stand_in.calls / count:.1f} calls, "
    report.add(
        name,
        f"{100 * np.mean(right):.1f}% right, {spent / count:,.0f} tokens and {calls}"
        f"{1e3 * np.median(took):.1f} ms an answer; usage says {told / count:,.0f} tokens",
    )


def has(python: str, module: str) -> bool:
    """Whether an environment has a module that can be imported."""
    words = [python, "-c", f"import {module}"]
    return subprocess.run(words, capture_output=True, env={**os.environ, **KEY}).returncode == 0


async def measure(config: BenchGatewaysConfig) -> Report:
    """All gateways, one after another."""
    report, pool, n = Report(), read_pool(pool_path()), config.samples
    python, stand_in = config.python or sys.executable, StandIn(pool)
    count = min(config.problems, pool.num_problems - 1)
    server = await asyncio.start_server(stand_in.handle, "127.0.0.1", 0)
    upstream = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    rules = [
        {"name": "self_consistency", "n": n},
        {"name": "adaptive_self_consistency", "threshold": 0.95, "max_samples": n},
    ]
    at = {"base_urls": [upstream], "vllm": False}
    sampler = {"kind": "server", "model": "m", "server": at}
    asking = {"name": "asking", "sampler": sampler, "verify": False, "policies": rules}
    best = {"name": "best_of_n", "n": n}
    scored = {"name": "optscale", "s_min": 0.7, "alpha": 0.95, "max_samples": n, "min_samples": 4}
    models = [asking | {"equal": "text"}, recorded(0.0) | {"policies": [best, scored]}]
    with contextlib.ExitStack() as stack:
        # In a thread: it looks at the server, which is this loop's.
        url, _ = await asyncio.to_thread(stack.enter_context, gateway(models=models))
        for rule in rules:
            model = f"asking@{rule['name']}"
            await measure_one(report, f"this, {rule['name']}", url, model, stand_in, pool, count)
        for rule in (best, scored):
            model, name = f"m@{rule['name']}", f"this, recorded scores, {rule['name']}"
            await measure_one(report, name, url, model, None, pool, count)
    if has(python, "its_hub.integration.iaas.app"):
        port = _free_port()
        url = f"http://127.0.0.1:{port}/v1"
        words = [python, "-m", "its_hub.integration.iaas.app_server", "--port", str(port)]
        async with process(words, url), httpx.AsyncClient(timeout=60, limits=LIMITS) as client:
            asked = {"endpoint": f"{upstream}/v1", "api_key": "none", "model": "m", "budget": n}
            asked |= {"alg": "self-consistency", "regex_patterns": [r"\\boxed\{([^}]*)\}"]}
            (await client.post(f"{url[:-3]}/configure", json=asked)).raise_for_status()
            await measure_one(report, f"its_hub, n = {n}", url, "m", stand_in, pool, count)
    if has(python, "optillm.server"):
        port = _free_port()
        url = f"http://127.0.0.1:{port}/v1"
        words = [python, "-m", "optillm.server", "--port", str(port), "--approach", "bon"]
        words += ["--best-of-n", str(n), "--base-url", f"{upstream}/v1"]
        async with process(words, url):
            await measure_one(report, f"optillm, bon, n = {n}", url, "m", stand_in, pool, count)
    server.close()
    return report


def _free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def bench(config: BenchGatewaysConfig) -> int:
    """Measures, shows and writes it."""
    return finish(lambda: asyncio.run(measure(config)), config.out, "bench_gateways", "gateways")


main = command(BenchGatewaysConfig, bench, __name__)

if __name__ == "__main__":
    sys.exit(main())
