r"""The formula that an answer states, taken out of delimiters, boxes and the prose round it.

The rules are those of `mathematics`: at most one formula, or a list of boxes, and no doubt.
"""

from __future__ import annotations

import re

from rdbcl_jax.rewards.numerals import quantity, unit_of
from rdbcl_jax.rewards.points import Unreadable
from rdbcl_jax.rewards.text import closing_brace, seen, unwrapped

_SPAN = re.compile(
    r"(?<!\\)\$\$(?P<a>.+?)(?<!\\)\$\$|\\\[(?P<b>.+?)\\\]"
    r"|(?<!\\)\$(?P<c>(?:\\.|[^$\n\\])+?)\$|\\\((?P<d>[^\n]+?)\\\)",
    re.DOTALL,
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_DISPLAYS = "align|equation|gather|eqnarray|multline|flalign"  # which are in no `$`
_LINES = re.compile(
    rf"\\begin\s*\{{(?P<name>(?P<display>{_DISPLAYS})\*?|aligned|gathered|split|cases)\}}"
    r"(?P<body>.*?)\\end\s*\{(?P=name)\}",
    re.DOTALL,
)
_RELATION = r"\s*(?:[=<>≤≥≈]|\\(?:leq?|geq?|lt|gt|approx|in)(?![a-z]))"
_NEXT_LINE = re.compile(r"\\\\(?:\[[^\]]*\])?")
_JOINS = re.compile(r"\s*(?:[,;]|\\quad|\\text\s*\{[^{}]*\}|\band\b|\bor\b|&|\s)*\s*")
_JOIN = re.compile(r"[,;&]|\band\b|\bor\b")
DOUBT = re.compile(
    r"(?:\b(?:not|no|never|neither|nor|none|cannot|without|except|unlike|wrong|incorrect|false"
    r"|instead|maybe|perhaps|possibly|or|either|if)\b|n['’]t\b)",
    re.I,
)
_PROSE = re.compile(r"[^\W\d_](?:[^\W\d_]|[\s,;:.!?'’\"()*-])*|[\s,;:.!*]*")
_CUE = re.compile(r"(?P<before>.*(?:\b(?:is|are|was|equals?|be)\b|['’]s\b|:))(?P<value>.+)", re.S)
# makes another number of what follows
_CHANGES = re.compile(
    r"(?:\b(?:negative|minus|plus|times|twice|thrice|double|triple|half(?: of)?|percent of|root of"
    r"|squares? of|cube of|(?:less|more|greater|fewer|smaller|larger|bigger|higher|lower) than"
    r"|at (?:least|most)|over|under|above|below|up to|nearly|almost)|(?<![\w)])[-−])\s*$",
    re.I,
)
_INTRODUCES = re.compile(r"(?:=|\\in|\\approx|[^\W\d_]{2}|[:,.])$")
_STYLE = re.compile(r"\\(?:text\w*|math\w*|mbox|boxed|left|right|quad|[,;!: ])")
MARKS = " \n.,;:*"
_DELIMITER = re.compile(r"\\[\[\]()]|(?<!\\)\$+|\\left\b|\\right\b")


def formula(text: str) -> str:
    """The mathematics of a text, without delimiters and the prose round it.

    Raises:
      Unreadable: several formulas, or doubt about the one.
    """
    lines = [seen(line) for line in re.sub(r"\\n(?![A-Za-z])", "\n", text).splitlines()]
    text = _LINES.sub(_in_one_line, "\n".join(line for line in lines if line))
    if r"\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z\[\](){}])", r"\\", text)  # escaped twice
    if _BOX.search(text):
        return _boxed(text)
    whole = unwrapped(" ".join(text.split()))
    if not _DELIMITER.search(whole):
        return _ending(whole) if _prosaic(whole) else whole
    spans = list(_SPAN.finditer(text))
    if not spans:
        return whole.strip("$ ")
    formulas = [next(filter(None, span.groups())).strip(MARKS) for span in spans]
    stops = [0, *(place for span in spans for place in span.span()), len(text)]
    around = [text[a:b].strip(MARKS) for a, b in zip(stops[::2], stops[1::2], strict=True)]
    if not around[0] and not around[-1] and all(_JOINS.fullmatch(gap) for gap in around):
        return " , ".join(formulas)
    if len(spans) == 1 and not around[0] and _is_unit(around[1]):
        return f"{formulas[0]} {around[1]}"
    if len(spans) == 1 and all(map(_harmless, around)) and not _CHANGES.search(around[0]):
        return formulas[0]
    return _ending(_DELIMITER.sub(" ", text))


def _in_one_line(match: re.Match[str]) -> str:
    """Lines of a display: a chain where a line begins with a relation, else a list."""
    body = match["body"]
    if re.search(rf"&(?!{_RELATION})", body):  # columns, as of a function by cases
        return match[0]
    lines = [line.replace("&", " ").strip(" \n,;.") for line in _NEXT_LINE.split(body)]
    joined = ""
    for line in filter(None, lines):
        apart = ", " if joined and not re.match(_RELATION, line) else " "
        joined += apart + line
    return rf"\[{joined}\]" if match["display"] else joined


def _boxed(text: str) -> str:
    """What is in boxes, as a list if there are several."""
    inside, around, start = [], [], 0
    while box := _BOX.search(text, start):
        around.append(text[start : box.start()])
        end = closing_brace(text, box.end() - 1)
        if end < 0:  # cut off
            end = len(text.rstrip("$ "))
        inside.append(text[box.end() : end])
        start = end + 1
    around.append(text[start:])
    before, *between, after = (_DELIMITER.sub(" ", piece).strip(MARKS + "{}") for piece in around)
    if not all(map(_joins, between)) or DOUBT.search(before) or DOUBT.search(after):
        raise Unreadable("several boxes, or doubt")
    if len(inside) > 1:
        return " , ".join(inside)
    if _is_unit(after):
        return f"{inside[0]} {after}"
    apart = not after or (re.search("[A-Za-z]{3}", after) and not around[-1][:1].isalnum())
    led_in = not before or (_INTRODUCES.search(before) and not _CHANGES.search(before))
    if apart and _PROSE.fullmatch(after) and led_in:
        return inside[0]
    return _BOX.sub("{", _DELIMITER.sub(" ", text))  # a box round a part of a formula


def _joins(between: str) -> bool:
    if DOUBT.search(_JOIN.sub(" ", between)):
        return False
    return bool(_JOIN.search(between)) or not re.search(r"\w", between)


def _is_unit(text: str) -> bool:
    return bool(text) and (unit_of(text) is not None or quantity("1" + text) is not None)


def _harmless(text: str) -> bool:
    return bool(_PROSE.fullmatch(text)) and not DOUBT.search(text)


def _prosaic(text: str) -> bool:
    return bool(re.search(r"(?<![\\A-Za-z{])[A-Za-z]{2,}['’]?[a-z]*:? ", text))


def _ending(text: str) -> str:
    """The value that a sentence ends in; the text itself where it is no such sentence."""
    match = _CUE.fullmatch(text.strip(MARKS))
    if not match or not re.search("[A-Za-z]{2}", match["before"]):
        return text
    if DOUBT.search(re.split("[0-9]", match["before"])[-1]):
        raise Unreadable("doubt")
    return match["value"].strip(MARKS)


def letters(text: str) -> str:
    """Words without LaTeX, case and blanks."""
    text = _STYLE.sub("", unwrapped(seen(text)))
    return re.sub(r"[\s{}$]|\.$", "", text.casefold())
