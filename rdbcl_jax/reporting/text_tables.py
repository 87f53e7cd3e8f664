"""Tables as Markdown and LaTeX; what is text in them is shown as it is, whatever it holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": "$-$",
    "β": r"$\beta$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
    # behind the end of a row these would be its options
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "\n": " ",
    "\r": " ",
    **{c: "\\" + c for c in "&%$#_{}"},
}


# what sets markup, links or formulas; an underscore within a word does not
_MARKUP = re.compile(r"[\\`*|~$]|(?<![^\W_])_|_(?![^\W_])|\](?=[\[(:])")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


class Markdown(str):
    """Text that is Markdown already."""


def markdown_escape(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    if isinstance(text, Markdown):
        return text
    plain = "".join(_HTML.get(c, c) for c in " ".join(text.splitlines()))
    return Markdown(_MARKUP.sub(r"\\\g<0>", plain))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is a name and whose others are numbers; cells are text, or
    `Markdown`."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(map(markdown_escape, cells)) + " |"

    rule = "|---|" + "---:|" * (len(header) - 1)
    return "\n".join([line(header), rule, *map(line, rows)])


def latex_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str) -> str:
    """The same with booktabs rules. Cells are text, the header is LaTeX; the caption a comment."""
    lines = [
        f"% {caption}",
        r"% Needs \usepackage{booktabs}.",
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"\toprule",
        " & ".join(header) + r" \\",
        r"\midrule",
        *(" & ".join(map(latex_escape, row)) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def latex_escape(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(LATEX.get(c, c) for c in text)
