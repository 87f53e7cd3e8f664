r"""Mathematical expressions, read and compared in bounded time.

An expression, in LaTeX or plain (`\frac{x+2}{7}`, `2*sqrt(3)`, `x²`), is read in one pass and then
evaluated with 60 digits at three fixed points, where each of its letters stands for an arbitrary
number. Two expressions are equal if their values are: identities such as tan² + 1 = sec² need no
algebra. An operation takes microseconds, whatever its numbers are (`9^{9^{9}}`, `(x+y+z+w)^{60}`),
so that neither a clock nor a process of its own has to guard it, and no verdict depends on how busy
a machine is. Computer algebra would need both: no bound follows from the length of a text.

Letters are real numbers of either sign: √(x²) is not x.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable
from fractions import Fraction

import mpmath

from rdbcl_jax.rewards.expression_parser import Parser
from rdbcl_jax.rewards.points import (
    COARSE,
    FINE,
    LOCK,
    POINTS,
    Node,
    Number,
    Place,
    Unreadable,
    constant,
)

_EXACT = 1e-40  # relative difference of two values that were written without rounding


@dataclasses.dataclass(frozen=True)
class Expression:
    """What an expression is worth.

    Attributes:
      values: at the fixed points; None where it has no value.
      coarse: the same with fewer digits.
      constant: whether it has no letters.
    """

    values: tuple[Number | None, ...]
    coarse: tuple[Number | None, ...]
    constant: bool


def parse(text: str) -> Expression:
    """The expression that a whole text is.

    Raises:
      Unreadable: it is none, or has no value at any point.
    """
    parser = Parser(text)
    node = parser.parsed()
    return _valued(node, not parser.letters, parser.letters and not parser.imaginary)


@functools.lru_cache(maxsize=8192)
def of_number(value: Fraction) -> Expression:
    """A number that was read already."""
    return _valued(constant(value), constant=True, real=False)


def ratio(first: Expression, second: Expression) -> Number | None:
    """The constant that `first` is of `second`, None if they are not proportional."""
    with LOCK:
        pairs = zip(first.values, second.values, strict=True)
        ratios = [a / b for a, b in pairs if a is not None and b]
        if len(ratios) < 2 or not all(_near(r, ratios[0], _EXACT) for r in ratios):
            return None
        return ratios[0]


def proportional(a: Expression, b: Expression, c: Expression, d: Expression) -> bool:
    """Whether a : b = c : d, none of them 0."""
    if any(0 in part.values for part in (a, b, c, d)):
        return False
    return equal(_joined(a, d, operator.mul), _joined(b, c, operator.mul))


def difference(first: Expression, second: Expression) -> Expression:
    """first − second

    Raises:
      Unreadable: they have no value at the same point.
    """
    return _with_value(_joined(first, second, operator.sub))


def product(first: Expression, second: Expression) -> Expression:
    return _joined(first, second, operator.mul)


def _joined(first: Expression, second: Expression, operation: Callable) -> Expression:
    with LOCK:
        values, coarse = (
            tuple(None if None in pair else operation(*pair) for pair in zip(x, y, strict=True))
            for x, y in ((first.values, second.values), (first.coarse, second.coarse))
        )
    return Expression(values, coarse, first.constant and second.constant)


def equal(first: Expression, second: Expression, tolerance: float = 0.0) -> bool:
    """Whether two expressions have the same values, up to a relative tolerance."""
    with LOCK:
        return all(
            _same(*values, max(tolerance, _EXACT))
            for values in zip(first.values, second.values, first.coarse, second.coarse, strict=True)
        )


def within(first: Expression, second: Expression, distance: Fraction) -> bool:
    """Whether two constants are at most `distance` apart."""
    with LOCK:
        (a, *_), (b, *_) = first.values, second.values
        limit = mpmath.mpf(distance.numerator) / distance.denominator
        return a is not None and b is not None and bool(abs(a - b) <= limit * (1 + _EXACT))


def _near(a: Number, b: Number, tolerance: float) -> bool:
    return bool(abs(a - b) <= tolerance * max(abs(a), abs(b)))


def _same(a, b, coarse_a, coarse_b, tolerance: float) -> bool:
    if a is None or b is None:
        return a is b
    if _near(a, b, tolerance):
        return True
    if coarse_a is None or coarse_b is None:
        return False
    # a difference that is rounding alone shrinks with more digits: sin(π) and 0
    return bool(abs(a - b) < abs(coarse_a - coarse_b) * 1e-20)


def _valued(node: Node, constant: bool, real: bool) -> Expression:
    with LOCK:
        fine, coarse = (
            tuple(_value(node, Place(context, index), real) for index in range(POINTS))
            for context in (FINE, COARSE)
        )
    return _with_value(Expression(fine, coarse, constant))


def _with_value(expression: Expression) -> Expression:
    if all(value is None for value in expression.values):
        raise Unreadable("it has no value")
    return expression


def _value(node: Node, place: Place, real: bool) -> Number | None:
    """The value at a place; None if it is not finite, or not real where it should be."""
    try:
        value = node(place)
    except (ArithmeticError, ValueError, TypeError, mpmath.libmp.NoConvergence):
        return None
    if real and abs(value.imag) > abs(value) * 1e-20:
        return None
    return value if place.context.isfinite(value) else None
