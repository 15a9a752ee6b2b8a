"""The gateway under load: what it adds to a request, and what it does when all goes wrong.

    python -m eval.bench.serve [--quick true] [--out DIR]

Clients are a process of their own, and so is the gateway, on the loopback. What it adds is measured
on a recorded pool without latency, beside `eval.solve`'s loop on the same pool in this process.
Failures are those of a server in this process that cuts streams and answers 500 and 429, while
clients hang up. Overload is that of a recorded pool's model that draws so many completions at once.
The exit code is 1 where a figure demanded is missed.
"""

import asyncio
import contextlib
import cProfile
import dataclasses
import json
import pstats
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from optscale_jax import policies
from optscale_jax.backends.recorded import RecordedSampler, RecordedVerifier, recorded_problems
from optscale_jax.checks import at_least, positive
from optscale_jax.cli import command
from optscale_jax.live.decider import decide_on_the_cpu
from optscale_jax.live.engine import solve_async
from optscale_jax.live.runs import Run
from optscale_jax.readers import read_pool
from optscale_jax.tiny import pool_path

from .clients import Load, ended
from .rows import Limit, Report, finish

POLICY = {"name": "optscale", "s_min": 0.7, "alpha": 0.95, "max_samples": 32, "min_samples": 4}
NAMES = [f"arithmetic-5/{i}" for i in random.Random(0).sample(range(400), 400)]


@dataclasses.dataclass(frozen=True)
class BenchServeConfig:
    """What to measure.

    Attributes:
        requests: Requests of each number of clients, at least 1.
        clients: Clients at once where all goes wrong, at least 1.
        seconds: How long that lasts, and each load beyond the capacity a third of it, above 0.
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
        module = f"{(__package__ or '').rpartition('.')[0]}.serve"  # a wheel has it elsewhere
        words = [sys.executable, "-m", module, "--config", str(file), "--port", "0"]
        with subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            try:
                assert process.stdout is not None
                said = process.stdout.readline()
                yield said.split()[-1], psutil.Process(process.pid)
            finally:
                process.terminate()


def recorded(seconds_per_token: float, **pace: Any) -> dict[str, Any]:
    """A model of the shipped pool."""
    pool = {"pool": str(pool_path()), "seconds_per_token": seconds_per_token, **pace}
    return {"name": "m", "recorded": pool, "policies": [POLICY], "equal": "text"}


def took(results: list[dict[str, Any]]) -> np.ndarray:
    """Seconds of each request."""
    return np.array([one["ended"] - one["began"] for one in results])


def lasted(results: list[dict[str, Any]]) -> float:
    """Seconds from the first request to the last answer."""
    return max(one["ended"] for one in results) - min(one["began"] for one in results)


def candidates(results: list[dict[str, Any]]) -> int:
    """Completions drawn for all answers."""
    return sum(one.get("candidates", 0) for one in results)


async def loop_alone(in_flight: int, folder: str | None) -> tuple[float, float]:
    """Completions a second of the live loop, with a run's directory if given; seconds a problem."""
    pool = read_pool(pool_path())
    problems = recorded_problems(pool)
    rule = policies.optscale(**{k: v for k, v in POLICY.items() if k != "name"})
    given = RecordedSampler(pool), RecordedVerifier(pool), rule
    await solve_async(problems[:4], *given)
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:
        run = folder and stack.enter_context(Run(folder, config="", problems=problems))
        solved = await solve_async(problems, *given, run=run or None, max_in_flight=in_flight)
        if run:
            run.finish()
    seconds = time.perf_counter() - began
    return sum(one.drawn for one in solved) / seconds, seconds / len(problems)


# What the loop's time goes to: the parts that are told apart, by file and functions.
PARTS = {
    "decisions": ("live/decider.py", {"_decide", "start", "end"}),
    "reading answers": ("optscale_jax/answers.py", {"extract_answer"}),
    "the directory": ("live/runs.py", {"add_drawn", "add_sample", "add_decision"}),
    "the recorded pool": ("backends/recorded.py", {"sample", "score"}),
}


