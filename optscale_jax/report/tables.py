"""Tables in every format: terminal, Markdown, LaTeX, CSV, the page; and CSV files of columns."""

import csv
import dataclasses
import io
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table as RichTable

from optscale_jax.study.metrics import Interval
from optscale_jax.study.outcomes import ValueKind

__all__ = [
    "UNITS",
    "Cell",
    "Column",
    "Table",
    "Unit",
    "answered",
    "cells",
    "interval_columns",
    "latex",
    "mean_of",
    "or_dash",
    "setting_cell",
    "write_csv",
    "write_rows",
]


class Cell(NamedTuple):
    """A number in words."""

    text: str  # what is shown; "" where nothing is known
    number: float | None = None  # for CSV; NaN where it is not known, None for a text
    best: bool = False  # of its rows: it stands in bold


class Column(NamedTuple):
    """A column."""

    heading: str  # what stands above it, with its unit
    group: str = ""  # a heading over neighbouring columns of the same group; "" for none
    text: bool = False  # whether it holds text, and not numbers

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
        columns: list[list[Any]] = []
        by_column = zip(*(row for _, row in self.lines), strict=True)
        for head, column in zip(self.heads, by_column, strict=True):
            if all(cell.number is None for cell in column):
                columns.append([head.name, *(cell.text for cell in column)])
                continue
            numbers = np.array([np.nan if c.number is None else c.number for c in column], float)
            best = cells([cell.best for cell in column], unknown=np.isnan(numbers))
            columns += [[head.name, *cells(numbers)], [f"{head.name}, best", *best]]
        file = io.StringIO()
        write_rows(file, columns)
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


_LATEX = {character: rf"\{character}" for character in "&%$#_{}"}
_LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {"±": r"$\pm$", "⁰": "$^0$", "ᵗ": "$^t$", "α": r"$\alpha$", "≥": r"$\ge$", "–": "--"}


def latex(text: str) -> str:
    """Text for LaTeX, its special characters escaped."""
    return text.translate(str.maketrans(_LATEX))


def cells(values: Any, unknown: Any = None) -> list[Any]:
    """An array as cells of a CSV file, flattened: Python numbers, and "" where one is not known.

    NaN is unknown, and so is each place where `unknown`, of the same shape, is true. Booleans
    become 1 and 0.
    """
    array = np.asarray(values).ravel()
    if array.dtype == bool:
        array = array.astype(np.int8)
    hidden = np.zeros(array.shape, bool) if unknown is None else np.asarray(unknown, bool).ravel()
    if np.issubdtype(array.dtype, np.floating):
        hidden = hidden | np.isnan(array)
    # tolist makes Python numbers in C; the detour over objects is only for those that need it.
    return np.where(hidden, "", array.astype(object)).tolist() if hidden.any() else array.tolist()


def setting_cell(value: Any) -> Any:
    """A policy's argument as a cell of a CSV file."""
    return "" if value is None else int(value) if isinstance(value, bool) else value


def mean_of(metric: str) -> str:
    """The heading of a metric's means."""
    return metric if metric == "accuracy" else f"mean_{metric}"


def interval_columns(name: str, intervals: Sequence[Interval | None]) -> dict[str, list[Any]]:
    """Three columns of a CSV file, with the ends of intervals beside their means."""
    parts = {
        f"{name}{suffix}": [np.nan if each is None else getattr(each, part) for each in intervals]
        for part, suffix in (("mean", ""), ("low", "_low"), ("high", "_high"))
    }
    return {heading: cells(np.array(values, float)) for heading, values in parts.items()}


def write_rows(file: io.TextIOBase, columns: Iterable[Iterable[Any]]) -> None:
    """Writes columns of equal length to an open CSV file, in C."""
    csv.writer(file, lineterminator="\n").writerows(zip(*columns, strict=True))


def write_csv(path: str | os.PathLike[str], columns: Mapping[str, Iterable[Any]]) -> None:
    """Writes a CSV file, UTF-8, with a line of headings, in place of what is there.

    Each heading has its cells, the same number for each; an empty string is an unknown value.

    Raises:
        ValueError: If the columns have different lengths.
    """
    with open(path, "w", encoding="utf-8", newline="") as file:
        write_rows(file, [[name] for name in columns])
        write_rows(file, columns.values())


# Numbers in words ---------------------------------------------------------------------------------


class Unit(NamedTuple):
    """How what was won is written."""

    heading: str  # of a column of it
    difference: str  # what differences are in
    scale: int  # what a number is multiplied with
    digits: int  # after the point
    sentence: str  # a value's form in a sentence
    difference_sentence: str  # a difference's

    def number(self, value: Any) -> float:
        """A value as it is shown."""
        # Adding 0 makes a rounded -0.0 positive.
        return round(self.scale * float(value), self.digits) + 0.0

    def interval(self, interval: Interval, sign: str = "") -> str:
        """A mean with half the width of its interval."""
        half = self.scale * (float(interval.high) - float(interval.low)) / 2
        return f"{self.number(interval.mean):{sign}.{self.digits}f} ±{half:.{self.digits}f}"

    def ends(self, interval: Interval) -> str:
        """A difference with the ends of its interval."""
        mean, low, high = (f"{self.scale * float(part):+.{self.digits}f}" for part in interval)
        return f"{mean} [{low}, {high}]"

    def value(self, value: Any) -> str:
        """A value in a sentence."""
        return self.sentence.format(float(value))

    def difference_of(self, value: Any) -> str:
        """A difference in a sentence."""
        return self.difference_sentence.format(self.scale * float(value))


UNITS: dict[ValueKind, Unit] = {
    "accuracy": Unit("accuracy, %", "points", 100, 1, "{:.1%}", "{:+.1f} points"),
    "score": Unit("score", "score", 1, 3, "score {:.3f}", "{:+.3f}"),
}
"""How each of the kinds of value is written."""


def answered(unanswered: tuple[int, int] | None) -> list[str]:
    """Says how many completions have no answer, and warns where most have none.

    Args:
        unanswered: How many have none, and of how many; None: not known.

    Returns:
        A note for below a table; none where it is not known.
    """
    if not unanswered or not unanswered[1]:
        return []
    none, count = unanswered
    note = f"{none:,} of {count:,} completions have no answer"
    if 2 * none > count:
        note = (
            f"WARNING: {note}, so the figures say more about how answers are read than about the "
            "completions; see --extract (auto, boxed, last_number, module:function) and look at one"
        )
    return [note]


def or_dash(value: float, form: str) -> str:
    """A number, or – where it is not known."""
    return "–" if np.isnan(value) else format(value, form)
