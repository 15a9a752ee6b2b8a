"""A live run in shards on Ray against one process: what kills change, and how fast two shards are.

    python -m eval.bench.shards [--quick true] [--out DIR]

Every run is `eval.solve` in a process of its own, with a cluster of its own, on a made pool in the
place of the models. Shards are killed (SIGKILL) at random moments, and the command once. Speed is
that without latency, from when every shard draws until nine tenths are there, in turns of one shard
and of two. The exit code is 1 where a figure demanded is missed.
"""

import contextlib
import dataclasses
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from optscale_jax.checks import at_least
from optscale_jax.cli import command
from optscale_jax.live.runs import read_run
from optscale_jax.records import Decision
from optscale_jax.synthetic import synthetic_pool

from .rows import Limit, Report, finish

N = 16
# One completion of a problem at a time: what is spent does not hang on what ends first.
RULE = {"name": "optscale", "s_min": 0.9, "alpha": 0.9, "max_samples": N, "min_samples": 4}
EVERY = 0.05  # seconds between looks at a run's directory


@dataclasses.dataclass(frozen=True)
class BenchShardsConfig:
    """What to measure.

    Attributes:
        problems: Of the run whose shards are killed, at least 1.
        kills: How many shards are killed, at least 0.
        fast_problems: Of each run without latency, at least 1.
        turns: How often each of these is run, at least 1.
        seed: Of the moments of the kills.
        quick: Whether to take a tenth of the problems and of the kills, and one turn.
        out: Folder for bench_shards.json and bench_shards.md, made if there is none. null: none.
    """

    problems: int = 1000
    kills: int = 10
    fast_problems: int = 6000
    turns: int = 3
    seed: int = 0
    quick: bool = False
    out: str | None = None

    def __post_init__(self) -> None:
        """Refuses numbers outside their domain."""
        at_least(self, 1, "problems", "fast_problems", "turns")
        at_least(self, 0, "kills", "seed")


class Solving:
    """`eval.solve` at work in a process of its own, with a pool in the place of the models."""

    def __init__(
        self, folder: Path, out: str, shards: int, *, max_in_flight: int = 256, **recorded: Any
    ):
        self.out = folder / out
        ray = {"address": "local", "shards": shards, "cpus_per_shard": 0.1} if shards else {}
        config = {"recorded": recorded, "policy": RULE, "max_in_flight": max_in_flight, "ray": ray}
        config |= {"max_ahead": 1, "equal": "text", "out": str(self.out)}
        file = folder / f"{out}.yaml"
        file.write_text(json.dumps(config))
        module = f"{(__package__ or '').rpartition('.')[0]}.solve"  # a wheel has it elsewhere
        environment = {"RAY_USAGE_STATS_ENABLED": "0", **os.environ}
        self._read: defaultdict[Path, int] = defaultdict(int)
        self._lines: defaultdict[Path, int] = defaultdict(int)
        self._command: Any = [sys.executable, "-m", module, "--config", str(file)], environment
        self.begin()

    def begin(self) -> None:
        """Starts the command, or starts it again."""
        words, environment = self._command
        self._process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)

    def parts(self) -> list[Path]:
        """The parts of its directory that shards are at work on, or were."""
        return sorted(self.out.glob("shards/*"))

    def kept(self, place: Path | None = None) -> int:
        """How many completions there are, in all or in one part."""
        places = [self.out, *self.parts()] if place is None else [place]
        for one in places:
            with contextlib.suppress(FileNotFoundError), open(one / "samples.jsonl", "rb") as file:
                file.seek(self._read[one])
                more = file.read()
                self._read[one] += more.rfind(b"\n") + 1
                self._lines[one] += more.count(b"\n")
        return sum(self._lines[one] for one in places)

    def until(self, true: Callable[[], bool]) -> None:
        """Returns when it is true, or the command has ended."""
        while not true() and self._process.poll() is None:
            time.sleep(EVERY)

    def kill(self) -> None:
        """Kills the command."""
        self._process.kill()
        self._process.wait()

    def end(self) -> tuple[dict[str, Decision], set[tuple[str, int]]]:
        """Its decisions, and which completions it has kept, once it has ended."""
        assert self._process.wait() == 0
        lines = (self.out / "samples.jsonl").read_bytes().splitlines()
        drawn = {(one["problem_id"], one["index"]) for one in map(json.loads, lines)}
        return read_run(self.out)[0], drawn


