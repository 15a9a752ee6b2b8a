"""Compares answers as mathematics in worker processes that are killed when they take too long.

math-verify parses LaTeX and lets SymPy compare: most answers take milliseconds, but a tower of
powers takes forever in a C function that no signal interrupts, so the limit has to be a kill.
"""

import contextlib
import json
import os
import queue
import re
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from optscale_jax.answers import normalize_answer

__all__ = ["EquivalenceChecker"]

_WORKER = Path(__file__).with_name("worker.py")
# Importing math-verify takes a second or two, on a busy machine many more.
_START_SECONDS = 120.0
# No answer is this long; a box that holds a whole solution is compared as text.
_LONGEST = 1000
# Nor nested this deep, where the parser's recursion takes its time to fail.
_DEEPEST = 40
# As `normalize_answer` writes them. No exponents: 1e5 is a product with Euler's number in LaTeX.
_NUMBER = re.compile(r"-?[0-9]+(?:/[0-9]+)?")
# A request fits into a pipe, so that writing it never waits for the worker.
assert 12 * _LONGEST < select.PIPE_BUF * 16


class EquivalenceChecker:
    r"""Tells whether two answers are the same, as `Equal` of `optscale_jax.answers`.

    Equal texts after `normalize_answer` are the same, and two different plain numbers are not;
    whatever else is put to math-verify: `\frac{\sqrt2}{2}` and `\frac{1}{\sqrt 2}`, `(x+1)^2` and
    `x^2+2x+1`. What it cannot read, or does not finish in time, is not the same.

    Safe to call from several threads, which then use several workers. Use it as a context manager,
    or call `close`.

    Args:
        seconds: The time that one comparison may take.
        workers: The most worker processes at once; each is started when it is first needed.

    Raises:
        ImportError: By a call, if math-verify is not installed.
    """

    def __init__(self, *, seconds: float | int = 5.0, workers: int = 2):
        if not seconds > 0 or workers < 1:
            raise ValueError(f"seconds and workers must be above 0, found {seconds} and {workers}")
        self.seconds = seconds
        self.workers = workers
        self.timeouts = 0
        """How many comparisons were given up."""
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(workers):
            self._idle.put(None)
        self._closed = threading.Event()

    def __call__(self, gold: str, answer: str) -> bool:
        """Compares two answers.

        Args:
            gold: The right answer, or another to compare with.
            answer: The answer.

        Returns:
            Whether they are the same.
        """
        decided = self.quick(gold, answer)
        return self._ask(gold, answer) if decided is None else decided

    @staticmethod
    def quick(gold: str, answer: str) -> bool | None:
        """Compares two answers where that takes no mathematics.

        Args:
            gold: An answer.
            answer: Another.

        Returns:
            Whether they are the same; None where only a worker can tell.
        """
        first, second = normalize_answer(gold), normalize_answer(answer)
        if first == second:
            return True
        if _NUMBER.fullmatch(first) and _NUMBER.fullmatch(second):
            return False
        if max(len(gold), len(answer)) > _LONGEST or max(map(_depth, (gold, answer))) > _DEEPEST:
            return False
        return None

    def _ask(self, gold: str, answer: str) -> bool:
        worker = self._idle.get()
        try:
            if self._closed.is_set():
                raise RuntimeError("this checker is closed")
            worker = worker or _Worker()
            reply = worker.ask([gold, answer], self.seconds)
            if reply is None:
                self.timeouts += 1
                worker.kill()
                worker = None
            return bool(reply)
        except BaseException:
            if worker is not None:
                worker.kill()
                worker = None
            raise
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Ends the workers; comparisons that they are at are waited for."""
        self._closed.set()
        for _ in range(self.workers):
            worker = self._idle.get()
            if worker is not None:
                worker.kill()
        for _ in range(self.workers):
            self._idle.put(None)

    def __enter__(self) -> "EquivalenceChecker":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Worker:
    def __init__(self):
        # -I: neither the working directory nor the user's settings decide what is imported.
        self.process = subprocess.Popen(
            [sys.executable, "-I", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            hello = self._reply(_START_SECONDS)
            if hello != "ready":
                raise ImportError(
                    f"{hello or 'the process that compares answers did not start'}; pip install "
                    "'optscale-jax[live]'"
                )
        except BaseException:
            self.kill()
            raise

    def ask(self, request: list[str], seconds: float | int) -> bool | None:
        """The reply, or None if there is none in time or the process has died of the question."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return None
        return self._reply(seconds)

    def _reply(self, seconds: float | int) -> Any:
        assert self.process.stdout is not None
        reply, deadline = b"", time.monotonic() + seconds
        while not reply.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                return None
            block = os.read(self.process.stdout.fileno(), 1 << 16)
            if not block:  # it has ended
                return None
            reply += block
        return json.loads(reply)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):  # by what it had not read
                stream.close()


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        if character in "{([":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "})]":
            depth -= 1
    return deepest
