r"""The `math` verifier: what a mathematical answer states, and whether that is what the gold says.

A text is read once, without regard to the gold, as one statement: a value, an equation or
inequality, a list, a tuple, a set, an interval, a matrix, a ratio, or, where it is none of these,
words. So a text that could be read as several answers states none of them. In particular:

- Prose may stand round one formula in `$…$`, `\[…\]` or `\boxed{…}` (`Therefore $x>5$.`), several
  boxes are a list, and a sentence may end in its value (`the answer is 7`), unless it is negated.
- `x = 5` states 5, under a name that counts where both sides name something. Of `x = 2+3 = 5`, the
  last value counts. Without a name, both sides of an equation must be the same: `4 = 3` states
  nothing. What follows `\approx` must be a rounding of what precedes it.
- Lists and sets have no order, tuples have. `-2 \le x \le 7` is the interval [-2, 7].
- Units count where both sides have one, `28%` is 28 or 0.28.
- Values are equal as numbers are (see `expressions`). Where the gold is a decimal number with at
  least three figures, two of them after the point, a value that rounds to it is equal; a rounded
  answer to an exact gold needs six figures. `math:0.01` allows one per cent instead.
- Words are equal if their letters are.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from fractions import Fraction

from rdbcl_jax.rewards import expressions
from rdbcl_jax.rewards.expressions import Expression, Unreadable, tidy
from rdbcl_jax.rewards.numerals import Quantity, quantity, unit_of
from rdbcl_jax.rewards.text import closing_brace, seen, unwrapped, visible

LONGEST = 512  # characters that are read as mathematics; longer texts are words
MOST_ITEMS = 64  # of a list
_GOLD_FIGURES, _ANSWER_FIGURES = 3, 6  # from which a decimal number may be a rounded value


def prepare(gold: str) -> Sequence[Reading]:
    """Reads the gold answer; what is no mathematics is words.

    Raises:
      ValueError: nothing can be seen of it.
    """
    if not visible(gold):
        raise ValueError("the gold answer is empty")
    return read(gold)


def compare(answer: str, gold: Sequence[Reading], tolerance: float) -> float:
    """1 if the answer states what the gold does, else 0."""
    found = read(answer)
    return float(any(_same(g, a, tolerance) for g in gold for a in found))


# --- what a text states --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Value:
    expression: Expression
    quantity: Quantity | None = None  # where it is one numeral
    unit: str = ""


@dataclasses.dataclass(frozen=True)
class Relation:
    """left − right, compared with 0 by `sign`: =, ≠, > or ≥."""

    sign: str
    difference: Expression
    interval: Group | None = None  # that of `x > 5`


@dataclasses.dataclass(frozen=True)
class Named:
    name: str
    value: Reading
    relation: Relation | None = None  # where the name is an expression


@dataclasses.dataclass(frozen=True)
class Group:
    """A tuple, an interval, a set (`{`), a bare list (no bracket), or a union of sets (`∪`)."""

    left: str
    items: tuple[Reading, ...]
    right: str


@dataclasses.dataclass(frozen=True)
class Table:
    rows: tuple[tuple[Reading, ...], ...]


@dataclasses.dataclass(frozen=True)
class Ratio:
    parts: tuple[Reading, ...]
    clock: bool  # it may be a time, such as 12:00


@dataclasses.dataclass(frozen=True)
class Words:
    letters: str


Reading = Value | Relation | Named | Group | Table | Ratio | Words


@functools.lru_cache(maxsize=8192)
def read(text: str) -> tuple[Reading, ...]:
    """What a text states; `1,22` alone is both a number and a list."""
    if len(text) > LONGEST:
        return (Words(_letters(text[: 16 * LONGEST])),)
    number = _numeral(text)
    found: list[Reading] = [number] if number else []
    if not number or _COMMA_LIST.search(text):
        try:
            found.append(_list(_formula(text)))
        except (Unreadable, RecursionError):
            if not found:
                found.append(Words(_letters(text)))
    return tuple(found)


# --- prose and formulas --------------------------------------------------------------------------

_LETTER_UNIT = re.compile(r"[0-9] ?[A-Za-z]\W*$")  # 3m is 3·m
_COMMA_LIST = re.compile(r"[0-9],[0-9]{1,2}(?![0-9])")
_SPAN = re.compile(
    r"(?<!\\)\$\$(?P<a>.+?)(?<!\\)\$\$|\\\[(?P<b>.+?)\\\]"
    r"|(?<!\\)\$(?P<c>(?:\\.|[^$\n\\])+?)\$|\\\((?P<d>[^\n]+?)\\\)",
    re.DOTALL,
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_JOINS = re.compile(r"\s*(?:[,;]|\\quad|\\text\s*\{[^{}]*\}|\band\b|\bor\b|&|\s)*\s*")
_JOIN = re.compile(r"[,;&]|\band\b|\bor\b")
_DOUBT = re.compile(
    r"(?:\b(?:not|no|never|neither|nor|none|cannot|without|except|unlike|wrong|incorrect|false"
    r"|instead|maybe|perhaps|possibly|or|either|if)\b|n['’]t\b)",
    re.I,
)
_PROSE = re.compile(r"[^\W\d_](?:[^\W\d_]|[\s,;:.!?'’\"()*-])*|[\s,;:.!*]*")
_CUE = re.compile(r"(?P<before>.*(?:\b(?:is|are|was|equals?|be)\b|['’]s\b|:))(?P<value>.+)", re.S)
_INTRODUCES = re.compile(r"(?:=|\\in|\\approx|[^\W\d_]{2}|[:,.])$")
_STYLE = re.compile(r"\\(?:text\w*|math\w*|mbox|boxed|left|right|quad|[,;!: ])")
_MARKS = " \n.,;:*"
_DELIMITER = re.compile(r"\\[\[\]()]|(?<!\\)\$+|\\left\b|\\right\b")


def _formula(text: str) -> str:
    """The mathematics of a text, without delimiters and the prose round it."""
    lines = [seen(line) for line in re.sub(r"\\n(?![A-Za-z])", "\n", text).splitlines()]
    text = "\n".join(line for line in lines if line)
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
    formulas = [next(filter(None, span.groups())).strip(_MARKS) for span in spans]
    stops = [0, *(place for span in spans for place in span.span()), len(text)]
    around = [text[a:b].strip(_MARKS) for a, b in zip(stops[::2], stops[1::2], strict=True)]
    if not around[0] and not around[-1] and all(_JOINS.fullmatch(gap) for gap in around):
        return " , ".join(formulas)
    if len(spans) == 1 and not around[0] and _is_unit(around[1]):
        return f"{formulas[0]} {around[1]}"
    if len(spans) == 1 and all(map(_harmless, around)):
        return formulas[0]
    return _ending(_DELIMITER.sub(" ", text))


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
    if not all(map(_joins, between)) or _DOUBT.search(before) or _DOUBT.search(after):
        raise Unreadable("several boxes, or doubt")
    if len(inside) > 1:
        return " , ".join(inside)
    if _is_unit(after):
        return f"{inside[0]} {after}"
    apart = not after or (re.search("[A-Za-z]{3}", after) and not around[-1][:1].isalnum())
    if apart and _PROSE.fullmatch(after) and (not before or _INTRODUCES.search(before)):
        return inside[0]
    return _BOX.sub("{", _DELIMITER.sub(" ", text))  # a box round a part of a formula


def _joins(between: str) -> bool:
    if _DOUBT.search(_JOIN.sub(" ", between)):
        return False
    return bool(_JOIN.search(between)) or not re.search(r"\w", between)


def _is_unit(text: str) -> bool:
    return bool(text) and (unit_of(text) is not None or quantity("1" + text) is not None)


def _harmless(text: str) -> bool:
    return bool(_PROSE.fullmatch(text)) and not _DOUBT.search(text)


def _prosaic(text: str) -> bool:
    return bool(re.search(r"(?<![\\A-Za-z{])[A-Za-z]{2,}['’]?[a-z]* ", text))


def _ending(text: str) -> str:
    """The value that a sentence ends in; the text itself where it is no such sentence."""
    match = _CUE.fullmatch(text.strip(_MARKS))
    if not match or not re.search("[A-Za-z]{2}", match["before"]):
        return text
    if _DOUBT.search(re.split("[0-9]", match["before"])[-1]):
        raise Unreadable("doubt")
    return match["value"].strip(_MARKS)


def _letters(text: str) -> str:
    """Words without LaTeX, case and blanks."""
    text = _STYLE.sub("", unwrapped(seen(text)))
    return re.sub(r"[\s{}$]|\.$", "", text.casefold())


# --- formulas ------------------------------------------------------------------------------------

_OPEN, _CLOSE = ("(", "[", "{", r"\{"), (")", "]", "}", r"\}")
_AND = re.compile(r"\\(?:text|mathrm|mbox)\s*\{\s*,?\s*(and|or)\s*\}")
_RELATIONS = {
    **dict.fromkeys(["=", "=="], "="),
    **dict.fromkeys([r"\approx", "≈", r"\simeq", r"\doteq"], "≈"),
    **dict.fromkeys([r"\neq", r"\ne", "!=", "≠"], "≠"),
    **dict.fromkeys(["<", r"\lt"], "<"),
    **dict.fromkeys([">", r"\gt"], ">"),
    **dict.fromkeys([r"\le", r"\leq", r"\leqslant", "<=", "≤", "⩽"], "≤"),
    **dict.fromkeys([r"\ge", r"\geq", r"\geqslant", ">=", "≥", "⩾"], "≥"),
    **dict.fromkeys([r"\in", "∈"], "∈"),
}
_PIECE = re.compile(
    r"\\begin\s*\{\w+\*?\}|\\end\s*\{\w+\*?\}|\\[A-Za-z]+|\\.|[<>!=]=|\band\b|(?<=[)\]0-9])or(?=[A-Z(\[0-9])|\bor\b|.",
    re.DOTALL,
)
_SPACES = re.compile(r"\\(?:left|right|quad|qquad|displaystyle)(?![A-Za-z])|(?<!\\)\\[,;:! ]|~")
_LETTER = r"(?:\\?[A-Za-zα-ωΑ-Ω]+)(?:_(?:\{[A-Za-z0-9, ]+\}|[A-Za-z0-9]))?'*"
_CALL = r"(?:\((?:[a-z](?:,[a-z])*)\))?"
_QUANTITY_NAME = (
    rf"(?:\\(?:text|mathrm)\{{[A-Za-z ]+\}}|\|{_LETTER}\||\\frac\{{{_LETTER}\}}\{{{_LETTER}\}}"
    rf"|\\angle ?{_LETTER}|{_LETTER}{_CALL})"
)
_NAME = re.compile(rf"{_QUANTITY_NAME}(?:[:/]{_QUANTITY_NAME})?|\({_LETTER}(?:,{_LETTER})+\)")
_TIME = re.compile(r"[0-9]{1,2}:[0-9]{2}(?::[0-9]{2})?")
_ENVIRONMENT = r"\{(?:[pbB]?matrix|array)\}"
_TABLE = re.compile(
    rf"\\begin\s*{_ENVIRONMENT}(?:\s*\{{[lcr|\s]*\}})?(.*)\\end\s*{_ENVIRONMENT}", re.S
)
_SUFFIX = re.compile(
    r"(?P<value>.*\S)\s*"
    r"(?:\\(?:text\w*|mathrm|mbox)\s*\{(?P<styled>[^{}]*)\}(?P<power>\s*\^\s*\{?[23]\}?)?"
    r"|\s(?P<plain>[A-Za-z][A-Za-z /²³]+(?:\^\{?[23]\}?)?))",
    re.DOTALL,
)


def _list(text: str) -> Reading:
    """Items between commas, semicolons, and, or; groups of assignments between semicolons."""
    text = _AND.sub(r" \1 ", text).strip(_MARKS)
    if (number := _numeral(text)) and not _COMMA_LIST.search(text):
        return number
    text = " ".join(_SPACES.sub(" ", text).split()).strip(_MARKS + "$")
    if text.startswith("{") and closing_brace(text, 0) == len(text) - 1:
        text = text[1:-1].strip()  # braces are not printed
    groups = [_items(group) for group in _split(text, (";",))]
    if len(groups) > 1:
        items = [group[0] if len(group) == 1 else Group("(", group, ")") for group in groups]
    else:
        items = list(groups[0])
    return items[0] if len(items) == 1 else Group("", tuple(items), "")


def _items(text: str) -> tuple[Reading, ...]:
    parts = [part.strip() for part in _split(text, (",", "and", "or"))]
    kept = [part for part in parts if part]
    if not kept or len(kept) > MOST_ITEMS:
        raise Unreadable("no items, or too many")
    if len(kept) > 1 and any(re.fullmatch("0[0-9]+", part) for part in kept):
        raise Unreadable("a number cut by commas")
    return tuple(item for part in kept for item in _signed(part))


def _signed(text: str) -> list[Reading]:
    """`±` states two values."""
    if not re.search(r"\\pm(?![a-z])|±", text):
        return [_item(text)]
    plus = re.sub(r"\\pm(?![a-z])|±", "+", re.sub(r"\\mp(?![a-z])|∓", "-", text))
    minus = re.sub(r"\\pm(?![a-z])|±", "-", re.sub(r"\\mp(?![a-z])|∓", "+", text))
    return [_item(plus), _item(minus)]


def _split(text: str, marks: Sequence[str]) -> list[str]:
    """Splits at marks outside of brackets."""
    parts, depth = [""], 0
    for piece in _PIECE.findall(text):
        depth += piece in _OPEN or piece.startswith(r"\begin")
        depth -= piece in _CLOSE or piece.startswith(r"\end")
        if depth == 0 and piece in marks:
            parts.append("")
        else:
            parts[-1] += piece
    return parts


def _item(text: str) -> Reading:
    """One statement: a chain of relations, or a value."""
    parts, signs = [""], []
    depth = 0
    for piece in _PIECE.findall(text):
        depth += piece in _OPEN or piece.startswith(r"\begin")
        depth -= piece in _CLOSE or piece.startswith(r"\end")
        if depth == 0 and piece in _RELATIONS:
            signs.append(_RELATIONS[piece])
            parts.append("")
        else:
            parts[-1] += piece
    parts = [part.strip() for part in parts]
    if signs and not parts[0] and signs[0] in "=≈":
        parts, signs = parts[1:], signs[1:]  # = 3
    if not all(parts):
        raise Unreadable("a relation without a side")
    if not signs:
        return _operand(parts[0])
    if set(signs) <= {"=", "≈"}:
        return _equation(parts, signs)
    if signs == ["∈"]:
        return Named(_name(parts[0]) or "", _operand(parts[1]))
    return _inequality(parts, signs)


def _name(text: str) -> str | None:
    """What the left side of an equation names, if it is a name: `x`, `f(x)`, `AB`, `(p,q)`."""
    text = tidy(text).replace(" ", "")
    doubt = text.islower() and _DOUBT.search(text)  # `not = 3`; NO is a segment
    if doubt or not _NAME.fullmatch(text) or text in ("π", "i", "∞"):
        return None
    if text.startswith("("):
        return text
    return re.sub(r"\([a-z](,[a-z])*\)$", "()", re.sub("[{}]", "", text))


def _equation(parts: list[str], signs: list[str]) -> Reading:
    name = _name(parts[0])
    for left, sign, right in zip(parts, signs, parts[1:], strict=False):
        if sign == "≈" and not (name and left is parts[0]):
            _check_rounding(left, right)
    exact = [part for part, sign in zip(parts, ["=", *signs], strict=True) if sign == "="]
    if name:
        value = _operand(exact[-1] if len(exact) > 1 else parts[1])
        return Named(name, value, _named_relation(parts[0], value))
    values = [_operand(part) for part in exact]
    if len(values) == 1:
        return values[0]
    if all(isinstance(value, Value) and value.expression.constant for value in values):
        if all(_same(values[-1], value, 0.0) for value in values):
            return values[-1]
        raise Unreadable("sides that differ")
    if len(values) > 2:
        raise Unreadable("a chain without a name")
    return _relation("=", *values)


def _named_relation(name: str, value: Reading) -> Relation | None:
    try:
        return _relation("=", Value(expressions.parse(name)), value)
    except Unreadable:  # a name that is no expression
        return None


def _check_rounding(left: str, right: str) -> None:
    exact, rounded = _operand(left), quantity(right)
    if not isinstance(exact, Value) or not rounded or not exact.expression.constant:
        raise Unreadable("no rounding")
    step = Fraction(1, 2) / Fraction(10) ** (rounded.places or 0)
    if not expressions.within(exact.expression, expressions.of_number(rounded.value), step):
        raise Unreadable("a wrong rounding")


def _relation(sign: str, left: Reading, right: Reading) -> Relation:
    if not isinstance(left, Value) or not isinstance(right, Value):
        raise Unreadable("a relation of no values")
    if sign in "<≤":
        left, right, sign = right, left, {"<": ">", "≤": "≥"}[sign]
    return Relation(sign, expressions.difference(left.expression, right.expression))


def _inequality(parts: list[str], signs: list[str]) -> Reading:
    down = all(sign in ">≥" for sign in signs)
    if down or all(sign in "<≤" for sign in signs):
        low, high = (parts[::-1], signs[::-1]) if down else (parts, signs)
        brackets = ["[" if sign in "≤≥" else "(" for sign in high]
        if len(low) == 3 and _name(low[1]):
            items = (_operand(low[0]), _operand(low[2]))
            return Group(brackets[0], items, ")" if brackets[1] == "(" else "]")
        if len(low) == 2:
            relation = _relation(signs[0], *map(_operand, parts))
            interval = None
            if _name(low[0]):  # x < 5
                items = (Value(expressions.parse("-∞")), _operand(low[1]))
                interval = Group("(", items, ")" if brackets[0] == "(" else "]")
            elif _name(low[1]):  # 5 < x
                items = (_operand(low[0]), Value(expressions.parse("∞")))
                interval = Group(brackets[0], items, ")")
            return dataclasses.replace(relation, interval=interval)
    pairs = zip(parts, signs, parts[1:], strict=False)
    relations = tuple(_relation(sign, _operand(a), _operand(b)) for a, sign, b in pairs)
    return relations[0] if len(relations) == 1 else Group("<", relations, "<")


def _operand(text: str) -> Reading:
    """A value, or a structure of values."""
    text = text.strip()
    if number := _numeral(text):
        return number
    if len(pieces := _split(text, (r"\cup", "∪"))) > 1:
        return Group("∪", tuple(map(_operand, pieces)), "∪")
    if len(pieces := _split(text, (":",))) > 1:
        return Ratio(tuple(map(_operand, pieces)), bool(_TIME.fullmatch(text)))
    if table := _TABLE.fullmatch(text):
        return _table(table[1])
    if group := _group(text):
        return group
    if suffix := _SUFFIX.fullmatch(text):
        unit = unit_of((suffix["styled"] or suffix["plain"] or "") + (suffix["power"] or ""))
        if unit:
            return Value(expressions.parse(suffix["value"]), unit=unit)
    return Value(expressions.parse(text))


def _group(text: str) -> Reading | None:
    """A tuple, interval or set, where one pair of brackets holds all of the text."""
    pieces = _PIECE.findall(text)
    if len(pieces) < 2 or pieces[0] not in _OPEN or pieces[-1] not in _CLOSE:
        return None
    depths, depth = [], 0
    for piece in pieces:
        depth += (piece in _OPEN) - (piece in _CLOSE)
        depths.append(depth)
    if 0 in depths[:-1] or depth:
        return None
    left, right = pieces[0].strip("\\"), pieces[-1].strip("\\")
    inside = "".join(pieces[1:-1]).strip()
    if len(_split(inside, (",", ";"))) == 1 and pieces[0] != r"\{":
        return None if not inside.startswith(r"\begin") else _operand(inside)
    items = tuple(item for part in _split(inside, (",", ";")) for item in _signed(part.strip()))
    if len(items) > MOST_ITEMS:
        raise Unreadable("too many items")
    return Group("{" if pieces[0] == r"\{" else "" if left == "{" else left, items, right)


def _table(text: str) -> Table:
    rows = [row.strip() for row in re.split(r"\\\\|\\cr(?![a-z])", text)]
    cells = [[cell.strip() for cell in row.split("&")] for row in rows if row]
    if not cells or len({len(row) for row in cells}) != 1:
        raise Unreadable("rows of different lengths")
    return Table(tuple(tuple(map(_operand, row)) for row in cells))


def _numeral(text: str) -> Value | None:
    number = None if _LETTER_UNIT.search(text) else quantity(text)
    return Value(expressions.of_number(number.value), number, number.unit) if number else None


# --- whether two texts state the same ------------------------------------------------------------


def _same(gold: Reading, answer: Reading, tolerance: float) -> bool:
    if isinstance(gold, Named) and isinstance(answer, Named):
        return gold.name == answer.name and _same(gold.value, answer.value, tolerance)
    if isinstance(gold, Named):
        return _named(gold, answer) or _same(gold.value, answer, tolerance)
    if isinstance(answer, Named):
        return _named(answer, gold) or _same(gold, answer.value, tolerance)
    if isinstance(gold, Relation) and isinstance(answer, Group):
        return gold.interval is not None and _same(gold.interval, answer, tolerance)
    if isinstance(gold, Group) and isinstance(answer, Relation):
        return answer.interval is not None and _same(gold, answer.interval, tolerance)
    if isinstance(gold, Group) and isinstance(answer, Group):
        return _same_groups(gold, answer, tolerance)
    if isinstance(gold, Group) or isinstance(answer, Group):
        gold, answer = _only(gold), _only(answer)
        one = not isinstance(gold, Group) and not isinstance(answer, Group)
        return one and _same(gold, answer, tolerance)
    if isinstance(gold, Value) and isinstance(answer, Value):
        return _same_values(gold, answer, tolerance)
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        return _same_relations(gold, answer)
    if isinstance(gold, Table) and isinstance(answer, Table):
        return list(map(len, gold.rows)) == list(map(len, answer.rows)) and all(
            _same(g, a, tolerance)
            for row, other in zip(gold.rows, answer.rows, strict=True)
            for g, a in zip(row, other, strict=True)
        )
    if isinstance(gold, Ratio) and isinstance(answer, Ratio):
        return _same_ratios(gold, answer, tolerance)
    return isinstance(gold, Words) and gold == answer


def _only(reading: Reading) -> Reading:
    """The element of a set of one."""
    if isinstance(reading, Group) and reading.left == "{" and len(reading.items) == 1:
        return reading.items[0]
    return reading


def _named(named: Named, other: Reading) -> bool:
    """Whether `y = 2x` is the other equation, as `y - 2x = 0`."""
    if named.relation is None or not isinstance(other, Relation):
        return False
    return _same_relations(named.relation, other)


def _same_relations(gold: Relation, answer: Relation) -> bool:
    factor = expressions.ratio(gold.difference, answer.difference)
    if gold.sign != answer.sign or not factor:
        return False
    return gold.sign in "=≠" or bool(getattr(factor, "imag", 0) == 0 and factor.real > 0)


def _same_groups(gold: Group, answer: Group, tolerance: float) -> bool:
    if len(gold.items) != len(answer.items):
        return False
    brackets = {gold.left + gold.right, answer.left + answer.right} - {""}
    bare = "" in (gold.left, answer.left)
    if (len(brackets) > 1 and not bare) or (bare and brackets - {"()", "{}", "}"}):
        return False
    pairs = zip(gold.items, answer.items, strict=True)
    ordered = bool(brackets) and brackets <= {"()", "(]", "[)", "[]", "<<"}
    if ordered or _names(gold) != _names(answer):  # names say which is which
        return all(_same(g, a, tolerance) for g, a in pairs)
    left = list(answer.items)
    for g in gold.items:
        match = next((i for i, a in enumerate(left) if _same(g, a, tolerance)), None)
        if match is None:
            return False
        del left[match]
    return True


def _names(group: Group) -> bool:
    """Whether each item has a name of its own."""
    names = {item.name for item in group.items if isinstance(item, Named)}
    return len(names) == len(group.items)


def _same_ratios(gold: Ratio, answer: Ratio, tolerance: float) -> bool:
    if len(gold.parts) != len(answer.parts):
        return False
    pairs = list(zip(gold.parts, answer.parts, strict=True))
    if all(_same(g, a, tolerance) for g, a in pairs):
        return True
    if gold.clock and answer.clock:
        return False
    (g, a), *others = pairs
    return all(_proportional(g, a, h, b) for h, b in others)


def _proportional(g: Reading, a: Reading, h: Reading, b: Reading) -> bool:
    """Whether g : h = a : b."""
    parts = [part.expression for part in (g, h, a, b) if isinstance(part, Value)]
    return len(parts) == 4 and expressions.proportional(*parts)


def _same_values(gold: Value, answer: Value, tolerance: float) -> bool:
    if gold.unit and answer.unit and gold.unit != answer.unit:
        return False
    if expressions.equal(gold.expression, answer.expression, tolerance):
        return True
    if (gold.unit == "%") != (answer.unit == "%") and not (gold.unit and answer.unit):
        g, a = (
            expressions.scaled(v.expression, Fraction(1, 100 if v.unit else 1))
            for v in (gold, answer)
        )
        return expressions.equal(g, a, tolerance)
    return _rounds(gold, answer, _GOLD_FIGURES) or _rounds(answer, gold, _ANSWER_FIGURES)


def _rounds(decimal: Value, exact: Value, figures: int) -> bool:
    """Whether a decimal number of at least so many figures is the other value, rounded."""
    number, constant = decimal.quantity, exact.expression.constant
    if not number or number.places is None or number.figures < figures or not constant:
        return False
    if number.places < 2 and figures == _GOLD_FIGURES:
        return False
    step = Fraction(1, 2) / Fraction(10) ** number.places
    return expressions.within(decimal.expression, exact.expression, step)
