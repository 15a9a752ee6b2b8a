"""Compares answers by their canonical forms, which worker processes make and a file on disk keeps.

An answer is read once (`forms/`), however many it is compared with. A worker that takes too long
is killed: the forms are bounded, but an answer is arbitrary text.
"""

import contextlib
import hashlib
import json
import os
import queue
import re
import select
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from optscale_jax.answers import Equal, answers_equal, normalize_answer
from optscale_jax.plugins import load_object

__all__ = ["EquivalenceChecker", "cache_folder", "comparison"]

# Run as a folder, whose `__main__.py` finds `forms/` beside it and nothing of the package.
_WORKER = Path(__file__).parent
# Importing takes a fraction of a second, on a busy machine many.
_START_SECONDS = 120.0
# Nothing longer is read, and a request fits into a pipe, so that writing it never waits.
_LONGEST = 1000
assert 12 * _LONGEST < select.PIPE_BUF * 16
# As `normalize_answer` writes them.
_NUMBER = re.compile(r"-?[0-9]+(?:/[0-9]+)?")

Form = list[str] | None


def cache_folder() -> Path:
    """Where what can be computed again is kept: $OPTSCALE_CACHE, or the platform's place for it."""
    if given := os.environ.get("OPTSCALE_CACHE"):
        return Path(given).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "optscale"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/optscale"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "optscale"


@contextlib.contextmanager
def comparison(name: str, *, seconds: float | int = 5.0) -> Iterator[Equal]:
    """The comparison of answers that a configuration's `equal` names, for as long as it is needed.

    Args:
        name: "text", numbers by value and all else by its normalised text; "math", an
            `EquivalenceChecker` with its cache in `cache_folder`; or `module:function`.
        seconds: As for `EquivalenceChecker`.

    Yields:
        The comparison.

    Raises:
        InputError: If there is none of that name.
    """
    if name == "math":
        workers = min(os.cpu_count() or 1, 8)
        with EquivalenceChecker(seconds=seconds, workers=workers, cache=cache_folder()) as checker:
            yield checker
    else:
        yield load_object(name, what="equal", shipped={"text": answers_equal, "math": None})


