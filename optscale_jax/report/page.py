"""One self-contained HTML page: tables, figures and sentences, with nothing to fetch."""

import base64
import html
import io
from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure

from optscale_jax.report.figures import STYLE

__all__ = ["document", "figure_html", "list_html", "paragraph", "section", "table_html"]

_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 62rem;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-top: 1px solid #ccc;
  padding-top: 1rem; } h3 { font-size: 1.05rem; margin-top: 1.6rem; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; text-align: right; white-space: nowrap; }
th.text, td.text { text-align: left; }
thead th { border-bottom: 1px solid #888; } tr.first > * { border-top: 1px solid #bbb; }
tbody th { vertical-align: top; }
.wide { overflow-x: auto; } figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; } figcaption, .note { font-size: 13px; color: #555; }
.note { margin: .3rem 0; } nav a { margin-right: 1rem; } .warning { color: #a33600; }
@media print { body { max-width: none; } h2 { break-before: page; }
  figure { break-inside: avoid; } }
"""


def document(title: str, parts: Sequence[str], links: Sequence[tuple[str, str]] = ()) -> str:
    """The whole page.

    Args:
        title: Its heading.
        parts: HTML, in order.
        links: (id of a section, words) for the list of contents.

    Returns:
        HTML.
    """
    contents = "".join(f'<a href="#{html.escape(i)}">{html.escape(w)}</a>' for i, w in links)
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>\n<style>{_CSS}</style></head><body>",
            f"<h1>{html.escape(title)}</h1>",
            f"<nav>{contents}</nav>" if links else "",
            *parts,
            "</body></html>\n",
        ]
    )


def section(heading: str, identifier: str, parts: Sequence[str]) -> str:
    """A section with its heading, which a link can lead to."""
    head = f'<h2 id="{html.escape(identifier)}">{html.escape(heading)}</h2>'
    return "\n".join(["<section>", head, *parts, "</section>"])


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of text, of a class such as "note" or "warning"."""
    return f'<p class="{html.escape(kind)}">{html.escape(text)}</p>'


def list_html(items: Sequence[str]) -> str:
    """Sentences as a list."""
    return "<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in items) + "</ul>"


def table_html(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, num_labels: int = 1
) -> str:
    """A table; its first `num_labels` columns are text, the others numbers."""

    def line(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=text' if i < num_labels else ''}>{html.escape(value)}</{tag}>"
            for i, value in enumerate(values)
        )

    body = "\n".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{line("th", columns)}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def figure_html(figure: Figure, heading: str, caption: str) -> str:
    """A figure inside the page, as a PNG of twice a screen's dots, with what it shows."""
    file = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(file, format="png", dpi=180, metadata={"Software": None})
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return (
        f"<h3>{html.escape(heading)}</h3>\n<figure>"
        f'<img alt="{html.escape(heading)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
