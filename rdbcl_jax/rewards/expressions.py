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
import hashlib
import itertools
import operator
import re
import threading
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath

DIGITS = 60  # of evaluation
_CHECK_DIGITS = 30  # of a second one, which tells zero from a tiny number
_EXACT = 1e-40  # relative difference of two values that were written without rounding
_POINTS = 3
_DEEPEST = 40  # groups within groups
_LARGEST_EXPONENT = 10**15
_LARGEST_ARGUMENT = 10**6  # of exp, sin, gamma, …

Number = Any  # mpmath's real and complex numbers, whose classes each context makes
_Node = Callable[["_Place"], "Number"]  # an expression's value, at a place


class Unreadable(ValueError):
    """A text is no expression, or one without a value."""


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
    parser = _Parser(text)
    node = parser.parsed()
    return _valued(node, not parser.letters, parser.letters and not parser.imaginary)


@functools.lru_cache(maxsize=8192)
def of_number(value: Fraction) -> Expression:
    """A number that was read already."""
    return _valued(_constant(value), constant=True, real=False)


def ratio(first: Expression, second: Expression) -> Number | None:
    """The constant that `first` is of `second`, None if they are not proportional."""
    with _LOCK:
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
    """first − second"""
    return _joined(first, second, operator.sub)


def scaled(expression: Expression, factor: Fraction) -> Expression:
    """The expression times a number."""
    return _joined(expression, of_number(factor), operator.mul)


def _joined(first: Expression, second: Expression, operation: Callable) -> Expression:
    with _LOCK:
        values, coarse = (
            tuple(None if None in pair else operation(*pair) for pair in zip(x, y, strict=True))
            for x, y in ((first.values, second.values), (first.coarse, second.coarse))
        )
    return Expression(values, coarse, first.constant and second.constant)


def equal(first: Expression, second: Expression, tolerance: float = 0.0) -> bool:
    """Whether two expressions have the same values, up to a relative tolerance."""
    with _LOCK:
        return all(
            _same(*values, max(tolerance, _EXACT))
            for values in zip(first.values, second.values, first.coarse, second.coarse, strict=True)
        )


def within(first: Expression, second: Expression, distance: Fraction) -> bool:
    """Whether two constants are at most `distance` apart."""
    with _LOCK:
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


# --- values --------------------------------------------------------------------------------------

_LOCK = threading.RLock()  # mpmath's contexts change their precision while they work


def _context(digits: int) -> mpmath.MPContext:
    context = mpmath.MPContext()
    context.dps = digits
    return context


_FINE, _COARSE = _context(DIGITS), _context(_CHECK_DIGITS)


@dataclasses.dataclass(frozen=True)
class _Place:
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


def _valued(node: _Node, constant: bool, real: bool) -> Expression:
    with _LOCK:
        fine, coarse = (
            tuple(_value(node, _Place(context, index), real) for index in range(_POINTS))
            for context in (_FINE, _COARSE)
        )
    if all(value is None for value in fine):
        raise Unreadable("it has no value")
    return Expression(fine, coarse, constant)


def _value(node: _Node, place: _Place, real: bool) -> Number | None:
    """The value at a place; None if it is not finite, or not real where it should be."""
    try:
        value = node(place)
    except (ArithmeticError, ValueError, TypeError, mpmath.libmp.NoConvergence):
        return None
    if real and abs(value.imag) > abs(value) * 1e-20:
        return None
    return value if place.context.isfinite(value) else None


def _small(value: Number, limit: int = _LARGEST_ARGUMENT) -> Number:
    if not abs(value) <= limit:
        raise Unreadable("a number too large")
    return value


def _power(place: _Place, base: Number, exponent: Number) -> Number:
    _small(exponent, _LARGEST_EXPONENT)
    if base and exponent and abs(place.context.mag(base)) * abs(exponent) > _LARGEST_EXPONENT:
        raise Unreadable("a number too large")
    return place.context.power(base, exponent)


def _root(place: _Place, value: Number, index: Number) -> Number:
    """The real root where there is one, as of −8 for 3."""
    if index == 3 and not isinstance(value, mpmath.mpc) and value < 0:
        return -place.context.power(-value, 1 / index)
    return _power(place, value, 1 / index)


def _real(value: Number) -> Number:
    if getattr(value, "imag", 0):
        raise Unreadable("not a real number")
    return value.real


# --- reading -------------------------------------------------------------------------------------