class EquivalenceChecker:
    r"""Tells whether two answers are the same, as `Equal` of `optscale_jax.answers`.

    Answers of the same text after `normalize_answer` are the same, and so are those whose forms
    say so (`forms/` has the rule): `\frac{\sqrt2}{2}` and `\frac{1}{\sqrt 2}`, `(x+1)^2` and
    `x^2+2x+1`, `5` and `5 kg`. It is symmetric; an answer that is not wholly understood, or not in
    time, is the same as its own text only.

    Safe to call from several threads. Use it as a context manager, or call `close`.

    Args:
        seconds: The time that reading one answer may take.
        workers: The most worker processes at once; each is started when it is first needed.
        cache: Folder that keeps what was read, for all processes and for good; None: nothing is
            kept. Where it cannot be written, nothing is.

    Raises:
        ImportError: By a call, if mpmath is not installed.
    """

    def __init__(
        self,
        *,
        seconds: float | int = 5.0,
        workers: int = 2,
        cache: str | os.PathLike[str] | None = None,
    ):
        if not seconds > 0 or workers < 1:
            raise ValueError(f"seconds and workers must be above 0, found {seconds} and {workers}")
        self.seconds = seconds
        self.workers = workers
        self.timeouts = 0
        """How many answers were given up."""
        self._forms: dict[str, Form] = {}
        self._cache = None if cache is None else _Cache(Path(cache))
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
        texts = normalize_answer(gold), normalize_answer(answer)
        if texts[0] == texts[1]:
            return True
        if all(map(_NUMBER.fullmatch, texts)):
            return False
        if gold not in self._forms or answer not in self._forms:
            self.prepare([gold, answer])
        first, second = self._forms[gold], self._forms[answer]
        if first is None or second is None:
            return False
        return first[0] in second or second[0] in first

    def prepare(self, answers: Iterable[str]) -> None:
        """Reads answers ahead of their comparison, all workers at once.

        Args:
            answers: Any, also such as were read before.
        """
        new = [answer for answer in dict.fromkeys(answers) if answer not in self._forms]
        if self._cache is not None and new:
            self._forms |= self._cache.found(new)
            new = [answer for answer in new if answer not in self._forms]
        if not new:
            return
        if len(new) == 1 or self.workers == 1:
            read = [self._read(answer) for answer in new]
        else:
            with ThreadPoolExecutor(min(self.workers, len(new))) as threads:
                read = list(threads.map(self._read, new))
        self._forms |= {answer: form for answer, (form, _) in zip(new, read, strict=True)}
        if self._cache is not None:
            self._cache.keep({a: form for a, (form, done) in zip(new, read, strict=True) if done})

    def _read(self, answer: str) -> tuple[Form, bool]:
        """An answer's form, and whether it would be the same another time."""
        if len(answer) > _LONGEST:
            return None, True
        worker = self._idle.get()
        try:
            if self._closed.is_set():
                raise RuntimeError("this checker is closed")
            worker = worker or _Worker()
            reply = worker.ask(answer, self.seconds)
            if reply is None:
                self.timeouts += 1
                worker.kill()
                worker = None
            return (reply or [None])[0], reply is not None
        except BaseException:
            if worker is not None:
                worker.kill()
                worker = None
            raise
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Ends the workers; what they are at is waited for."""
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


class _Cache:
    """Forms by answer in an SQLite file, whose name has the version of the rule that made them."""

    def __init__(self, folder: Path):
        rule = b"".join(file.read_bytes() for file in sorted(_WORKER.glob("forms/*.py")))
        version = hashlib.sha256(rule).hexdigest()[:12]
        self.path = folder / f"answers-{version}.sqlite"
        self.lock = threading.Lock()

    def _each(self, statement: str, rows: list[tuple[str, ...]]) -> list[tuple[str, str]]:
        """What a statement gives for each row; nothing where the file cannot be used."""
        with self.lock, contextlib.suppress(OSError, sqlite3.Error):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(self.path, timeout=30)) as file, file:
                file.execute("CREATE TABLE IF NOT EXISTS forms (answer PRIMARY KEY, form)")
                return [found for row in rows for found in file.execute(statement, row)]
        return []

    def found(self, answers: list[str]) -> dict[str, Form]:
        rows = [(json.dumps(answer),) for answer in answers]
        found = self._each("SELECT answer, form FROM forms WHERE answer = ?", rows)
        return {json.loads(answer): json.loads(form) for answer, form in found}

    def keep(self, forms: dict[str, Form]) -> None:
        rows = [(json.dumps(answer), json.dumps(form)) for answer, form in forms.items()]
        if rows:
            self._each("INSERT OR REPLACE INTO forms VALUES (?, ?)", rows)


class _Worker:
    def __init__(self):
        # -I: neither the working directory nor the user's settings decide what is imported.
        self.process = subprocess.Popen(
            [sys.executable, "-I", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            hello = self._reply(_START_SECONDS)
            if hello != "ready":
                assert self.process.stderr is not None
                self.process.kill()
                said = self.process.stderr.read().decode(errors="replace").strip()
                reason = said.splitlines()[-1] if said else "its process did not start"
                raise ImportError(
                    f"answers cannot be compared as mathematics ({reason}); pip install "
                    "'optscale-jax[readers]'"
                )
        except BaseException:
            self.kill()
            raise

    def ask(self, answer: str, seconds: float | int) -> list[Form] | None:
        """The form in a list; None if there is none in time or the process has died of it."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(answer).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return None
        reply = self._reply(seconds)
        return None if reply is _NONE else [reply]

    def _reply(self, seconds: float | int) -> Any:
        assert self.process.stdout is not None
        reply, deadline = b"", time.monotonic() + seconds
        while not reply.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                return _NONE
            block = os.read(self.process.stdout.fileno(), 1 << 16)
            if not block:  # it has ended
                return _NONE
            reply += block
        return json.loads(reply)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):  # by what it had not read
                stream.close()


_NONE: Any = object()
