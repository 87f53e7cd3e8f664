"""The parser of expressions, in LaTeX or plain: one pass of recursive descent.

A text becomes a function from points to values; nothing is computed here.
"""

from __future__ import annotations

import functools
import itertools
import operator
import re
from fractions import Fraction

from rdbcl_jax.rewards.points import (
    FUNCTIONS,
    Node,
    Number,
    Place,
    Unreadable,
    constant,
    factorial,
    power,
    real_part,
    root,
    small,
)

_DEEPEST = 40  # groups within groups

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
    **dict.fromkeys([r"\dbinom", r"\tbinom"], r"\binom"),
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


# what stands after `\frac`, of tokens with blanks between them
_DIGITS_OVER_DIGITS = re.compile(
    r"\{ ([0-9]+) \} \{ ([0-9]+) \}|([0-9])([0-9])(?![0-9.])|([0-9]) ([0-9])(?![0-9.])"
)
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


class Parser:
    """Recursive descent over the tokens of one text."""

    def __init__(self, text: str) -> None:
        self._tokens = [token for token in _TOKEN.findall(tidy(text)) if not token.isspace()]
        self._at = 0
        self._depth = 0
        self.letters = self.imaginary = False  # whether there are any, and `i`

    def parsed(self) -> Node:
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

    def _sum(self) -> Node:
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

    def _product(self) -> Node:
        sign = self._sign()
        factors, divisors = [self._factor()], list[Node]()
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

        def value(place: Place) -> Number:
            result = place.context.mpf(sign)
            for factor in factors:
                result *= factor(place)
            for divisor in divisors:
                result /= divisor(place)
            return result

        return value

    def _factor(self) -> Node:
        """An atom, or a mixed number, with its powers, factorials, signs of degrees and percent."""
        whole, base, marks = self._next(), self._atom(), list[tuple[str, Node]]()
        if whole.isdigit() and (rest := self._fraction_of_digits()):
            base = constant(Fraction(whole) + rest)
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

        def value(place: Place) -> Number:
            result = base(place)
            for mark, exponent in marks:
                if mark == "^":
                    result = power(place, result, exponent(place))
                elif mark == "!":
                    result = factorial(place, result)
                else:
                    result = result / 100 if mark == "%" else result * place.context.pi / 180
            return result

        return value

    def _exponent(self) -> Node:
        sign = self._sign()
        node = self._atom()
        if self._next() in ("^", "**"):  # a tower, from the top: 2^3^4 is 2^(3^4)
            self._take()
            self._depth += 1
            if self._depth > _DEEPEST:
                raise Unreadable("too deep")
            top = self._exponent()
            self._depth -= 1
            return lambda place: sign * power(place, node(place), top(place))
        return lambda place: sign * node(place)

    def _group(self) -> Node:
        """What a bracket that opens here holds."""
        left = self._take()
        node = self._sum()
        self._expect(_BRACKETS[left])
        return node

    def _argument(self, digits: bool = False) -> Node:
        """A group in braces, else one token; `digits`: one digit of a number, as of `\\frac12`."""
        if self._next() in ("{", "("):
            return self._group()
        token = self._next()
        if digits and token.isdigit() and len(token) > 1:
            self._tokens[self._at] = token[1:]
            return constant(Fraction(int(token[0])))
        return self._atom()

    def _atom(self) -> Node:
        token = self._next()
        if token in ("(", "[", "{"):
            return self._group()
        if token in _ROUNDED:
            inside, name = self._group(), _ROUNDED[token]
            return lambda place: getattr(place.context, name)(real_part(inside(place)))
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
        if name in FUNCTIONS:
            return self._applied(name)
        if token in ("∞", "∅") or (token.isalpha() and len(token) == 1):
            return self._letter(token)
        if token.isascii() and token.isalpha() and (node := self._letters(token)):
            return node
        raise Unreadable(f"found {token!r}")

    def _numeral(self, token: str) -> Node:
        if self._next() == "_":  # written in another base: only equal to itself
            return self._unknown(token + self._subscript())
        value = Fraction(token.rstrip(".") or "0")
        if self._next() in (r"\overline", r"\bar") and "." in token:
            self._take()
            self._expect("{")
            period = self._take()
            self._expect("}")
            if not period.isdigit():
                raise Unreadable("expected digits that repeat")
            places = len(token.partition(".")[2])
            value += Fraction(int(period), (10 ** len(period) - 1) * 10**places)
        return constant(value)

    def _fraction_of_digits(self) -> Fraction:
        """The rest of a mixed number, as in `2\\frac{1}{2}`, as numerals are read; 0 if none."""
        if self._next() != r"\frac":
            return Fraction(0)
        after = " ".join(self._tokens[self._at + 1 : self._at + 7])
        found = _DIGITS_OVER_DIGITS.match(after)
        if not found:
            return Fraction(0)
        over, under = (int(digits) for digits in found.groups() if digits)
        if over >= under:  # a factor
            return Fraction(0)
        self._at += 1 + len(found[0].split())
        return Fraction(over, under)

    def _letters(self, token: str) -> Node | None:
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

    def _letter(self, name: str) -> Node:
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

    def _unknown(self, name: str) -> Node:
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

    def _applied(self, name: str) -> Node:
        """A function of a group, or of the product that follows: `\\sin 2x`."""
        exponent = base = None
        while self._next() in ("^", "_"):
            if self._take() == "^":
                inverse = self._tokens[self._at : self._at + 4] == ["{", "-", "1", "}"]
                if inverse and "arc" + name in FUNCTIONS:
                    self._at += 4
                    name = "arc" + name
                else:
                    exponent = self._exponent()
            else:
                base = self._argument(digits=True)
        function = FUNCTIONS[name]
        argument = self._group() if self._next() in ("(", "{", "[") else self._tight_product()

        def value(place: Place) -> Number:
            result = function(place, argument(place))
            if base is not None:
                result /= function(place, base(place))
            return result if exponent is None else power(place, result, exponent(place))

        return value

    def _tight_product(self) -> Node:
        nodes = [self._factor()]
        while True:
            token = self._next()
            another = token[:1] in ("(", "[") or token.strip("\\") in FUNCTIONS
            if another or token in _ENDS or token[0] in _NO_FACTOR:
                break
            nodes.append(self._factor())
        return lambda place: functools.reduce(operator.mul, (node(place) for node in nodes))

    def _command_frac(self) -> Node:
        over, under = self._argument(digits=True), self._argument(digits=True)
        return lambda place: over(place) / under(place)

    def _command_sqrt(self) -> Node:
        index = constant(Fraction(2))
        if self._next() == "[":
            index = self._group()
        inside = self._argument()
        return lambda place: root(place, inside(place), index(place))

    def _command_binom(self) -> Node:
        n, k = self._argument(digits=True), self._argument(digits=True)
        return lambda place: place.context.binomial(small(n(place)), small(k(place)))

    def _command_sum(self) -> Node:
        """Linear in what follows, by a factor that its limits alone say."""
        limits = ""
        while self._next() in ("_", "^"):
            mark = self._next()
            self._tokens[self._at] = "_"
            limits += mark + self._subscript()
        body, factor = self._product(), self._unknown("sum" + limits)
        return lambda place: factor(place) * body(place)
