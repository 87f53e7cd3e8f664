"""A matplotlib figure as inline SVG whose text and grid colours are the page's."""

from __future__ import annotations

import io
import re

import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from rdbcl_jax.reporting import plots


def svg(drawing: Figure, title: str) -> Markup:
    """Inline SVG: text as text, no metadata, no name that another figure could also have."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        drawing.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r"font: (\d+ )?([\d.]+)px [^;\"]+", _font, text)  # matplotlib before 3.11
    text = re.sub(r"font-family: [^;\"]+;? ?", "", text)
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), text)
    text = re.sub(
        r'<svg[^>]*(viewBox="[^"]*")[^>]*>',
        lambda tag: f'<svg {tag[1]} role="img" aria-label="{escape(title)}">',
        text,
        count=1,
    )
    for name, colour in (("ink", plots.INK), ("muted", plots.MUTED), ("grid", plots.GRID)):
        text = text.replace(colour, f"var(--{name})")
    return Markup(re.sub(r"\n\s*", "\n", text))


def _font(match: re.Match) -> str:
    weight = f"; font-weight: {match[1].strip()}" if match[1] else ""
    return f"font-size: {match[2]}px{weight}"