# without those that look like Latin capitals
_GREEK = {
    **dict(alpha="α", beta="β", gamma="γ", delta="δ", epsilon="ε", zeta="ζ", eta="η", theta="θ"),
    **dict(iota="ι", kappa="κ", mu="μ", nu="ν", xi="ξ", pi="π", rho="ρ", sigma="σ", tau="τ"),
    **dict(upsilon="υ", phi="φ", chi="χ", psi="ψ", omega="ω", varepsilon="ε", vartheta="θ"),
    **dict(varphi="φ", varrho="ρ", Gamma="Γ", Delta="Δ", Theta="Θ", Lambda="Λ", Xi="Ξ", Pi="Π"),
    **dict(Sigma="Σ", Phi="Φ", Psi="Ψ", Omega="Ω"),
    "lambda": "λ",
}
_SYMBOLS = {
    **{rf"\{name}": letter for name, letter in _GREEK.items()},
    **dict.fromkeys([r"\cdot", r"\times", "·", "×", "⋅", "∗"], "*"),
    **dict.fromkeys([r"\div", "÷", "∕", "⁄"], "/"),
    **dict.fromkeys([r"\left", r"\right", r"\displaystyle", r"\quad", r"\qquad", r"\limits"], " "),
    **dict.fromkeys([r"\,", r"\!", r"\;", r"\:", "\\ ", "~", r"\big", r"\Big"], " "),
    **dict.fromkeys([r"\dfrac", r"\tfrac", r"\cfrac"], r"\frac"),
    **dict.fromkeys([r"\lvert", r"\rvert", r"\vert", r"\mid"], "|"),
    **dict.fromkeys([r"\degree", r"\circ", "º"], "°"),
    **dict.fromkeys([r"\infty", r"\infin", "oo"], "∞"),
    **dict.fromkeys([r"\emptyset", r"\varnothing", "Ø"], "∅"),
    **{"−": "-", "–": "-", r"\%": "%", r"\lbrack": "[", r"\rbrack": "]"},
    **{"√": r"\sqrt ", "∑": r"\sum "},
}
_STYLED = re.compile(
    r"\\(?:text|mathrm|mathbf|mathit|mathbb|mathcal|mathsf|textit|textbf|mbox|vec|hat|bar|operatorname)"
    r"\s*\{\s*([A-Za-z]+|\([A-Za-z]\))\s*\}"
)
_RAISED = re.compile("[⁺⁻⁰¹²³⁴-⁹ⁿˣ]+")
_LOWERED = re.compile("[₀-₉]+")
_PLAIN = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿˣ₀₁₂₃₄₅₆₇₈₉", "0123456789+-nx0123456789")
_ANY_SYMBOL = re.compile(r"\\[A-Za-z]+|\\.|oo\b|[^\x00-\x7f]")
_TOKEN = re.compile(r"\s+|\\[A-Za-z]+|[0-9]+(?:\.[0-9]*)?|\.[0-9]+|[A-Za-z]+|\*\*|.", re.DOTALL)

# two letters that are a word, where others are a product
_WORDS = "am an as at be by do go he hi if in is it me my no of on or so to up us we"


def _function(name: str, inverse: str = "", real: bool = False):
    def apply(place: _Place, value: Number) -> Number:
        return getattr(place.context, name)(_real(value) if real else _small(value))

    return apply


def _factorial(place: _Place, value: Number) -> Number:
    if _real(value) < 0 or value != place.context.floor(value):
        raise Unreadable("a factorial of no natural number")
    return place.context.factorial(_small(value))


