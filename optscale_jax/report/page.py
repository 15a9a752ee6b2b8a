"""One self-contained HTML page: tables, figures and sentences, with nothing to fetch.

`page.html.jinja` beside this file lays it out; all text is escaped there.
"""

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import jinja2
from matplotlib import rc_context

from optscale_jax.report.figures import STYLE, Drawing
from optscale_jax.report.tables import Table
from optscale_jax.study.findings import Findings

__all__ = ["Section", "page"]


class Section(NamedTuple):
    """What a page says of one pool."""

    found: Findings
    anchor: str  # what links to the section end with
    sentences: Sequence[str]  # what is found, in words
    tables: Sequence[Table]
    drawings: Sequence[Drawing]


def page(title: str, table: Table, sections: Sequence[Section]) -> str:
    """A whole page, in HTML that needs no other file: a heading, a table, and a section a pool."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("optscale_jax.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["data_uri"] = _data_uri
    template = environment.get_template("page.html.jinja")
    return template.render(title=title, table=table, sections=sections)


def _data_uri(drawing: Drawing) -> str:
    """A figure as a PNG of twice a screen's dots."""
    file = io.BytesIO()
    with rc_context(STYLE):
        drawing.figure.savefig(file, format="png", dpi=180, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