def made(folder: Path, problems: int) -> str:
    """A pool's file."""
    file = folder / f"{problems}.npz"
    synthetic_pool(jax.random.key(1), num_problems=problems, num_samples=N).save(file)
    return str(file)


def bench_kills(report: Report, folder: Path, config: BenchShardsConfig) -> None:
    """Four shards, some of which are killed at random moments, and once the command."""
    pool, moments = made(folder, config.problems), random.Random(config.seed)
    alone, all_drawn = Solving(folder, "alone", 0, pool=pool).end()
    shares = [(moments.uniform(0.05, 0.9), "shard") for _ in range(config.kills)]
    shares.append((moments.uniform(0.3, 0.7), "command"))
    run = Solving(folder, "killed", 4, max_in_flight=32, pool=pool, seconds_per_token=1e-3)
    killed, begun = 0, 4
    for share, what in sorted(shares):
        run.until(lambda share=share: run.kept() >= share * len(all_drawn))
        if what == "command":
            run.kill()
            run.begin()
            begun += 4
            continue
        run.until(lambda begun=begun: len(run.parts()) == begun)
        if not (there := run.parts()[-4:]):
            break
        part = moments.choice(there)
        before = run.kept(part)
        run.until(lambda part=part, before=before: run.kept(part) > before)  # it is at work
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((part / "lock").read_text()), signal.SIGKILL)
            killed += 1
    decisions, drawn = run.end()
    same = sum(decisions.get(name) == decision for name, decision in alone.items())
    report.add(
        f"4 shards, {killed} of them and the command killed, against one process",
        f"{same} of {len(alone)} decisions the same, ledgers too; {len(drawn)} completions kept "
        f"for {len(all_drawn)}",
        killed=Limit(killed, "==", config.kills),
        same=Limit(same, "==", len(alone)),
        missing=Limit(len(all_drawn ^ drawn), "==", 0),
    )


def rate(run: Solving, least: int) -> float:
    """Completions a second from when every shard draws until so many are there."""
    run.until(lambda: len(parts := run.parts()) > 0 and all(map(run.kept, parts)))
    start, before = time.perf_counter(), run.kept()
    run.until(lambda: run.kept() >= least)
    seconds, after = time.perf_counter() - start, run.kept()
    run.end()
    return (after - before) / seconds


def bench_speed(report: Report, folder: Path, problems: int, turns: int) -> None:
    """One shard against two, without latency."""
    pool = made(folder, problems)
    least, found = int(0.9 * len(Solving(folder, "all", 0, pool=pool).end()[1])), []
    for turn in range(turns):
        one, two = (rate(Solving(folder, f"{k}-{turn}", k, pool=pool), least) for k in (1, 2))
        found.append((one, two))
        print(
            f"  turn {turn}: one shard {one:,.0f}, two {two:,.0f}, {two / one:.2f} times",
            flush=True,
        )
    one, two = map(statistics.median, zip(*found, strict=True))
    ratio = statistics.median(two / one for one, two in found)
    report.add(
        "two shards against one, no latency, completions/s, median of turns",
        f"{two:,.0f} against {one:,.0f}, {ratio:.2f} times",
        ratio=Limit(ratio, ">=", 1.6),
        one=one,
        two=two,
    )


def bench(config: BenchShardsConfig) -> int:
    """Measures everything, shows and writes it; returns 1 where a figure is missed."""
    return finish(lambda: measure(config), config.out, "bench_shards", "shards of a live run")


def measure(config: BenchShardsConfig) -> Report:
    """All measurements."""
    if config.quick:
        tenth = {
            name: -(-getattr(config, name) // 10) for name in ("problems", "kills", "fast_problems")
        }
        config = dataclasses.replace(config, **tenth, turns=1)
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        bench_kills(report, Path(folder), config)
        bench_speed(report, Path(folder), config.fast_problems, config.turns)
    return report


main = command(BenchShardsConfig, bench, __name__)

if __name__ == "__main__":
    sys.exit(main())
