"""The HTML that report and comparison share: one style sheet, tables, figures as inline SVG.

A page is one file that asks the network for nothing, reads well on a phone and follows the
reader's light or dark theme.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from rdbcl_jax.reporting import plots

DASH = "–"
METHODS = {"rdbcl": "RDB-CL", "dyme": "DyME"}  # where capitals alone are not the name


def method_name(method: str) -> str:
    """rdbcl → RDB-CL, grpo → GRPO."""
    return METHODS.get(method, method.upper() if len(method) <= 5 else method)


def escape(value: Any) -> str:
    """Text that is safe inside HTML, attributes included."""
    return html.escape(str(value), quote=True)


def percent(value: float | None, *, signed: bool = False, digits: int = 1) -> str:
    """0.7134 → "71.3"; −0.05 → "−5.0" with a real minus; a dash where there is no number."""
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{100 * value:{'+' if signed else ''}.{digits}f}"
    return text.replace("-", "−")


def page(title: str, body: str) -> str:
    """A whole HTML document."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *parts: str, intro: str = "") -> str:
    """A titled section; nothing at all when it has no parts. `intro` is HTML."""
    content = "\n".join(part for part in parts if part)
    if not content:
        return ""
    intro = f'<p class="intro">{intro}</p>\n' if intro else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{intro}{content}\n</section>"


def details(summary: str, content: str, *, open: bool = False) -> str:
    """A block that folds away. `content` is HTML."""
    if not content:
        return ""
    state = " open" if open else ""
    return f"<details{state}><summary>{escape(summary)}</summary>\n{content}\n</details>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "") -> str:
    """A table from cells that are HTML already; the first column is a row header."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "\n".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{c}</td>" for c in row[1:]) + "</tr>"
        for row in rows
    )
    head = f"<thead><tr>{head}</tr></thead>" if header else ""
    return (
        f'<div class="scroll"><table class="{kind}">{head}\n<tbody>\n{body}\n</tbody></table></div>'
    )


def heat_map(
    matrix: np.ndarray,
    tasks: Sequence[str],
    *,
    caption: str,
    held_out: Sequence[str] = (),
    hue: str = "accuracy",
    counts: Sequence[int] = (),
) -> str:
    """The accuracy matrix as a table: a shade per cell, a frame where a task was just trained.

    `held_out` tasks, which are not learned, have the last columns; a row's mean leaves them out.
    """
    columns = [*tasks, *held_out]
    names = ["base", *(f"after {task}" for task in tasks)]
    labels = ["base", *(f'<i class="after">after </i>{escape(task)}' for task in tasks)]
    head = "".join(f'<th scope="col">{escape(task)}</th>' for task in tasks)
    after = "".join(f'<th scope="col"><i>{escape(task)}</i></th>' for task in held_out)
    lines = []
    for i, row in enumerate(matrix):
        cells = [
            _heat_cell(value, i, j, f"{names[i]}, on {columns[j]}", counts)
            for j, value in enumerate(row)
        ]
        own, others = "".join(cells[: len(tasks)]), "".join(cells[len(tasks) :])
        mean = percent(row[: len(tasks)].mean()) if tasks else DASH
        head_cell = f'<th scope="row"><span>{labels[i]}</span></th>'
        lines.append(f'<tr>{head_cell}{own}<td class="mean">{mean}</td>{others}</tr>')
    return (
        f'<figure class="heat {hue}"><figcaption>{caption}</figcaption>'
        f'<div class="scroll"><table><thead><tr><td></td>{head}'
        f'<th scope="col">mean</th>{after}</tr>'
        f"</thead>\n<tbody>\n{chr(10).join(lines)}\n</tbody></table></div></figure>"
    )


def _heat_cell(value: float, i: int, j: int, what: str, counts: Sequence[int]) -> str:
    if not math.isfinite(value):
        return f'<td class="cell">{DASH}</td>'
    classes = "cell" + (" trained" if i == j + 1 else "") + (" strong" if value > 0.6 else "")
    title = f"{what}: {100 * value:.2f} %"
    if j < len(counts) and counts[j]:
        error = math.sqrt(max(value * (1 - value), 0) / counts[j])
        title += f" ± {100 * error:.2f} (standard error, n = {counts[j]})"
    shade = f"--v:{0.04 + 0.9 * min(max(value, 0.0), 1.0):.3f}"
    return f'<td class="{classes}" style="{shade}" title="{escape(title)}">{percent(value)}</td>'


def legend(names: Iterable[tuple[str, str]]) -> str:
    """Coloured names: (name, CSS colour) pairs."""
    items = "".join(
        f'<span class="key"><i style="background:{colour}"></i>{escape(name)}</span>'
        for name, colour in names
    )
    return f'<p class="legend">{items}</p>'


def tile(label: str, value: str, note: str = "") -> str:
    """One large number. `note` is HTML."""
    return (
        f'<div class="tile"><span class="label">{escape(label)}</span>'
        f'<span class="value">{escape(value)}</span><span class="note">{note}</span></div>'
    )


def grid(figures: Iterable[str], *, wide: bool = False) -> str:
    """Figures side by side, as many as the screen has room for."""
    content = "\n".join(figures)
    return f'<div class="grid{" wide" if wide else ""}">\n{content}\n</div>' if content else ""


def figure(drawing: Figure, title: str, note: str = "") -> str:
    """A titled figure; the SVG takes its text and grid colours from the page's theme."""
    note = f"<small>{escape(note)}</small>" if note else ""
    caption = f"<figcaption>{escape(title)}{note}</figcaption>"
    return f"<figure>{caption}{svg(drawing, title)}</figure>"