def bench_ceiling(report: Report, turns: int = 5) -> None:
    """Completions a second of the live loop where models take no time, and where its time goes."""

    def once(kept: bool) -> float:
        with tempfile.TemporaryDirectory() as folder:
            return asyncio.run(loop_alone(256, f"{folder}/run" if kept else None))[0]

    once(True)
    bare, kept = (float(np.median([once(how) for _ in range(turns)])) for how in (False, True))
    # Of the processor, since the machine may be at work on other things.
    profile = cProfile.Profile(time.thread_time)
    profile.runcall(once, True)
    found: Any = pstats.Stats(profile)
    total, shares = found.total_tt, dict.fromkeys([*PARTS, "asyncio"], 0.0)
    for (file, _, function), (_, _, own, below, _) in found.stats.items():
        for part, (where, functions) in PARTS.items():
            shares[part] += below * (file.endswith(where) and function in functions)
        shares["asyncio"] += own * ("/asyncio/" in file)
    where = ", ".join(f"{share / total:.0%} {part}" for part, share in shares.items())
    report.add(
        "live loop alone, 256 problems in flight, models that take no time: completions/s",
        f"{kept:,.0f} with a run's directory, {bare:,.0f} without; with it, {where}; the rest is "
        "the loop's own",
        kept=Limit(kept, ">=", 5000),
        bare=bare,
    )


def bench_overhead(report: Report, requests: int) -> None:
    """What a request takes above the decisions themselves, and completions a second."""
    with gateway(models=[recorded(0.0)], max_concurrent=512) as (url, _):
        asyncio.run(ended(Load(url, NAMES, count=50)))
        for clients in (1, 32, 256):
            bare, decision = asyncio.run(loop_alone(clients, None))
            with tempfile.TemporaryDirectory() as folder:
                kept, _ = asyncio.run(loop_alone(clients, f"{folder}/run"))
            found = asyncio.run(ended(Load(url, NAMES, count=requests, clients=clients)))
            p50, p99 = np.quantile(took(found), [0.5, 0.99])
            through = candidates(found) / lasted(found)
            limits: dict[str, Any] = {"share": Limit(through / kept, ">=", 0.9)}
            if clients == 1:
                limits["overhead"] = Limit(1e3 * (p50 - decision), "<=", 5.0, " ms")
            report.add(
                f"{clients} clients, {requests} requests, no latency",
                f"p50 {1e3 * p50:.1f} ms, p99 {1e3 * p99:.1f} ms, of which the decisions "
                f"{1e3 * decision:.1f} ms; {through:,.0f} completions/s, {through / kept:.2f} of "
                f"eval.solve's and {through / bare:.2f} of its loop's without a run's directory",
                loop=bare,
                **limits,
            )


def bench_deadline(report: Report, requests: int) -> None:
    """Answers at a deadline of 2 s, of completions that take up to some ten."""
    # A process that has just compiled has more to do than one that serves.
    slow = {"optscale": {"seconds": 2}}
    with gateway(models=[recorded(0.02)]) as (url, _):
        asyncio.run(ended(Load(url, NAMES, count=1, fields=slow)))
        load = Load(url, NAMES, count=requests, clients=requests, fields=slow)
        found = asyncio.run(ended(load))
    last, statuses = max(took(found)), Counter(one["status"] for one in found)
    reasons = Counter(one["reason"] for one in found if one["status"] == 200)
    report.add(
        f"deadline of 2 s, {requests} requests at once of a slow model",
        f"statuses {dict(statuses)} (504: no completion yet), the last after {last:.2f} s; "
        f"{dict(reasons)}",
        last=Limit(last, "<=", 2.2, " s"),
        failed=Limit(sum(statuses.values()) - statuses[200] - statuses[504], "==", 0),
    )


class Failing:
    """A server of which 1 answer in 20 is 500, 429 or a cut stream.

    Attributes:
        asked: Requests so far.
        open: Connections.
        work: When what is said was worked on, as pairs of beginning and end.
    """

    def __init__(self) -> None:
        self.asked = self.open = 0
        self.work: dict[str, list[tuple[float, float]]] = defaultdict(list)

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
            began = time.monotonic()
            try:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(), random.uniform(0.2, 2.0))
                    return
            finally:
                self.work[name].append((began, time.monotonic()))
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


def _plain(status: int, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    return head.encode() + data


def _event(choice: dict[str, Any], **more: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [choice], **more}).encode() + b"\n\n"


