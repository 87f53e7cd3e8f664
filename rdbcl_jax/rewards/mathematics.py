r"""The `math` verifier: what a mathematical answer states, and whether that is what the gold says.

A text is read once, without regard to the gold, as one statement: a value, an equation or
inequality, a list, a tuple, a set, an interval, a matrix, a ratio, or, where it is none of these,
words. So a text that could be read as several answers states none of them. In particular:

- Prose may stand round one formula in `$…$`, `\[…\]` or `\boxed{…}` (`Therefore $x>5$.`), several
  boxes are a list, and a sentence may end in its value (`the answer is 7`), unless it is negated.
- `x = 5` states 5, under a name that counts where both sides name something. Of `x = 2+3 = 5`, the
  last value counts. Without a name, both sides of an equation must be the same: `4 = 3` states
  nothing. What follows `\approx` must be a rounding of what precedes it.
- Lists and sets have no order, tuples have. `-2 \le x \le 7` is the interval [-2, 7], and
  `x<2 or x>3` the union of two.
- Lines (`align*`, `cases`) are a list, where the next one does not go on with `= 5`.
- Units count where both sides have one; `28%` is 28 or 0.28, `45°` is 45 or π/4.
- Values are equal as numbers are (see `expressions`). Where the gold is a decimal number with at
  least three figures, two of them after the point, a value that rounds to it is equal; a rounded
  answer to an exact gold needs six figures. `math:0.01` allows one per cent instead.
- Words are equal if their letters are.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from rdbcl_jax.rewards import expressions
from rdbcl_jax.rewards.numerals import same_unit
from rdbcl_jax.rewards.statements import (
    Group,
    Named,
    Ratio,
    Reading,
    Relation,
    Table,
    Value,
    read,
)
from rdbcl_jax.rewards.text import visible

_WORTH = {"%": expressions.of_number(Fraction(1, 100)), "°": expressions.parse("π/180")}
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


def _same(gold: Reading, answer: Reading, tolerance: float) -> bool:
    if gold == answer:  # such as x ≥ x, whose difference, 0, is in no ratio to another
        return True
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
    return False


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
    kinds = {gold.left + gold.right, answer.left + answer.right}
    if kinds == {"or", "and"}:
        return False
    brackets = kinds - {"", "or", "and"}
    bare = "" in (gold.left, answer.left)
    other = (len(brackets) > 1 and not bare) or (bare and brackets - {"()", "{}", "}"})
    if other and kinds != {"or", "∪∪"}:
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
    units, alike = {gold.unit, answer.unit}, same_unit(gold.unit, answer.unit)
    if alike and expressions.equal(gold.expression, answer.expression, tolerance):
        return True
    if units == {"%", ""}:
        return _equal_without("%", gold, answer, tolerance)
    if units in ({"°", ""}, {"°", "rad"}) and _equal_without("°", gold, answer, tolerance):
        return True
    return alike and (
        _rounds(gold, answer, _GOLD_FIGURES) or _rounds(answer, gold, _ANSWER_FIGURES)
    )


def _equal_without(unit: str, gold: Value, answer: Value, tolerance: float) -> bool:
    """Whether they are equal once what the unit is worth is multiplied out."""
    g, a = (
        expressions.product(v.expression, _WORTH[unit]) if v.unit == unit else v.expression
        for v in (gold, answer)
    )
    return expressions.equal(g, a, tolerance)


def _rounds(decimal: Value, exact: Value, figures: int) -> bool:
    """Whether a decimal number of at least so many figures is the other value, rounded."""
    number, constant = decimal.quantity, exact.expression.constant
    if not number or number.places is None or number.figures < figures or not constant:
        return False
    if number.places < 2 and figures == _GOLD_FIGURES:
        return False
    step = Fraction(1, 2) / Fraction(10) ** number.places
    return expressions.within(decimal.expression, exact.expression, step)
