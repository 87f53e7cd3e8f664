"""HTML pages from templates/: one file that asks the network for nothing, reads well on a phone and
follows the reader's light or dark theme. All values are escaped but for pictures (`svg`)."""

from __future__ import annotations

import dataclasses
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from rdbcl_jax.reporting.numbers import duration, moment, percent
from rdbcl_jax.reporting.svg import svg

METHODS = {"rdbcl": "RDB-CL", "dyme": "DyME"}  # where capitals alone do not make the name

PAGES = Environment(
    loader=PackageLoader("rdbcl_jax.reporting"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
PAGES.filters |= {"percent": percent, "duration": duration, "moment": moment}


@dataclasses.dataclass(frozen=True)
class Panel:
    """A picture with its title and a note under it."""

    title: str
    note: str
    svg: Markup


def panel(drawing: Figure, title: str, note: str = "") -> Panel:
    return Panel(title, note, svg(drawing, title))


def render(template: str, **values: Any) -> str:
    """A whole HTML document."""
    return PAGES.get_template(template).render(values)


def method_name(method: str) -> str:
    """rdbcl → RDB-CL, grpo → GRPO; empty → "run"."""
    return METHODS.get(method, method.upper() if 0 < len(method) <= 5 else method or "run")
