"""Tables as Markdown and LaTeX."""

from __future__ import annotations

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
    **{c: "\\" + c for c in "&%$#_{}"},
}


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is a name and whose others are numbers."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

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
