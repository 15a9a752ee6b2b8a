"""Tables for the terminal, for Markdown and for CSV, from text and from columns of numbers."""

import csv
import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table as RichTable

__all__ = ["Table", "cells", "write_csv", "write_rows"]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table that people read.

    Attributes:
        title: What it shows.
        columns: Headings. The first `num_labels` columns are text, the others numbers.
        rows: Cells, as many in a row as there are headings; "" where nothing is known.
        notes: Sentences to stand below it.
        num_labels: Number of columns of text, at least 2.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    num_labels: int = 2

    def to_rich(self) -> RichTable:
        """The table for a terminal; the first cell is a heading above the rows that share it."""
        table = RichTable(
            title=self.title,
            caption="\n".join(self.notes) or None,
            box=box.SIMPLE_HEAD,
            title_justify="left",
            caption_justify="left",
            title_style="bold",
            pad_edge=False,
        )
        for index, name in enumerate(self.columns[1:], start=1):
            justify = "left" if index < self.num_labels else "right"
            # In a narrow terminal a cell goes in several lines; none is cut off.
            table.add_column(name, justify=justify, overflow="fold")
        previous = None
        for row in self.rows:
            if row[0] != previous:
                if previous is not None:
                    table.add_section()
                table.add_row(f"[bold]{escape(row[0])}[/]")
                previous = row[0]
            table.add_row(*map(escape, ("  " + row[1], *row[2:])))
        return table

    def to_markdown(self) -> str:
        """The table in Markdown, with its title above and its notes below."""

        def line(values: Iterable[str]) -> str:
            return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"

        rule = ["---" if i < self.num_labels else "---:" for i in range(len(self.columns))]
        parts = [f"**{self.title}**", ""]
        parts += [line(self.columns), line(rule), *map(line, self.rows)]
        if self.notes:
            parts += ["", "  \n".join(self.notes)]
        return "\n".join(parts) + "\n"


def cells(values: Any, unknown: Any = None) -> list[Any]:
    """An array as cells of a CSV file, flattened; "" where a value is not known.

    Args:
        values: Any shape. Booleans become 1 and 0; NaN is unknown.
        unknown: Boolean array of the same shape: further places that are unknown.

    Returns:
        Python numbers and empty strings.
    """
    array = np.asarray(values).ravel()
    if array.dtype == bool:
        array = array.astype(np.int8)
    hidden = np.zeros(array.shape, bool) if unknown is None else np.asarray(unknown, bool).ravel()
    if np.issubdtype(array.dtype, np.floating):
        hidden = hidden | np.isnan(array)
    # tolist makes Python numbers in C; the detour over objects is only for those that need it.
    return np.where(hidden, "", array.astype(object)).tolist() if hidden.any() else array.tolist()


def write_rows(file: IO[str], columns: Sequence[Iterable[Any]]) -> None:
    """Writes columns of equal length to an open CSV file, in C."""
    csv.writer(file, lineterminator="\n").writerows(zip(*columns, strict=True))


def write_csv(path: str | os.PathLike[str], columns: Mapping[str, Iterable[Any]]) -> None:
    """Writes a CSV file, UTF-8, with a line of headings.

    Args:
        path: The file, replaced if it exists.
        columns: Heading to cells, the same number for each; an empty string is an unknown value.

    Raises:
        ValueError: If the columns have different lengths.
    """
    with open(path, "w", encoding="utf-8", newline="") as file:
        write_rows(file, [[name] for name in columns])
        write_rows(file, list(columns.values()))