def svg(drawing: Figure, title: str) -> str:
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
    box = re.search(r'viewBox="[^"]*"', text)[0]
    head = f'<svg {box} role="img" aria-label="{escape(title)}">'
    text = re.sub(r"<svg[^>]*>", lambda _: head, text, count=1)
    for name, colour in (("ink", plots.INK), ("muted", plots.MUTED), ("grid", plots.GRID)):
        text = text.replace(colour, f"var(--{name})")
    return re.sub(r"\n\s*", "\n", text)


def _font(match: re.Match) -> str:
    weight = f"; font-weight: {match[1].strip()}" if match[1] else ""
    return f"font-size: {match[2]}px{weight}"


STYLE = """
:root { --paper:#fff; --ink:#1d232a; --muted:#68727d; --grid:#e1e5ea; --soft:#f5f7f9;
  --accent:#2f6299; --good:#1d7a34; --bad:#b3261e; --accuracy:47 98 153; --parse:18 122 112;
  --ref:94 60 153; --pol:230 97 1; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --paper:#14181d; --ink:#e4e8ec; --muted:#98a3ae;
  --grid:#2c343d; --soft:#1c2229; --accent:#83b4e6; --good:#6cc784; --bad:#f2938c;
  --accuracy:78 139 204; --parse:40 158 146; --ref:150 117 214; --pol:240 130 48; } }
* { box-sizing:border-box; }
body { margin:0; background:var(--paper); color:var(--ink); font:16px/1.5 system-ui, -apple-system,
  "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
  -webkit-text-size-adjust:100%; }
main { max-width:1120px; margin:0 auto; padding:2.5rem 1.25rem 4rem; }
h1 { font-size:1.9rem; line-height:1.2; letter-spacing:-.02em; margin:0 0 .4rem; }
h2 { font-size:1.25rem; letter-spacing:-.01em; margin:0 0 .35rem; }
h3 { font-size:1rem; margin:1.75rem 0 .5rem; }
section { margin-top:2.75rem; padding-top:1.5rem; border-top:1px solid var(--grid); }
p { margin:.4rem 0; max-width:80ch; } sub { line-height:0; }
a { color:var(--accent); }
.intro, .meta { color:var(--muted); font-size:.93rem; }
.meta span + span::before { content:"·"; margin:0 .5em; }
.status { border-radius:1em; padding:.1em .7em; font-size:.85rem; font-weight:600;
  border:1px solid currentColor; vertical-align:middle; white-space:nowrap; }
.done { color:var(--good); } .running { color:var(--bad); }
.tiles { display:grid; grid-template-columns:repeat(auto-fit, minmax(150px, 1fr)); gap:.75rem;
  margin:1.5rem 0 0; }
.tile { background:var(--soft); border-radius:10px; padding:.85rem 1rem; display:flex;
  flex-direction:column; }
.tile .label { color:var(--muted); font-size:.85rem; }
.tile .value { font-size:1.95rem; font-weight:650; letter-spacing:-.02em; line-height:1.25;
  font-variant-numeric:tabular-nums; }
.tile .note { color:var(--muted); font-size:.82rem; line-height:1.35; }
.grid { display:grid; grid-template-columns:repeat(auto-fill, minmax(min(300px, 100%), 1fr));
  gap:1.5rem 1.75rem; margin-top:1rem; }
.grid.wide { grid-template-columns:repeat(auto-fit, minmax(min(430px, 100%), 1fr)); }
figure { margin:0; min-width:0; }
figcaption { font-weight:600; font-size:.93rem; margin-bottom:.3rem; }
figcaption small { display:block; font-weight:400; color:var(--muted); font-size:.82rem; }
svg { display:block; width:100%; height:auto; overflow:visible; }
.legend { margin:.9rem 0 .5rem; font-size:.87rem; display:flex;
  flex-wrap:wrap; gap:.2rem 1.1rem; max-width:none; }
.key { display:inline-flex; align-items:center; gap:.45em; white-space:nowrap; }
.key i { width:1.1em; height:.28em; border-radius:.2em; }
.key i.dot { width:.5em; height:.5em; border-radius:50%; background:var(--ink); }
.scroll { overflow-x:auto; }
table { border-collapse:collapse; font-size:.92rem; font-variant-numeric:tabular-nums; }
th { text-align:left; font-weight:600; } thead th { vertical-align:bottom; }
td, th { padding:.38rem .8rem .38rem 0; }
table.lined { width:100%; } table.lined tbody tr { border-top:1px solid var(--grid); }
table.lined thead th { color:var(--muted); font-weight:500; font-size:.85rem; }
table.lined tbody th { font-weight:500; white-space:nowrap; }
table.narrow { width:auto; } table.narrow td, table.narrow th { padding-right:1.6rem; }
table.numbers td { text-align:right; white-space:nowrap; }
table.numbers thead th:not(:first-child) { text-align:right; }
table.metrics td:nth-child(2), table.metrics td:nth-child(3), table.metrics th:nth-child(2),
table.metrics th:nth-child(3) { text-align:right; white-space:nowrap; }
table.metrics td:last-child { color:var(--muted); padding-left:1rem; min-width:15rem; }
.heat table { border-spacing:2px; border-collapse:separate; font-size:.88rem; width:100%; }
.heat thead td { width:1%; } .heat thead th { width:6em; }
.heat th { color:var(--muted); font-weight:500; padding:.2rem .5rem .2rem 0; font-size:.84rem; }
.heat tbody th span { display:block; max-width:13em; white-space:nowrap; overflow:hidden;
  text-overflow:ellipsis; } .heat .after { font-style:normal; }
.heat thead th { text-align:center; padding:.2rem .3rem; }
.heat td { text-align:center; padding:.42rem .25rem; min-width:3.1em; }
.heat .cell { border-radius:4px; background:rgb(var(--accuracy) / var(--v, 0)); }
.heat.parse .cell { background:rgb(var(--parse) / var(--v, 0)); }
.heat .strong { color:#fff; }
.heat .trained { box-shadow:inset 0 0 0 2px var(--ink); font-weight:650; }
.heat .mean { color:var(--muted); } .heat tbody tr:first-child > * { padding-bottom:.6rem; }
:is(section, details) > .heat { margin-top:1.2rem; }
.up { color:var(--good); } .down { color:var(--bad); }
details { margin-top:.9rem; } details > summary { cursor:pointer; color:var(--accent);
  font-weight:500; } details[open] > summary { margin-bottom:.6rem; }
pre { background:var(--soft); border-radius:8px; padding:.9rem 1rem; overflow:auto;
  font:.82rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  max-height:34rem; }
code { font:.9em ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.notes { padding-left:1.1rem; color:var(--muted); font-size:.9rem; max-width:80ch; }
.notes li { margin:.25rem 0; } .notes b { color:var(--ink); font-weight:600; }
table.timing { width:min(100%, 40rem); } table.timing td { white-space:nowrap; }
table.timing td:nth-child(2), table.timing td:nth-child(3) { text-align:right; }
table.timing td:last-child { width:55%; }
.bar { display:block; height:.55rem; border-radius:.3rem; background:var(--accent);
  min-width:2px; }
.example { display:grid; grid-template-columns:150px 1fr; gap:1.1rem; padding:1.1rem 0;
  border-top:1px solid var(--grid); }
.example:first-of-type { border-top:0; }
.example img { width:100%; border-radius:6px; display:block; border:1px solid var(--grid); }
.example img.small { image-rendering:pixelated; }
.example .prompt { white-space:pre-wrap; font-size:.88rem; color:var(--muted); margin:0 0 .5rem;
  overflow-wrap:anywhere; max-height:9rem; overflow:auto; }
.example .facts { font-size:.85rem; color:var(--muted); margin:.55rem 0 0; }
.example .facts span + span::before { content:"·"; margin:0 .45em; }
.tokens { white-space:pre-wrap; overflow-wrap:anywhere; line-height:1.9;
  font:.9rem/1.9 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.tokens span { border-radius:3px; padding:.12em 0; }
.tokens .o { color:var(--muted); }
.tokens .r { background:rgb(var(--ref) / var(--a)); }
.tokens .p { background:rgb(var(--pol) / var(--a)); }
.tokens .ans { box-shadow:0 0 0 1.5px var(--ink); font-weight:650; padding:.12em .2em; }
.ramp { display:flex; align-items:center; gap:.6rem; font-size:.85rem; color:var(--muted);
  flex-wrap:wrap; margin:.6rem 0; max-width:none; }
.ramp i { width:150px; height:.75rem; border-radius:4px; background:linear-gradient(90deg,
  rgb(var(--pol) / .7), transparent, rgb(var(--ref) / .7)); border:1px solid var(--grid); }
@media (max-width:560px) { main { padding:1.5rem .9rem 3rem; } h1 { font-size:1.5rem; }
  .example { grid-template-columns:1fr; } .example img { max-width:180px; }
  .heat table { font-size:.78rem; } .heat td { padding:.4rem .1rem; min-width:2.6em; }
  .heat table { border-spacing:1px; } .heat .after { display:none; }
  .heat th, .heat thead th { font-size:.7rem; padding:.2rem .1rem; }
  .heat tbody th span { max-width:7em; }
  table.metrics tr { display:grid; grid-template-columns:1fr 4.5rem 6.2rem; }
  table.metrics td:last-child { grid-column:1 / -1; padding:0 0 .5rem; min-width:0; }
  table.metrics th:last-child { display:none; } }
@media print { details { display:block; } main { max-width:none; } }
"""
