"""What a long command shows while it works: bars in a terminal, elsewhere a line now and then."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column, Table
from rich.text import Text

__all__ = ["Watched", "duration", "progress"]

EVERY = 30.0
"""Seconds between the lines of a log."""


class Watched(Progress):
    """Bars on stderr, which vanish when all is done; outside a terminal a line every half minute.

    Attributes:
        below: Gives what to show with the bars, name to words, whenever it is shown.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._own = None if console else _stderr()
        console = console or Console(file=self._own or sys.stderr)
        self.below: Callable[[], Mapping[str, str]] = dict
        self._ended = threading.Event()
        self._lines: threading.Thread | None = None
        narrow = console.width < 80
        what = Column(no_wrap=True, overflow="ellipsis", max_width=22 if narrow else 40)
        columns: list[ProgressColumn | str] = [
            TextColumn("{task.description}", table_column=what, markup=False),
            *([] if narrow else [BarColumn(20)]),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            _Times(),
        ]
        hidden = not console.is_terminal
        super().__init__(*columns, console=console, transient=True, disable=hidden)

    def start(self) -> None:
        """Begins to show what there is to show."""
        super().start()
        if self.disable:
            self._lines = threading.Thread(target=self._write_lines, daemon=True)
            self._lines.start()

    def stop(self) -> None:
        """Shows nothing any more."""
        self._ended.set()
        if self._lines is not None:
            self._lines.join()
        super().stop()
        if self._own is not None:
            self._own.close()

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars, and below them the words."""
        yield self.make_tasks_table(self.tasks)
        words = Table.grid(padding=(0, 2))
        for name, text in self.below().items():
            words.add_row(Text(name, style="dim"), Text(text))
        yield words

    @property
    def line(self) -> str:
        """What a log says now: the task that was begun last and is not finished, and the words."""
        task = next((each for each in reversed(self.tasks) if not each.finished), None)
        if task is None:
            return ""
        counted = ""
        if task.total:
            counted = f": {task.completed:,.0f} of {task.total:,.0f}"
        words = (f"; {name}: {text}" for name, text in self.below().items())
        return f"{task.description}{counted}, {_times(task)}{''.join(words)}"

    def _write_lines(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # no one reads any more
            while not self._ended.wait(EVERY):
                if line := self.line:
                    print(line, file=self._own or sys.stderr, flush=True)


def _stderr() -> TextIO | None:
    """Standard error as it is now, since the start of an engine sends it to a log; None if none."""
    try:
        return os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding=sys.stderr.encoding)
    except (AttributeError, OSError, ValueError):  # a notebook's, a test's, or closed
        return None


class _Times(ProgressColumn):
    """How long a task has taken, and how long it will."""

    def render(self, task: Task) -> Text:
        return Text(_times(task), no_wrap=True)


def _times(task: Task) -> str:
    taken = task.elapsed or 0.0
    # At its rate so far: steps of a minute have no rate of the last half minute.
    if not task.total or not task.completed or task.finished:
        return duration(taken)
    left = taken * (task.total - task.completed) / task.completed
    return f"{duration(taken)}, {duration(left)} left"


def duration(seconds: float | int) -> str:
    """A time in the units that one says it in: 45 s, 3 min, 2 h 5 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def progress() -> Watched:
    """What to add a command's tasks to, shown for as long as it is open."""
    return Watched()
