"""Processes that end when the one that started them does, whatever ended it.

An engine's processes wait for messages that never come when their parent is killed, and hold its
memory. Each looks for its parent on a thread of its own, from its first moment; the system's signal
for a parent's death would also come when only the parent's thread ends.
"""

import contextlib
import functools
import os
import runpy
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import spawn
from multiprocessing.process import BaseProcess
from typing import Any

__all__ = ["bound_to_this_process"]

_LOOK_EVERY_SECONDS = 0.5
_start = BaseProcess.start


@contextlib.contextmanager
def bound_to_this_process() -> Iterator[None]:
    """Binds what is started meanwhile by multiprocessing, and what that starts, to its parent."""
    BaseProcess.start = _start_bound
    try:
        yield
    finally:
        BaseProcess.start = _start


def _start_bound(self: Any) -> None:
    method = self._start_method
    if method == "fork":
        self._target = functools.partial(_run, os.getpid(), self._target)
    prepared = spawn.get_preparation_data
    if method == "spawn":
        spawn.get_preparation_data = lambda name: {"bound": _Bound(), **prepared(name)}
    try:
        _start(self)
    finally:
        spawn.get_preparation_data = prepared


class _Bound:
    """Binds the process that unpickles it, before that imports what it is to run.

    This file is run there by its path: neither the package nor its place is known so early.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return runpy.run_path, (__file__, {"PARENT": os.getpid()})


def _run(parent: int, target: Callable[..., None], *arguments: Any, **named: Any) -> None:
    _bind(parent)
    target(*arguments, **named)


def _bind(parent: int) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    # Without a terminal's signals: an interrupted or hung-up parent ends its work with it first.
    os.setpgid(0, 0)
    BaseProcess.start = _start_bound


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


if "PARENT" in globals():
    _bind(globals()["PARENT"])
