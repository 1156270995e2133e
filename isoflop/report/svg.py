"""What every page shares: its templates, and pictures as inline SVG in the page's colours and font."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from isoflop.errors import IsoflopError
from isoflop.plots import PALETTE

TEMPLATES = Path(__file__).parent / "templates"


def environment() -> jinja2.Environment:
    """Of templates that escape what they are given and refuse a name that is not."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    made = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    made.undefined = jinja2.StrictUndefined
    return made


def picture(name: str, draw: Callable[[], Figure]) -> Markup:
    """The picture as inline SVG, or a sentence that says why there is none."""
    try:
        return svg(name, draw)
    except IsoflopError as error:
        return Markup('<p class="missing">{} {}</p>').format(error.message, error.hint)


def svg(name: str, draw: Callable[[], Figure]) -> Markup:
    """Inline SVG in the page's colours and font; ids start with the picture's name, so they are unique."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        draw().savefig(file, format="svg", transparent=True)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:xmlns(?::xlink)?|width|height|version)="[^"]*"', "", text, count=5)
    text = re.sub(r'((?:xlink:href|href)="#|id="|url\(#)', rf"\1{name}-", text).replace("xlink:href", "href")
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    text = re.sub(r" font-family:[^;\"]*;?", "", text)
    for colour_name, colour in PALETTE.items():
        text = text.replace(colour, f"var(--{colour_name})")
    return Markup(text.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1))