_TRIGONOMETRIC = ("sin", "cos", "tan", "sec", "csc", "cot")
_FUNCTIONS = {
    **{name: _function(name) for name in (*_TRIGONOMETRIC, "sinh", "cosh", "tanh", "exp")},
    **{f"arc{name}": _function(f"a{name}") for name in _TRIGONOMETRIC},
    **{name: _function(name) for name in ("asin", "acos", "atan")},
    **{"ln": _function("ln"), "log": _function("ln"), "lg": _function("log10")},
    **{"sgn": _function("sign"), "abs": lambda place, value: abs(value)},
}
_BRACKETS = {"(": ")", "[": "]", "{": "}", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
_ROUNDED = {r"\lfloor": "floor", r"\lceil": "ceil"}
# what no factor begins with
_ENDS = frozenset(
    ["", ")", "]", "}", r"\}", "|", "+", "-", "*", "/", r"\rfloor", r"\rceil", "^", "_", "!"]
)
_NO_FACTOR = "0123456789.,;=<>°%'&"


def tidy(text: str) -> str:
    """The text with one spelling for each symbol; commands of spacing and style are gone."""
    text = _RAISED.sub(lambda m: "^{" + m[0].translate(_PLAIN) + "}", text)
    text = _LOWERED.sub(lambda m: "_{" + m[0].translate(_PLAIN) + "}", text)
    text = re.sub(r"√\s*([0-9]+)", r"\\sqrt{\1}", text)
    text = _STYLED.sub(lambda m: f" {m[1]} ", text)
    return " ".join(_ANY_SYMBOL.sub(lambda m: _spelled(m[0]), text).split())


def _spelled(symbol: str) -> str:
    plain = _SYMBOLS.get(symbol, symbol)
    # a letter's command ends where the letter does: `\pi r` and `\pir` are both π r
    return plain + " " if symbol.startswith("\\") and plain.startswith("\\") else plain


class _Parser:
    """Recursive descent over the tokens of one text."""

    def __init__(self, text: str) -> None:
        self._tokens = [token for token in _TOKEN.findall(tidy(text)) if not token.isspace()]
        self._at = 0
        self._depth = 0
        self.letters = self.imaginary = False  # whether there are any, and `i`

    def parsed(self) -> _Node:
        node = self._sum()
        if self._next():
            raise Unreadable(f"found {self._next()!r} after an expression")
        return node

    def _next(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1] if self._at <= len(self._tokens) else ""

    def _expect(self, token: str) -> None:
        if self._take() != token:
            raise Unreadable(f"expected {token!r}")

    def _sum(self) -> _Node:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise Unreadable("too deep")
        terms = [self._product()]
        while self._next() in ("+", "-"):
            terms.append(self._product())  # which takes the sign
        self._depth -= 1
        return terms[0] if len(terms) == 1 else lambda p: sum((t(p) for t in terms), p.context.zero)

    def _sign(self) -> int:
        sign = 1
        while self._next() in ("+", "-"):
            sign *= -1 if self._take() == "-" else 1
        return sign

    def _product(self) -> _Node:
        sign = self._sign()
        factors, divisors = [self._factor()], list[_Node]()
        while True:
            token = self._next()
            if token in ("*", "/"):
                self._take()
                inner = self._sign()
                sign *= inner
                (divisors if token == "/" else factors).append(self._factor())
            elif token in _ENDS or token[0] in _NO_FACTOR:
                break
            else:
                factors.append(self._factor())

        def value(place: _Place) -> Number:
            result = place.context.mpf(sign)
            for factor in factors:
                result *= factor(place)
            for divisor in divisors:
                result /= divisor(place)
            return result

        return value

    def _factor(self) -> _Node:
        """An atom with its powers, factorials and signs of degrees and percent."""
        base, marks = self._atom(), list[tuple[str, _Node]]()
        while self._next() in ("^", "**", "!", "°", "%"):
            mark = self._take()
            if mark in ("^", "**"):
                if self._next() == "°" or self._tokens[self._at : self._at + 3] == ["{", "°", "}"]:
                    self._at += 1 if self._next() == "°" else 3
                    marks.append(("°", base))
                else:
                    marks.append(("^", self._exponent()))
            else:
                marks.append((mark, base))
        if not marks:
            return base

        def value(place: _Place) -> Number:
            result = base(place)
            for mark, exponent in marks:
                if mark == "^":
                    result = _power(place, result, exponent(place))
                elif mark == "!":
                    result = _factorial(place, result)
                else:
                    result = result / 100 if mark == "%" else result * place.context.pi / 180
            return result

        return value

    def _exponent(self) -> _Node:
        sign = self._sign()
        node = self._atom()
        if self._next() in ("^", "**"):  # a tower, from the top: 2^3^4 is 2^(3^4)
            self._take()
            self._depth += 1
            if self._depth > _DEEPEST:
                raise Unreadable("too deep")
            top = self._exponent()
            self._depth -= 1
            return lambda place: sign * _power(place, node(place), top(place))
        return lambda place: sign * node(place)

    def _group(self) -> _Node:
        """What a bracket that opens here holds."""
        left = self._take()
        node = self._sum()
        self._expect(_BRACKETS[left])
        return node

    def _argument(self, digits: bool = False) -> _Node:
        """A group in braces, else one token; `digits`: one digit of a number, as of `\\frac12`."""
        if self._next() in ("{", "("):
            return self._group()
        token = self._next()
        if digits and token.isdigit() and len(token) > 1:
            self._tokens[self._at] = token[1:]
            return _constant(Fraction(int(token[0])))
        return self._atom()

    def _atom(self) -> _Node:
        token = self._next()
        if token in ("(", "[", "{"):
            return self._group()
        if token in _ROUNDED:
            inside, name = self._group(), _ROUNDED[token]
            return lambda place: getattr(place.context, name)(_real(inside(place)))
        self._take()
        if token == "|":
            inside = self._sum()
            self._expect("|")
            return lambda place: abs(inside(place))
        if token[:1].isdigit() or token[:1] == ".":
            return self._numeral(token)
        name = token.removeprefix("\\")
        if token.startswith("\\") and hasattr(self, f"_command_{name}"):
            return getattr(self, f"_command_{name}")()
        if name == "sqrt":
            return self._command_sqrt()
        if name in _FUNCTIONS:
            return self._applied(name)
        if token in ("∞", "∅") or (token.isalpha() and len(token) == 1):
            return self._letter(token)
        if token.isascii() and token.isalpha() and (node := self._letters(token)):
            return node
        raise Unreadable(f"found {token!r}")

    def _numeral(self, token: str) -> _Node:
        if self._next() == "_":  # written in another base: only equal to itself
            return self._unknown(token + self._subscript())
        value = Fraction(token.rstrip(".") or "0")
        if self._next() == r"\overline" and "." in token:
            self._take()
            self._expect("{")
            period = self._take()
            self._expect("}")
            if not period.isdigit():
                raise Unreadable("expected digits that repeat")
            places = len(token.partition(".")[2])
            value += Fraction(int(period), (10 ** len(period) - 1) * 10**places)
        return _constant(value)

    def _letters(self, token: str) -> _Node | None:
        """Letters side by side are a product, unless they are a word."""
        if token == "pi":
            return lambda place: +place.context.pi
        run = all(ord(b) - ord(a) == 1 for a, b in itertools.pairwise(token))  # abc, xyz
        if token.lower() in _WORDS.split() or (len(token) > 2 and not run):
            return None
        self._tokens[self._at - 1 : self._at] = list(token)
        self._at -= 1
        nodes = [self._letter(self._take()) for _ in token[:-1]]
        last = self._factor()  # a power belongs to the last letter
        nodes.append(last)
        return lambda place: functools.reduce(operator.mul, (node(place) for node in nodes))

    def _letter(self, name: str) -> _Node:
        while self._next() in ("_", "'"):
            name += self._subscript() if self._next() == "_" else self._take()
        if name == "π":
            return lambda place: +place.context.pi
        if name == "e":
            return lambda place: +place.context.e
        if name == "i":
            self.imaginary = True
            return lambda place: place.context.mpc(0, 1)
        return self._unknown(name)

    def _unknown(self, name: str) -> _Node:
        self.letters = True
        return lambda place: place.letter(name)

    def _subscript(self) -> str:
        """`_` and what follows it, as text."""
        self._expect("_")
        if self._next() != "{":
            return "_" + self._take()
        parts, depth = list[str](), 0
        while token := self._take():
            depth += {"{": 1, "}": -1}.get(token, 0)
            if depth == 0:
                return "_" + "".join(parts)
            parts += [token] if depth > 1 or token != "{" else []
        raise Unreadable("a subscript without an end")

    def _applied(self, name: str) -> _Node:
        """A function of a group, or of the product that follows: `\\sin 2x`."""
        exponent = base = None
        while self._next() in ("^", "_"):
            if self._take() == "^":
                inverse = self._tokens[self._at : self._at + 4] == ["{", "-", "1", "}"]
                if inverse and "arc" + name in _FUNCTIONS:
                    self._at += 4
                    name = "arc" + name
                else:
                    exponent = self._exponent()
            else:
                base = self._argument(digits=True)
        function = _FUNCTIONS[name]
        argument = self._group() if self._next() in ("(", "{", "[") else self._tight_product()

        def value(place: _Place) -> Number:
            result = function(place, argument(place))
            if base is not None:
                result /= function(place, base(place))
            return result if exponent is None else _power(place, result, exponent(place))

        return value

    def _tight_product(self) -> _Node:
        nodes = [self._factor()]
        while True:
            token = self._next()
            another = token[:1] in ("(", "[") or token.strip("\\") in _FUNCTIONS
            if another or token in _ENDS or token[0] in _NO_FACTOR:
                break
            nodes.append(self._factor())
        return lambda place: functools.reduce(operator.mul, (node(place) for node in nodes))

    def _command_frac(self) -> _Node:
        over, under = self._argument(digits=True), self._argument(digits=True)
        return lambda place: over(place) / under(place)

    def _command_sqrt(self) -> _Node:
        index = _constant(Fraction(2))
        if self._next() == "[":
            index = self._group()
        inside = self._argument()
        return lambda place: _root(place, inside(place), index(place))

    def _command_binom(self) -> _Node:
        n, k = self._argument(digits=True), self._argument(digits=True)
        return lambda place: place.context.binomial(_small(n(place)), _small(k(place)))

    def _command_sum(self) -> _Node:
        """Linear in what follows, by a factor that its limits alone say."""
        limits = ""
        while self._next() in ("_", "^"):
            mark = self._next()
            self._tokens[self._at] = "_"
            limits += mark + self._subscript()
        body, factor = self._product(), self._unknown("sum" + limits)
        return lambda place: factor(place) * body(place)


def _constant(value: Fraction) -> _Node:
    return lambda place: place.number(value)