def bench_failures(report: Report, clients: int, seconds: float) -> None:
    """Clients that hang up and a server that fails: who is answered, and what is left behind."""

    async def run() -> None:
        failing = Failing()
        server = await asyncio.start_server(failing, "127.0.0.1", 0, backlog=4096)
        upstream = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        at = {"base_urls": [upstream], "backoff": 0.05, "concurrency": 4096, "attempts": 6}
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
            # What Python and JAX take once, for so many clients, is no leak.
            await ended(Load(url, [], seconds=seconds / 4, clients=clients, hang_up=0.05))
            await asyncio.sleep(10)
            before = await asyncio.to_thread(_held, process)
            failing.work.clear()
            found = await ended(Load(url, [], seconds=seconds, clients=clients, hang_up=0.05))
            for _ in range(30):  # connections that are kept alive end by themselves
                await asyncio.sleep(1)
                after = await asyncio.to_thread(_held, process)
                if after[0] <= before[0]:
                    break
        server.close()
        met = Counter(one["status"] for one in found)
        ids = [one["id"] for one in found if one["status"] == 200]
        gone = {one["name"]: one["ended"] for one in found if one["status"] == "hung up"}
        late = [
            end - gone[name] for name in gone for _, end in failing.work[name] if end > gone[name]
        ]
        answered = [one for one in found if one["status"] == 200]
        report.add(
            f"{clients} clients for {seconds:g} s, 5% hang up, 5% of the server's answers fail",
            f"{dict(met)}, p50 {np.quantile(took(answered), 0.5):.1f} s, p99 "
            f"{np.quantile(took(answered), 0.99):.1f} s; {failing.asked} asked of the server; "
            f"sockets {before[0]} before and {after[0]} after, {before[1]:.0f} MiB and "
            f"{after[1]:.0f} MiB; {len(late)} requests of gone clients aborted, the last after "
            f"{max(late, default=0):.2f} s",
            lost=Limit(len(found) - met[200] - met["hung up"], "==", 0),
            twice=Limit(len(ids) - len(set(ids)), "==", 0),
            sockets=Limit(after[0] / before[0], "<=", 1.1),
            memory=Limit(after[1] / before[1], "<=", 1.1),
            late=Limit(max(late, default=0.0), "<=", 1.0, " s"),
        )

    asyncio.run(run())


def bench_overload(report: Report, seconds: float) -> None:
    """Loads about and beyond what a full model serves: latency and accuracy, with and without."""
    gold = {one.id: f"\\boxed{{{one.answer}}}" for one in recorded_problems(read_pool(pool_path()))}
    model = recorded(0.0015, max_num_seqs=64)

    def load(url: str, **how: Any) -> list[dict[str, Any]]:
        return asyncio.run(ended(Load(url, NAMES, seconds=seconds, **how)))

    with gateway(models=[model], max_concurrent=16) as (url, _):
        load(url, clients=4)
        full = load(url, clients=16)
        at_most = len(full) / lasted(full)
        tokens = sum(one["tokens"] for one in full) / lasted(full)
    reached: dict[tuple[bool, float], float] = {}
    for limited, loads in ((False, (0.5, 2.0)), (True, (0.5, 1.0, 1.5, 2.0, 3.0))):
        given = {"tokens_per_second": 0.9 * tokens} if limited else {}
        with gateway(models=[model], max_concurrent=16, **given) as (url, _):
            for times in loads:
                found = load(url, rate=times * at_most)
                # The first third is on the way from the load before.
                began = min(one["began"] for one in found) + seconds / 3
                late = [one for one in found if one["began"] > began]
                good = [one for one in late if one["status"] == 200]
                p95 = reached[limited, times] = float(np.quantile(took(good), 0.95))
                right = np.mean([one["text"] == gold[one["name"]] for one in good])
                within = Limit(p95 / reached[True, 1.0], "<=", 2.0) if times == 2 and limited else 0
                report.add(
                    f"{times:g} times the capacity of {at_most:.1f} requests/s, "
                    f"{'with' if limited else 'without'} tokens_per_second",
                    f"p95 {p95:.2f} s, {np.mean([one['samples'] for one in good]):.1f} samples and "
                    f"{np.mean([one['tokens'] for one in good]):.0f} tokens a request, accuracy "
                    f"{100 * right:.1f}%, share {np.mean([one['share'] for one in good]):.2f}; "
                    f"{len(good)} answered, {len(late) - len(good)} refused",
                    p95=p95,
                    accuracy=float(right),
                    p95_to_capacity=within,
                )


def _held(process: psutil.Process) -> tuple[int, float]:
    """Open sockets and MiB of memory."""
    return len(process.net_connections()), process.memory_info().rss / 2**20


def bench(config: BenchServeConfig) -> int:
    """Measures everything, shows and writes it; returns 1 where a figure is missed."""
    return finish(lambda: measure(config), config.out, "bench_serve", "gateway")


def measure(config: BenchServeConfig) -> Report:
    """All measurements."""
    decide_on_the_cpu()
    report, part = Report(), 4 if config.quick else 1
    bench_ceiling(report)
    bench_overhead(report, max(1, config.requests // part))
    bench_deadline(report, 100)
    bench_overload(report, config.seconds / 3 / part)
    bench_failures(report, config.clients, config.seconds / part)
    return report


main = command(BenchServeConfig, bench, __name__)

if __name__ == "__main__":
    sys.exit(main())
