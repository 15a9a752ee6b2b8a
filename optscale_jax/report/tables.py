"""Tables in every format: terminal, Markdown, LaTeX, CSV, the page; and CSV files of columns."""

import csv
import dataclasses
import io
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table as RichTable

from optscale_jax.study.metrics import Interval

__all__ = [
    "Cell",
    "Column",
    "Table",
    "cells",
    "interval_columns",
    "latex",
    "write_csv",
    "write_rows",
]


class Cell(NamedTuple):
    """A number in words.

    Attributes:
        text: What is shown; "" where nothing is known.
        number: The number itself, for CSV; NaN where it is not known, None for a text.
        best: Whether it is the best of its rows, and stands in bold.
    """

    text: str
    number: float | None = None
    best: bool = False


class Column(NamedTuple):
    """A column.

    Attributes:
        heading: What stands above it, with its unit.
        group: A heading over neighbouring columns of the same group; "" for none.
        text: Whether it holds text, and not numbers.
    """

    heading: str
    group: str = ""
    text: bool = False

    @property
    def name(self) -> str:
        """The heading with its group's."""
        return f"{self.group}: {self.heading}" if self.group else self.heading


class Line(NamedTuple):
    """A row, and how many rows its first cell stands for; 0 where it stands above already."""

    span: int
    cells: Sequence[Cell]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table that people read.

    Attributes:
        title: What it shows.
        columns: Columns, or their headings: the first `num_labels` are then text, the others
            numbers.
        rows: Cells or texts, as many in a row as there are columns; "" where nothing is known.
        notes: Sentences to stand below it.
        num_labels: Number of columns that name a row.
        blocks: Whether the first cell stands once for the rows that share it; in a terminal it is
            a heading above them in any case.
    """

    title: str
    columns: Sequence[str | Column]
    rows: Sequence[Sequence[str | Cell]]
    notes: Sequence[str] = ()
    num_labels: int = 2
    blocks: bool = False

    @property
    def heads(self) -> list[Column]:
        """The columns."""
        return [
            column if isinstance(column, Column) else Column(column, text=index < self.num_labels)
            for index, column in enumerate(self.columns)
        ]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Headings over columns in their order, "" for none, each with its number of columns."""
        named = itertools.groupby(column.group for column in self.heads)
        return [(group, len(list(columns))) for group, columns in named]

    @property
    def lines(self) -> list[Line]:
        """The rows, all cells as such."""
        rows = [[c if isinstance(c, Cell) else Cell(c) for c in row] for row in self.rows]
        found = []
        for _, block in itertools.groupby(rows, key=lambda row: row[0].text):
            for index, row in enumerate(own := list(block)):
                found.append(Line((0 if index else len(own)) if self.blocks else 1, row))
        return found

    def narrowed(self, groups: int) -> Iterator["Table"]:
        """The table in pieces of at most so many groups of columns each, without its notes."""
        names = [name for name, _ in self.groups if name]
        pieces = [names[i : i + groups] for i in range(0, len(names), groups)] or [[]]
        for piece in pieces:
            kept = [i for i, column in enumerate(self.heads) if column.group in ("", *piece)]
            yield dataclasses.replace(
                self,
                columns=[self.heads[i] for i in kept],
                rows=[[row[i] for i in kept] for row in self.rows],
                notes=(),
            )

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
        first, *others = self.heads
        for column in others:
            heading = f"{column.group}\n{column.heading}" if column.group else column.heading
            # In a narrow terminal a cell goes in several lines; none is cut off.
            justify = "left" if column.text else "right"
            table.add_column(heading, justify=justify, overflow="fold")
        previous = None
        for _, (head, label, *cells) in self.lines:
            if head.text != previous:
                if previous is not None:
                    table.add_section()
                words = head.text if first.text else f"{first.heading} = {head.text}"
                table.add_row(f"[bold]{escape(words)}[/]")
                previous = head.text
            shown = (f"[bold]{escape(c.text)}[/]" if c.best else escape(c.text) for c in cells)
            table.add_row(escape("  " + label.text), *shown)
        return table

    def to_markdown(self) -> str:
        """The table in Markdown, with its title above and its notes below; best in bold."""

        def line(values: Iterable[str]) -> str:
            return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"

        def shown(row: Line) -> Iterator[str]:
            yield row.cells[0].text if row.span else ""
            yield from (f"**{c.text}**" if c.best else c.text for c in row.cells[1:])

        parts = [f"**{self.title}**", "", line(column.name for column in self.heads)]
        parts += [line("---" if column.text else "---:" for column in self.heads)]
        parts += [line(shown(row)) for row in self.lines]
        if self.notes:
            parts += ["", "  \n".join(self.notes)]
        return "\n".join(parts) + "\n"

    def to_csv(self) -> str:
        """Numbers in full; a column `best` beside each says which are the best of their rows."""
        lines = self.lines
        numbers = [
            any(row.cells[i].number is not None for row in lines) for i in range(len(self.heads))
        ]
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        pairs = zip(self.heads, numbers, strict=True)
        writer.writerow(
            head
            for column, number in pairs
            for head in ((column.name, f"{column.name}, best") if number else (column.name,))
        )
        for _, row in lines:
            values: list[Any] = []
            for cell, number in zip(row, numbers, strict=True):
                if not number:
                    values.append(cell.text)
                elif cell.number is None or np.isnan(cell.number):
                    values += ["", ""]
                else:
                    values += [repr(float(cell.number)), int(cell.best)]
            writer.writerow(values)
        return file.getvalue()

    def to_latex(self) -> str:
        r"""A `table*` for `booktabs` and `multirow`; best in bold."""
        heads, lines = self.heads, self.lines
        tops, rules, start = [], [], 1
        for group, size in self.groups:
            if group:
                tops.append(rf"\multicolumn{{{size}}}{{c}}{{{latex(group)}}}")
                rules.append(rf"\cmidrule(lr){{{start}-{start + size - 1}}}")
            else:
                tops += [""] * size
            start += size
        labels = heads[: self.num_labels]
        names = [
            f"${h.heading}$" if len(h.heading) == 1 else h.heading.capitalize() for h in labels
        ]
        names += [latex(head.heading) for head in heads[self.num_labels :]]
        parts = [
            r"% \usepackage{booktabs,multirow}",
            r"\begin{table*}[t]",
            r"\centering",
            r"\small",
            r"\setlength{\tabcolsep}{4pt}",
            rf"\begin{{tabular}}{{{''.join('l' if head.text else 'r' for head in heads)}}}",
            r"\toprule",
            *([" & ".join(tops) + r" \\", " ".join(rules)] if rules else []),
            " & ".join(names) + r" \\",
        ]
        for index, (span, row) in enumerate(lines):
            if index == 0 or (self.blocks and span):
                parts.append(r"\midrule")
            first = latex(row[0].text)
            lead = rf"\multirow{{{span}}}{{*}}{{{first}}}" if self.blocks and span else first
            words = ["" if span == 0 else lead, *(latex(c.text) for c in row[1 : self.num_labels])]
            words += [
                rf"\textbf{{{latex(c.text)}}}" if c.best else latex(c.text) or "--"
                for c in row[self.num_labels :]
            ]
            parts.append(" & ".join(words) + r" \\")
        notes = " ".join(note if note.endswith(".") else f"{note}." for note in self.notes)
        parts += [
            r"\bottomrule",
            r"\end{tabular}",
            rf"\caption{{{latex(self.title)}. {latex(notes)}}}",
            r"\end{table*}",
        ]
        return "\n".join(parts) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "⁰": "$^0$",
    "ᵗ": "$^t$",
    "α": r"$\alpha$",
    "≥": r"$\ge$",
    "–": "--",
}


def latex(text: str) -> str:
    """Text for LaTeX, its special characters escaped."""
    return "".join(_LATEX.get(character, character) for character in text)


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


def interval_columns(name: str, intervals: Sequence[Interval | None]) -> dict[str, list[Any]]:
    """Three columns of a CSV file, with the ends of intervals beside their means."""
    parts = {
        f"{name}{suffix}": [np.nan if each is None else getattr(each, part) for each in intervals]
        for part, suffix in (("mean", ""), ("low", "_low"), ("high", "_high"))
    }
    return {heading: cells(np.array(values, float)) for heading, values in parts.items()}


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
