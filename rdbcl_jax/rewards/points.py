r"""Numbers at the points where expressions are evaluated, and operations on them in bounded time.

Each takes microseconds whatever its numbers are: what would take longer, an exponent or an argument
that is too large, has no value.
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath

DIGITS = 60  # of evaluation
CHECK_DIGITS = 30  # of a second one, which tells zero from a tiny number
POINTS = 3
_LARGEST_EXPONENT = 10**15
_LARGEST_ARGUMENT = 10**6  # of exp, sin, gamma, …

Number = Any  # mpmath's real and complex numbers, whose classes each context makes
Node = Callable[["Place"], Number]  # an expression's value, at a point


class Unreadable(ValueError):
    """A text is no expression, or one without a value."""


LOCK = threading.RLock()  # mpmath's contexts change their precision while they work


def _context(digits: int) -> mpmath.MPContext:
    context = mpmath.MPContext()
    context.dps = digits
    return context


FINE, COARSE = _context(DIGITS), _context(CHECK_DIGITS)


@dataclasses.dataclass(frozen=True)
class Place:
    """A point of evaluation: a context of mpmath's, and what letters stand for."""

    context: mpmath.MPContext
    index: int

    def number(self, value: Fraction) -> Number:
        return self.context.mpf(value.numerator) / value.denominator

    def letter(self, name: str) -> Number:
        """A number from 0.3 to 3.3, at the second point below 0, at the third of either sign."""
        digest = hashlib.sha256(f"{name} {self.index}".encode()).digest()
        value = self.context.mpf(int.from_bytes(digest[:24])) / 2**192 * 3 + self.context.mpf("0.3")
        return -value if self.index == 1 or (self.index == 2 and digest[-1] % 2) else value


def small(value: Number, limit: int = _LARGEST_ARGUMENT) -> Number:
    if not abs(value) <= limit:
        raise Unreadable("a number too large")
    return value


def power(place: Place, base: Number, exponent: Number) -> Number:
    small(exponent, _LARGEST_EXPONENT)
    if base and exponent and abs(place.context.mag(base)) * abs(exponent) > _LARGEST_EXPONENT:
        raise Unreadable("a number too large")
    return place.context.power(base, exponent)


def root(place: Place, value: Number, index: Number) -> Number:
    """The root, of a negative number the real one where there is one: −2 of −8 for 3."""
    odd = not index.imag and place.context.fmod(small(index.real), 2) == 1
    if odd and not value.imag and value.real < 0:
        return -power(place, -value, 1 / index)
    return power(place, value, 1 / index)


def real_part(value: Number) -> Number:
    if getattr(value, "imag", 0):
        raise Unreadable("not a real number")
    return value.real


def constant(value: Fraction) -> Node:
    """A number as an expression."""
    return lambda place: place.number(value)


def _function(name: str) -> Callable[[Place, Number], Number]:
    return lambda place, value: getattr(place.context, name)(value)


def _of_small(name: str) -> Callable[[Place, Number], Number]:
    return lambda place, value: getattr(place.context, name)(small(value))


def factorial(place: Place, value: Number) -> Number:
    if real_part(value) < 0 or value != place.context.floor(value):
        raise Unreadable("a factorial of no natural number")
    return place.context.factorial(small(value))


_TRIGONOMETRIC = ("sin", "cos", "tan", "sec", "csc", "cot")
FUNCTIONS = {
    **{name: _of_small(name) for name in (*_TRIGONOMETRIC, "sinh", "cosh", "tanh", "exp")},
    **{f"arc{name}": _of_small(f"a{name}") for name in _TRIGONOMETRIC},
    **{name: _of_small(name) for name in ("asin", "acos", "atan")},
    **{"ln": _function("ln"), "log": _function("ln"), "lg": _function("log10")},
    **{"sgn": _function("sign"), "abs": lambda place, value: abs(value)},
}
