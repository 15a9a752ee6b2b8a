"""One self-contained HTML page: tables, figures and sentences, with nothing to fetch.

`page.html.jinja` beside this file lays it out; all text is escaped there.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jinja2
from markupsafe import Markup

from optscale_jax.report.figures import Drawing
from optscale_jax.report.headline import Headline
from optscale_jax.report.svg import inline_svg
from optscale_jax.report.tables import Table
from optscale_jax.study.findings import Findings

__all__ = ["Section", "page"]


class Section(NamedTuple):
    """What a page says of one pool."""

    found: Findings
    anchor: str  # what links to the section end with
    headline: Headline  # what is said first
    sentences: Sequence[str]  # what else is found, in words
    tables: Sequence[Table]
    drawings: Sequence[Drawing]  # the first stands on the first screen


def page(title: str, table: Table, sections: Sequence[Section]) -> str:
    """A whole page, in HTML that needs no other file: a section a pool, and a table of all."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("optscale_jax.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["svg"] = lambda drawing, prefix: Markup(inline_svg(drawing, prefix))
    template = environment.get_template("page.html.jinja")
    return template.render(title=title, table=table, sections=sections)
