"""Self-contained HTML pages: templates, and pictures that lie inside them."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from vpt_vision.evaluation.pictures.style import FAINT, INK
from vpt_vision.files import writing


def write_page(path: Path, template: str, **context: Any) -> None:
    """Fill `template` of the package and write it to `path`; raises `UserError` where it cannot."""
    environment = Environment(
        loader=PackageLoader("vpt_vision.evaluation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(**context)
    with writing(path) as part:
        part.write_text(text, encoding="utf-8")


def inline_png(picture: bytes, alt: str) -> Markup:
    """Return a PNG's bytes as an image element described by `alt`."""
    data = base64.b64encode(picture).decode("ascii")
    return Markup('<img src="data:image/png;base64,{}" alt="{}">').format(data, alt)


def inline_svg(figure: Figure, alt: str) -> Markup:
    """Return `figure` as an SVG element described by `alt`; its ink takes the colour of the page's text."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": alt, "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"(?s)<metadata>.*?</metadata>", "", svg)
    for ink in (INK, "#000000"):
        svg = svg.replace(ink.lower(), "currentColor")
    svg = svg.replace(FAINT.lower(), "var(--faint)")
    svg = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        rf'<svg viewBox="\1" role="img" aria-label="{escape(alt)}">',
        svg,
        count=1,
    )
    return Markup(svg)
