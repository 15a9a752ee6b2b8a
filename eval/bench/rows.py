"""What the benches share: rows of figures demanded, and the machine that they were measured on."""

import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil

from optscale_jax.cli import output_folder
from optscale_jax.report.tables import Table

__all__ = ["Report", "finish", "machine"]


class Report:
    """Rows of (what, figure, demanded, met), shown as they come."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, what: str, figure: str, demanded: str, met: bool | np.bool, **raw: float) -> None:
        """One row; `raw` are its figures as numbers."""
        self.rows.append(dict(what=what, figure=figure, demanded=demanded, met=bool(met), **raw))
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


def machine() -> str:
    """What a speed was measured on."""
    return (
        f"{platform.machine()}, {psutil.cpu_count()} cores, JAX {jax.__version__} on "
        f"{jax.default_backend()}"
    )


def finish(
    measure: Callable[[], Report], out: str | None, names: Sequence[str], subject: str
) -> int:
    """Measures, and writes the rows if a folder is given, which is tried before.

    Args:
        measure: Makes the rows.
        out: The folder; None: nothing is written.
        names: Of the JSON and the Markdown file.
        subject: What is measured, for the table's title.

    Returns:
        1 where a figure is missed, else 0.
    """
    if out is None:
        report = measure()
    else:
        with output_folder(Path(out), names) as folder:
            report = measure()
            (folder / names[0]).write_text(json.dumps(report.rows, indent=1) + "\n")
            (folder / names[1]).write_text(report.table(subject).to_markdown())
    return int(not report.met)
