"""The paper's main table: methods under each N, and a pair of columns for each benchmark.

One record, written as CSV, Markdown, LaTeX and HTML.
"""

import csv
import dataclasses
import html
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from optscale_jax.study.comparison import ORACLE, Row

__all__ = ["Cell", "Pair", "PaperTable", "latex", "paper_table"]


class Cell(NamedTuple):
    """A number in words.

    Attributes:
      text: what is shown; "" where nothing is known.
      number: the number itself, for CSV; NaN likewise.
      best: whether it is the best of its N.
    """

    text: str
    number: float
    best: bool = False


class Pair(NamedTuple):
    """What one method wins and spends on one benchmark."""

    value: Cell
    cost: Cell


@dataclasses.dataclass(frozen=True)
class PaperTable:
    """The table.

    Attributes:
      title: what it shows.
      benchmarks: a heading for each pair of columns.
      headings: [benchmarks] the pair's own headings, with their units.
      blocks: N to its rows: a method's label and a pair for each benchmark, None where the method
        was not run there.
      notes: sentences to stand below it.
    """

    title: str
    benchmarks: Sequence[str]
    headings: Sequence[tuple[str, str]]
    blocks: Mapping[int, Sequence[tuple[str, Sequence[Pair | None]]]]
    notes: Sequence[str] = ()

    def _rows(self) -> list[tuple[int, bool, str, list[Cell]]]:
        """(N, whether it begins N's block, label, two cells for each benchmark)."""
        nothing = Cell("", np.nan)
        return [
            (
                cap,
                index == 0,
                label,
                [cell for pair in pairs for cell in (pair or (nothing, nothing))],
            )
            for cap, rows in self.blocks.items()
            for index, (label, pairs) in enumerate(rows)
        ]

    def _heads(self) -> list[str]:
        pairs = zip(self.benchmarks, self.headings, strict=True)
        return [f"{benchmark}: {heading}" for benchmark, pair in pairs for heading in pair]

    def to_csv(self) -> str:
        """Numbers in full; a column `best` beside each says which are the best of their N."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        heads = self._heads()
        writer.writerow(["N", "method", *(c for h in heads for c in (h, f"{h}, best"))])
        for cap, _, label, cells in self._rows():
            values = []
            for cell in cells:
                known = not np.isnan(cell.number)
                values += [repr(float(cell.number)), int(cell.best)] if known else ["", ""]
            writer.writerow([cap, label, *values])
        return file.getvalue()

    def to_markdown(self) -> str:
        """Best in bold."""
        heads = self._heads()
        lines = [f"**{self.title}**", ""]
        lines.append("| N | method | " + " | ".join(h.replace("|", "\\|") for h in heads) + " |")
        lines.append("| ---: | --- |" + " ---: |" * len(heads))
        for cap, first, label, cells in self._rows():
            shown = [f"**{c.text}**" if c.best and c.text else c.text for c in cells]
            words = [str(cap) if first else "", label, *shown]
            lines.append("| " + " | ".join(word.replace("|", "\\|") for word in words) + " |")
        if self.notes:
            lines += ["", "  \n".join(self.notes)]
        return "\n".join(lines) + "\n"

    def to_latex(self) -> str:
        r"""A `table*` for `booktabs` and `multirow`; best in bold."""
        pairs = len(self.benchmarks)
        rules = " ".join(rf"\cmidrule(lr){{{3 + 2 * i}-{4 + 2 * i}}}" for i in range(pairs))
        lines = [
            r"% \usepackage{booktabs,multirow}",
            r"\begin{table*}[t]",
            r"\centering",
            r"\small",
            r"\setlength{\tabcolsep}{4pt}",
            rf"\begin{{tabular}}{{rl{'rr' * pairs}}}",
            r"\toprule",
            " & ".join(
                ["", "", *(rf"\multicolumn{{2}}{{c}}{{{latex(b)}}}" for b in self.benchmarks)]
            )
            + r" \\",
            rules,
            " & ".join(["$N$", "Method", *(latex(h) for pair in self.headings for h in pair)])
            + r" \\",
        ]
        sizes = {cap: len(rows) for cap, rows in self.blocks.items()}
        for cap, first, label, cells in self._rows():
            if first:
                lines.append(r"\midrule")
            shown = [
                rf"\textbf{{{latex(c.text)}}}" if c.best and c.text else latex(c.text) or "--"
                for c in cells
            ]
            lead = rf"\multirow{{{sizes[cap]}}}{{*}}{{{cap}}}" if first else ""
            lines.append(" & ".join([lead, latex(label), *shown]) + r" \\")
        notes = " ".join(note if note.endswith(".") else f"{note}." for note in self.notes)
        lines += [
            r"\bottomrule",
            r"\end{tabular}",
            rf"\caption{{{latex(self.title)}. {latex(notes)}}}",
            r"\end{table*}",
        ]
        return "\n".join(lines) + "\n"

    def to_html(self) -> str:
        """A `<table>`, with its notes below; best in bold."""
        top = "".join(f'<th colspan="2">{html.escape(b)}</th>' for b in self.benchmarks)
        heads = "".join(f"<th>{html.escape(h)}</th>" for pair in self.headings for h in pair)
        parts = [
            '<div class="wide"><table class="paper"><thead>',
            f'<tr><th rowspan="2">N</th><th rowspan="2" class="text">method</th>{top}</tr>',
            f"<tr>{heads}</tr></thead><tbody>",
        ]
        sizes = {cap: len(rows) for cap, rows in self.blocks.items()}
        for cap, first, label, cells in self._rows():
            lead = f'<th rowspan="{sizes[cap]}">{cap}</th>' if first else ""
            shown = "".join(
                f"<td><b>{html.escape(c.text)}</b></td>"
                if c.best
                else f"<td>{html.escape(c.text) or '–'}</td>"
                for c in cells
            )
            kind = ' class="first"' if first else ""
            parts.append(f'<tr{kind}>{lead}<td class="text">{html.escape(label)}</td>{shown}</tr>')
        parts.append("</tbody></table></div>")
        parts += [f'<p class="note">{html.escape(note)}</p>' for note in self.notes]
        return "\n".join(parts)


def paper_table(
    title: str,
    rows: Mapping[str, Sequence[Row]],
    headings: Mapping[str, tuple[str, str]],
    *,
    notes: Sequence[str] = (),
) -> PaperTable:
    """Lays rows out as the paper does.

    The best of an N is the highest value, and the lowest cost, as they are printed, so that what
    looks alike is treated alike. The oracle does not compete.

    Args:
      title: what the table shows.
      rows: benchmark to its rows.
      headings: benchmark to the headings of its pair: "accuracy, %" or "score", and a cost.
      notes: sentences to stand below it.

    Returns:
      The table.
    """
    caps = sorted({row.cap for each in rows.values() for row in each})
    blocks: dict[int, list[tuple[str, list[Pair | None]]]] = {}
    for cap in caps:
        at = {name: [row for row in each if row.cap == cap] for name, each in rows.items()}
        # In the order of the first benchmark that has the method.
        labels = dict.fromkeys(row.method.label for each in at.values() for row in each)
        pairs = {name: _pairs(at[name], headings[name][0]) for name in rows}
        blocks[cap] = [(label, [pairs[name].get(label) for name in rows]) for label in labels]
    return PaperTable(title, list(rows), [headings[name] for name in rows], blocks, notes)


def _pairs(rows: Sequence[Row], heading: str) -> dict[str, Pair]:
    percent = "%" in heading

    def shown(row: Row) -> float:
        return round(100 * float(row.value.mean), 1) if percent else round(float(row.value.mean), 3)

    competing = [row for row in rows if row.method.policy != ORACLE]
    best = max((shown(row) for row in competing), default=np.nan)
    cheapest = min((_cost(row) for row in competing), default="", key=lambda t: _number(t))
    found = {}
    for row in rows:
        half = (float(row.value.high) - float(row.value.low)) / 2
        text = f"{shown(row):.1f} ±{100 * half:.1f}" if percent else f"{shown(row):.3f} ±{half:.3f}"
        competes = row.method.policy != ORACLE and len(competing) > 1
        found[row.method.label] = Pair(
            Cell(
                text,
                (100 if percent else 1) * float(row.value.mean),
                bool(competes and shown(row) == best),
            ),
            Cell(_cost(row), float(row.cost.mean), bool(competes and _cost(row) == cheapest)),
        )
    return found


def _cost(row: Row) -> str:
    mean = float(row.cost.mean)
    return f"{mean:,.0f}" if mean >= 100 else f"{mean:.1f}"


def _number(text: str) -> float:
    return float(text.replace(",", ""))


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
