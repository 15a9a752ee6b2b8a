"""What the benches share: rows of figures demanded, and the machine that they were measured on."""

import json
import operator
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import psutil

from optscale_jax.cli import output_folder
from optscale_jax.report.tables import Table

__all__ = ["Limit", "Report", "finish", "machine", "timed"]

_SIGNS = {"<": operator.lt, "<=": operator.le, "==": operator.eq, ">=": operator.ge}


class Limit(NamedTuple):
    """A figure and what is demanded of it, such as Limit(ratio, ">=", 5000, " x")."""

    value: float
    sign: str
    bound: float
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether the figure is what is demanded."""
        return bool(_SIGNS[self.sign](self.value, self.bound))

    def __str__(self) -> str:
        """What is demanded, in words."""
        return f"{self.sign} {self.bound:,g}{self.unit}"


class Report:
    """Rows of (what, figure, demanded, met), shown as they come."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, what: str, figure: str, **figures: Limit | float) -> None:
        """One row: what is measured, in words what came of it, and its figures, limited or not."""
        limits = [found for found in figures.values() if isinstance(found, Limit)]
        raw = {name: float(v.value if isinstance(v, Limit) else v) for name, v in figures.items()}
        demanded, met = " and ".join(map(str, limits)), all(limit.met for limit in limits)
        self.rows.append(dict(what=what, figure=figure, demanded=demanded, met=met, **raw))
        print(f"  {what}: {figure}  [{demanded}] {'ok' if met else 'MISSED'}", flush=True)

    @property
    def met(self) -> bool:
        """Whether no row is missed."""
        return all(row["met"] for row in self.rows)

    def table(self, subject: str) -> Table:
        """All rows, for people."""
        return Table(
            title=f"{subject}, {machine()}",
            columns=("what", "figure", "demanded", ""),
            rows=[
                (row["what"], row["figure"], row["demanded"], "ok" if row["met"] else "MISSED")
                for row in self.rows
            ],
            num_labels=4,
        )


@contextmanager
def timed(seconds: list[float]) -> Iterator[None]:
    """Adds the seconds that a block takes to a list."""
    start = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - start)


def machine() -> str:
    """What a speed was measured on."""
    return (
        f"{platform.machine()}, {psutil.cpu_count()} cores, JAX {jax.__version__} on "
        f"{jax.default_backend()}"
    )


def finish(measure: Callable[[], Report], out: str | None, name: str, subject: str) -> int:
    """Measures, and writes the rows if a folder is given, which is tried before.

    Args:
        measure: Makes the rows.
        out: The folder; None: nothing is written.
        name: Of the files, NAME.json and NAME.md.
        subject: What is measured, for the table's title.

    Returns:
        1 where a figure is missed, else 0.
    """
    if out is None:
        return int(not measure().met)
    files = f"{name}.json", f"{name}.md"
    with output_folder(Path(out), files) as folder:
        report = measure()
        texts = json.dumps(report.rows, indent=1) + "\n", report.table(subject).to_markdown()
        for file, text in zip(files, texts, strict=True):
            (folder / file).write_text(text)
    return int(not report.met)
