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
# a line of a function by cases: its value, and then where it holds
_VALUE_FIRST = re.compile(rf"(?:^|{_NEXT_LINE.pattern})[^=<>≤≥\\]*,\s*[^\s\\]")
_GOES_ON = re.compile(r"[-+*/^(\d)\]}]\s*$")  # before what is a part of a formula
_JOINS = re.compile(r"\s*(?:[,;]|\\quad|\\text\s*\{[^{}]*\}|\band\b|\bor\b|&|\s)*\s*")
_JOIN = re.compile(r"[,;&]|\band\b|\bor\b")
DOUBT = re.compile(
    r"(?:\b(?:not|no|never|neither|nor|none|cannot|without|except|unlike|wrong|incorrect|false"
    r"|instead|maybe|perhaps|possibly|or|either|if)\b|n['’]t\b)",
    re.I,
)
_PROSE = re.compile(r"[^\W\d_](?:[^\W\d_]|[\s,;:.!?'’\"()*-])*|[\s,;:.!*]*")
# but not that of a ratio or a time, as in `12:30`
_COLON = r"(?<![0-9])(?<![0-9] ):|(?<=[0-9]):(?= )"
_CUE = re.compile(
    rf"(?P<before>.*(?:\b(?:is|are|was|equals?|be)\b|['’]s\b|{_COLON}))(?P<value>.+)", re.S
)
# makes another number of what follows
_CHANGES = re.compile(
    r"(?:\b(?:negative|minus|plus|times|twice|thrice|double|triple|half(?: of)?|percent of|root of"
    r"|squares? of|cube of|(?:less|more|greater|fewer|smaller|larger|bigger|higher|lower) than"
    r"|at (?:least|most)|over|under|above|below|up to|nearly|almost|exceeds?|rejects?"
    r"|reciprocal of)|(?<![\w)])[-−])[\s:]*$",
    re.I,
)
# makes another number of what precedes
_CHANGES_AFTER = re.compile(
    r"^(?:squared|cubed|doubled|halved|percent of|plus|minus|times|divided|over|less|more|dozens?"
    r"|hundreds?|thousands?|[a-z]*illions?|halves|thirds|quarters|(?:fif|six|seven|eigh|nin|ten)ths"
    r"|(?:hundred|thousand)ths"
    r"|(?:is|are) (?:too|rejected|excluded|impossible|ruled))\b",
    re.I,
)
# what a sentence may say another number of, where it has not said which
_OF_ANOTHER = re.compile(r"\b(?:twice|thrice|double|triple|half|reciprocal|minus|negative)\b", re.I)
_INTRODUCES = re.compile(r"(?:=|\\in|\\approx|[^\W\d_]{2}|[:,.])$")
_STYLE = re.compile(r"\\(?:text\w*|math\w*|mbox|boxed|left|right|quad|[,;!: ])")
_MARKS = " \n.,;:*"
_MARKS_ROUND = re.compile(r"^(?:\.(?![0-9])|[ \n,;:*])+|[ \n.,;:*]+$")
_DELIMITER = re.compile(r"\\[\[\]()]|(?<!\\)\$+|\\left\b|\\right\b")


def formula(text: str) -> str:
    """The mathematics of a text, without delimiters and the prose round it.

    Raises:
      Unreadable: several formulas, or doubt about the one.
    """
    lines = [seen(line) for line in re.sub(r"\\n(?![A-Za-z])", "\n", text).splitlines()]
    text = _without_lines("\n".join(line for line in lines if line))
    if r"\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z\[\](){}])", r"\\", text)  # escaped twice
    if _BOX.search(text):
        return _boxed(text)
    whole = unwrapped(" ".join(text.split()))
    if not _DELIMITER.search(whole):
        return _ending(whole) if _prosaic(whole) else whole
    spans = list(_SPAN.finditer(text))
    if not spans:
        return _ending(whole) if _prosaic(whole) else whole.strip("$ ")
    formulas = [bare(next(filter(None, span.groups()))) for span in spans]
    stops = [0, *(place for span in spans for place in span.span()), len(text)]
    around = [text[a:b].strip(_MARKS) for a, b in zip(stops[::2], stops[1::2], strict=True)]
    if not around[0] and not around[-1] and all(_JOINS.fullmatch(gap) for gap in around):
        either = all(re.search(r"\bor\b", gap) for gap in around[1:-1])
        return (" or " if either else " , ").join(formulas)
    if len(spans) == 1 and not around[0] and _is_unit(around[1]):
        return f"{formulas[0]} {around[1]}"
    if len(spans) == 1 and all(map(_harmless, around)) and _unchanged(*around):
        return formulas[0]
    return _ending(_DELIMITER.sub(" ", text))


def _without_lines(text: str) -> str:
    """The text with the lines of displays in one; as it is where those say more than a list."""
    displays = list(_LINES.finditer(text))
    for match in displays:
        alone = len(displays) == 1 and not _GOES_ON.search(text[: match.start()])
        if match["name"] == "cases" and (not alone or _VALUE_FIRST.search(match["body"])):
            return text
    return _LINES.sub(_in_one_line, text)


def _in_one_line(match: re.Match[str]) -> str:
    """Lines of a display: a chain where a line begins with a relation, else a list."""
    body = re.sub(rf"&({_RELATION})", r" \1", match["body"])
    body = re.sub(rf"({_RELATION}\s*)&", r"\1 ", body)
    if "&" in body:  # columns, as of a function by cases
        return match[0]
    lines = map(bare, _NEXT_LINE.split(body))
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
    before, *between, after = (_DELIMITER.sub(" ", piece).strip(_MARKS + "{}") for piece in around)
    if not all(map(_joins, between)) or DOUBT.search(before) or DOUBT.search(after):
        raise Unreadable("several boxes, or doubt")
    if len(inside) > 1:
        return " , ".join(inside)
    if _is_unit(after):
        return f"{inside[0]} {after}"
    apart = not after or (re.search("[A-Za-z]{3}", after) and not around[-1][:1].isalnum())
    led_in = not before or _INTRODUCES.search(before)
    if apart and _PROSE.fullmatch(after) and led_in and _unchanged(before, after):
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


def _unchanged(before: str, after: str) -> bool:
    """Whether no word makes another number of what stands between."""
    return not (_CHANGES.search(before) or _CHANGES_AFTER.search(after))


def bare(text: str) -> str:
    """The text without blanks and marks round it; the point of `.5` is none."""
    return _MARKS_ROUND.sub("", text)


def _prosaic(text: str) -> bool:
    return bool(re.search(r"(?<![\\A-Za-z{])[A-Za-z]{2,}['’]?[a-z]*:? ", text))


def _ending(text: str) -> str:
    """The value that a sentence ends in; the text itself where it is no such sentence."""
    match = _CUE.fullmatch(bare(text))
    if not match or not re.search("[A-Za-z]{2}", match["before"]):
        return text
    if DOUBT.search(re.split("[0-9]", match["before"])[-1]):
        raise Unreadable("doubt")
    said = _OF_ANOTHER.search(match["before"])  # twice 3 is 6, but twice this is 6
    if said and not re.search("[0-9]", match["before"][said.end() :]):
        raise Unreadable("another number")
    return bare(match["value"])


def letters(text: str) -> str:
    """Words without LaTeX, case and blanks."""
    text = _STYLE.sub("", unwrapped(seen(text)))
    return re.sub(r"[\s{}$]|\.$", "", text.casefold())
