"""Which cores of a CPU the processes around vLLM's engines run on.

On a CPU vLLM binds an engine's workers to all cores but one, and means that one for its scheduler,
but binds nothing to it. The scheduler, which does not sleep while there is work, and the process
that asks the engine are put on a worker's core as often as not. A worker cannot go elsewhere, and
all workers wait for the one that has lost its core.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

__all__ = ["leave_workers_their_cores", "with_all_cores"]

# The cores that this process began with; None = it takes any of them at any time.
_all: set[int] | None = None


def leave_workers_their_cores() -> None:
    """Has this process and the schedulers of its engines stay off the cores of their workers.

    For a process that does little else than ask its engines, as the commands do: it has only the
    cores that vLLM leaves free, one as a rule, as long as an engine runs whose workers are bound to
    cores (`EngineConfig.cpu_threads`). Where none is bound, as is usual on a GPU, nothing changes.
    Linux only.
    """
    global _all
    if _all is None and hasattr(os, "sched_getaffinity"):
        _all = os.sched_getaffinity(0)


@contextlib.contextmanager
def with_all_cores() -> Iterator[None]:
    """Gives this thread all cores, from which an engine that starts in it chooses its own.

    Afterwards they are shared out anew, which this is for as well where an engine has ended.
    """
    if _all is None:
        yield
        return
    os.sched_setaffinity(0, _all)
    try:
        yield
    finally:
        _share_out(_all)


def _share_out(everything: set[int]) -> None:
    """Leaves workers the cores that they are bound to, and everything else the others."""
    import psutil

    ours = psutil.Process()
    named = [(_name(one), one) for one in ours.children(recursive=True)]
    workers = [one for name, one in named if name.startswith("VLLM::Worker")]
    # The system cuts names off after 15 letters.
    schedulers = [one for name, one in named if name.startswith("VLLM::EngineCor")]
    each = [_cores(thread) for worker in workers for thread in _threads(worker)]
    # A thread that may run anywhere is bound to nothing.
    bound = set[int]().union(*(cores for cores in each if cores < everything))
    for process in (ours, *schedulers):
        for thread in _threads(process):
            with contextlib.suppress(OSError):  # it has ended
                os.sched_setaffinity(thread, everything - bound or everything)


def _name(process: "psutil.Process") -> str:
    import psutil

    try:
        return process.name()
    except psutil.Error:
        return ""  # it has ended


def _threads(process: "psutil.Process") -> list[int]:
    import psutil

    try:
        return [thread.id for thread in process.threads()]
    except psutil.Error:
        return []


def _cores(thread: int) -> set[int]:
    try:
        return os.sched_getaffinity(thread)
    except OSError:
        return set()
