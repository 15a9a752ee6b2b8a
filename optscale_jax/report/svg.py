"""Figures as SVG inside a page: sharp at any size, in the page's own colours, with words at points.

What matplotlib draws in black, white and the grid's grey follows the page (`currentColor`,
`var(--back)`, `var(--rule)`), so that a figure is as readable in the dark as the text around it.
"""

import io
import re
from xml.etree import ElementTree

from matplotlib import rc_context

from optscale_jax.report.figures import CURVE, STYLE, Drawing

__all__ = ["inline_svg"]

_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_OF_THE_PAGE = {"#000000": "currentColor", "#ffffff": "var(--back)"}
_OF_THE_PAGE[STYLE["grid.color"]] = "var(--rule)"
_COLOURS = re.compile("|".join(_OF_THE_PAGE))
_FONTS = re.compile(r"font-family:[^;]*;?|(?<=px) 'DejaVu Sans'[^;]*")
ElementTree.register_namespace("", _SVG[1:-1])


def inline_svg(drawing: Drawing, prefix: str) -> str:
    """A figure as an `<svg>` element, the same text every time.

    Each part of curve i has the class `curve-i`, and each of its points the words that the
    drawing's `tips` have for it, as an SVG `<title>`.

    Args:
        drawing: The figure.
        prefix: What its names inside the page begin with; one of its own for each figure.
    """
    file = io.BytesIO()
    with rc_context(STYLE | {"svg.fonttype": "none", "svg.hashsalt": prefix}):
        drawing.figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(file.getvalue())
    used = set(re.findall(r"#([\w.-]+)", file.getvalue().decode()))
    for parent in [*root.iter()]:
        for child in [*parent]:
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    # The page gives the size; the view box keeps the shape.
    width = float(root.attrib.pop("width").removesuffix("pt"))
    del root.attrib["height"]
    size = f"width: 100%; max-width: {1.3 * width:.0f}pt"
    root.set("style", f"{size}; stroke-linejoin: round; stroke-linecap: butt")
    root.set("role", "img")
    root.set("aria-label", drawing.heading)
    tips = list(drawing.tips.values())
    for element in root.iter():
        name = element.attrib.pop("id", "")
        if name.startswith(CURVE):
            element.set("class", name)
            # What is beside it, the dots and the band, has no points of its own.
            if (number := name.removeprefix(CURVE)).isdigit() and int(number) < len(tips):
                points = element.iter(f"{_SVG}use")
                for point, words in zip(points, tips[int(number)], strict=True):
                    ElementTree.SubElement(point, f"{_SVG}title").text = words
        elif name in used:
            element.set("id", prefix + name)
        if (link := element.attrib.pop(_LINK, None)) is not None:
            element.set("href", f"#{prefix}{link[1:]}")
        if "clip-path" in element.attrib:
            element.set("clip-path", element.attrib["clip-path"].replace("#", f"#{prefix}"))
        if "style" in element.attrib:
            style = _FONTS.sub("", element.attrib["style"])
            element.set("style", _COLOURS.sub(lambda found: _OF_THE_PAGE[found[0]], style))
    return ElementTree.tostring(root, encoding="unicode")
