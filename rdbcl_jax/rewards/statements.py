r"""What a mathematical text states: a value, a relation, a list, an interval, a matrix, words.

Texts are split at what stands outside of brackets: at commas into items, at relation signs into
sides, down to expressions. Nothing is compared here.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from fractions import Fraction

from rdbcl_jax.rewards import expressions
from rdbcl_jax.rewards.expression_parser import tidy
from rdbcl_jax.rewards.expressions import Expression
from rdbcl_jax.rewards.formulas import DOUBT, bare, formula, letters
from rdbcl_jax.rewards.numerals import Quantity, quantity, same_unit, unit_of, without_thousands
from rdbcl_jax.rewards.points import Unreadable
from rdbcl_jax.rewards.text import closing_brace

LONGEST = 512  # characters that are read as mathematics; longer texts are words
MOST_ITEMS = 64  # of a list


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
    interval: Group | None = None  # that of `x > 5`,
    bounded: str = ""  # which bounds x


@dataclasses.dataclass(frozen=True)
class Named:
    name: str
    value: Reading
    relation: Relation | None = None  # where the name is an expression


@dataclasses.dataclass(frozen=True)
class Group:
    """A tuple, an interval, a set (`{`), a bare list (no bracket), or a union of sets (`∪`).

    A bare list of relations with `or` (or `and`) between all of them has that word as its right
    bracket.
    """

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
        return (Words(letters(text[: 16 * LONGEST])),)
    number = _numeral(text)
    found: list[Reading] = [number] if number else []
    if not number or _COMMA_LIST.search(text):
        try:
            found.append(_list(formula(text)))
        except (Unreadable, RecursionError):
            if not found:
                found.append(Words(letters(text)))
    return tuple(found)


# --- from a formula to a statement ----------------------------------------------------------------

_COMMA_LIST = re.compile(r"[0-9],[0-9]{1,2}(?![0-9])")
_LETTER_UNIT = re.compile(r"[0-9] ?[A-Za-z]\W*$")  # 3m is 3·m
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
    rf"|m?\\angle ?{_LETTER}|{_LETTER}{_CALL})"
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
    text = bare(_AND.sub(r" \1 ", text))
    if (number := _numeral(text)) and not _COMMA_LIST.search(text):
        return number
    text = bare(bare(" ".join(_SPACES.sub(" ", text).split())).strip("$"))
    if text.startswith("{") and closing_brace(text, 0) == len(text) - 1:
        text = text[1:-1].strip()  # braces are not printed
    groups = [_items(group) for group in _split(text, (";",))]
    if len(groups) == 1:
        groups = _systems(groups[0])
    if len(groups) > 1:
        items = [group[0] if len(group) == 1 else Group("(", group, ")") for group in groups]
    else:
        items = list(groups[0])
    if len(items) == 1:
        return items[0]
    for word in ("or", "and"):
        if _of_one(items) and len(_split(text, (word,))) == len(items):
            return Group("", tuple(items), word)
    return Group("", tuple(items), "")


def _systems(items: tuple[Reading, ...]) -> list[tuple[Reading, ...]]:
    """x=1, y=2, x=2, y=1 as two solutions: where several names come again in turn."""
    names = [item.name for item in items if isinstance(item, Named)]
    size = len({*names})
    if not 1 < size < len(items) == len(names) or len(items) % size:
        return [items]
    parts = [slice(start, start + size) for start in range(0, len(items), size)]
    if any(len({*names[part]}) < size for part in parts):
        raise Unreadable("names that come again")
    return [items[part] for part in parts]


def _of_one(items: Sequence[Reading]) -> bool:
    """Whether all are inequalities of one name; `2 < x < 3` is an interval by now."""
    bounded = [item.bounded for item in items if isinstance(item, Relation)]
    kinds = all(isinstance(i, Relation) or (isinstance(i, Group) and i.left in "([") for i in items)
    return kinds and len({*bounded}) == 1


def _items(text: str) -> tuple[Reading, ...]:
    if ", " in text and not any(bracket in text for bracket in _OPEN):  # 1,200, 2,500
        text = re.sub("[0-9][0-9,.]*[0-9]", lambda m: without_thousands(m[0]), text)
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
    doubt = text.islower() and DOUBT.search(text)  # `not = 3`; NO is a segment
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
    constants = [v for v in values if isinstance(v, Value) and v.expression.constant]
    if len(constants) == len(values):
        last = constants[-1]
        if all(same_unit(v.unit, last.unit) and _equal(v, last) for v in constants):
            return last
        raise Unreadable("sides that differ")
    if len(values) > 2:
        raise Unreadable("a chain without a name")
    return _relation("=", *values)


def _equal(first: Value, second: Value) -> bool:
    return expressions.equal(first.expression, second.expression)


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
            bounded = next((p for p in parts if p != "e" and _name(p)), None)  # x > a bounds x
            if bounded is None:
                return relation
            if bounded == low[0]:  # x < 5
                items = (Value(expressions.parse("-∞")), _operand(low[1]))
                interval = Group("(", items, ")" if brackets[0] == "(" else "]")
            else:  # 5 < x
                items = (_operand(low[0]), Value(expressions.parse("∞")))
                interval = Group(brackets[0], items, ")")
            return dataclasses.replace(relation, interval=interval, bounded=bounded)
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
