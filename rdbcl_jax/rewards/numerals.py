r"""Numbers as people and models write them: 1,234.5, 1 000, −2e3, 3/4, 1 1/2, ½, $5, 12 %, 3 cm.

A numeral is read exactly, as a fraction, so that nothing is lost before two are compared. A comma
sets off thousands where groups of three digits follow, and is a decimal comma elsewhere. Of what
may follow a number, units of a closed list are read, and nothing else: `3 no` is no number.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from fractions import Fraction

from rdbcl_jax.rewards.text import THE_RIGHT, seen, unwrapped

LONGEST = 64  # characters of a numeral with its unit
_LARGEST_EXPONENT = 400

# each entry: one unit, under all its names
_UNITS = """
m meter metre | cm centimeter centimetre | mm millimeter millimetre | km kilometer kilometre | nm
| µm micrometer micron | dm | in inch inches | ft foot feet | yd yard | mi mile | ly
| g gram | kg kgs kilogram kilo | mg milligram | t ton tonne | lb lbs | pound | oz ounce
| s sec second | min minute | h hr hrs hour | d day | wk week | month | yr yrs year | ms millisecond
| l liter litre | ml milliliter millilitre | gal gallon | cup | ha hectare | acre
| ° deg degree | rad radian | °c | °f | k kelvin | a amp ampere | v volt | w watt | kw | kwh | mw
| n newton | j joule | kj kilojoule | cal calorie | kcal | pa pascal | kpa | mpa | hz hertz | khz
| mhz | ghz | mol mole | c coulomb | f farad | ω ohm | bit | byte | kb | mb | gb | mph | kph | atm
| ev | dollar usd $ | cent | euro eur € | gbp £ | yuan rmb cny | yen jpy | ¥ | rupee inr ₹ | won ₩
| ruble rub ₽
| unit | point | person people | student | child children | item | object | piece | way
"""
_NAMES = {name: entry.split()[0] for entry in _UNITS.split("|") for name in entry.split()}
_NAMES |= {name + "s": unit for name, unit in _NAMES.items() if len(name) > 2}
del _NAMES["gbps"]  # gigabits a second
_MONEY = {_NAMES[sign] for sign in "$€£¥₹₩₽"} | {"yen", "yuan"}
# a name of two units
_EITHER = {"pound": ("lb", "gbp"), "¥": ("yen", "yuan")}
_PER = re.compile(r"( ?/ ?| per | ?· ?)")
_UNIT = re.compile(
    r"(?P<before>square |sq\.? |cubic )?(?P<name>°? ?[a-zµω]+|°)\.?"
    r"(?: ?\^? ?\{?(?P<power>[23²³])\}?)?(?P<after> squared| cubed)?"
)
_POWERS = {"²": "2", "³": "3", "square": "2", "sq": "2", "sq.": "2", "cubic": "3"}
_POWERS |= {"squared": "2", "cubed": "3"}

_THOUSANDS = r"[1-9][0-9]{0,2}(?:(?:,[0-9]{3})+|(?: [0-9]{3})+)(?![0-9])(?:\.[0-9]*)?"
_COMMA = r"[0-9]+,[0-9]+(?![0-9,])"
_DECIMAL = rf"(?:{_THOUSANDS}|{_COMMA}|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[-+]?[0-9]{{1,4}})?"
_NUMBER = re.compile(
    rf"(?:(?P<whole>[0-9]+)(?: | ?\+ ?| and )(?=[0-9]+ ?/))?"
    rf"(?P<over>{_DECIMAL})(?: ?/ ?(?P<under>{_DECIMAL}))?",
    re.I,
)
_PERCENT = re.compile(r"\\?%|percent(?:age)?|per ?cent|pct\.?", re.I)
# powers of ten that may follow a number: words, or single letters in the case that they are used in
_WORDS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_WORDS |= {"lakh": 5, "crore": 7}
_WORDS |= {name + "s": power for name, power in _WORDS.items() if len(name) > 3}
_WORDS |= {"mn": 6, "mln": 6, "mio": 6, "bn": 9, "bln": 9, "tn": 12, "trn": 12}
_LETTERS = {"k": 3, "K": 3, "M": 6, "MM": 6, "B": 9, "T": 12}
_MAGNITUDE = re.compile(r"([A-Za-z]+)(?![A-Za-z])\.?(?P<rest>.*)", re.S)
_POWER_OF_TEN = re.compile(
    r"^([-+−]? ?)10 ?(?:\^ ?(?:([-+−]?[0-9]{1,4})|\{ ?([-+−]?[0-9]{1,4}) ?\})"
    r"|([⁺⁻⁰¹²³⁴-⁹]+))(?![0-9])"
)
# how an answer is led in: the answer is 5, x = 5
_ANSWER = re.compile(
    rf"^(\*\*|__|){THE_RIGHT}"
    r"answer(?:(?: is)? ?: ?\1| ?\1 ?(?::| is| would be)) ?",
    re.I,
)
_VARIABLE = re.compile(r"^([A-Za-zα-ω](?:_(?:[A-Za-z0-9]|\{[A-Za-z0-9]+\}))?) ?= ?(?=[^=])")
_CURRENCY = re.compile(r"\\?(\$)|([£€¥₹₩₽])")

_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|normal)?|mathrm|mbox|operatorname) ?\{([^{}]*)\}")
_DEGREES = re.compile(r" ?\^? ?(?:\{ ?\\circ ?\}|\\circ|\\degree)")
_THIN = re.compile(r"(?<=[0-9]) ?(?:\{,\}|,? ?\\[!,]) ?(?=[0-9]{3})")
_FRACTION = re.compile(
    r"\\[dtc]?frac ?(?:\{ ?([0-9.]+) ?\}|([0-9])) ?(?:\{ ?([0-9.]+) ?\}|([0-9]))"
)
_TIMES_TEN = re.compile(
    r"(?<=[0-9]) ?(?:\*|x|×|·|\\times|\\cdot) ?10 ?"
    r"(?:\^ ?\{? ?([-+]?[0-9]{1,4}) ?\}?|([⁺⁻⁰¹²³⁴-⁹]+))"
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A number, its unit, and how precisely it was written.

    Attributes:
      value: exact.
      unit: in one spelling, `%` for percent, empty without one.
      places: digits after the decimal point; None without a point, as in `8/3`.
      figures: significant digits, where there is a point.
      strict: its unit may be a magnitude, as in `5m`: a number without one is another.
      other: what the text is as well, as `300K`: 300 000, or 300 kelvin.
      name: what it is the value of, as in `x = 5`.
    """

    value: Fraction
    unit: str = ""
    places: int | None = None
    figures: int = 0
    strict: bool = False
    other: Quantity | None = None
    name: str = ""


def stated(text: str) -> Quantity | None:
    """The number that a whole text states, as `quantity`, `x = 5`, `10^3` or `the answer is 5`."""
    text = unwrapped(seen(text[: 4 * LONGEST]))
    text = unwrapped(_ANSWER.sub("", text, count=1))
    name = _VARIABLE.match(text)
    text = unwrapped(text[name.end() :]) if name else text
    found = quantity(_POWER_OF_TEN.sub(_as_exponent, text))
    return found and dataclasses.replace(found, name=name[1] if name else "")


def _as_exponent(match: re.Match[str]) -> str:
    exponent = match[2] or match[3] or match[4].translate(_SUPERSCRIPTS)
    return f"{match[1]}1e{exponent}".replace("−", "-")


def quantity(text: str) -> Quantity | None:
    """The number that a whole text is, with its unit; None for any other text."""
    text = unwrapped(seen(text[: 4 * LONGEST]))
    if len(text) > LONGEST or not any(map(str.isnumeric, text)):
        return None
    text, sign = _without_sign(_plain(text))
    currency = _CURRENCY.match(text)
    if currency:
        text, inner = _without_sign(text[currency.end() :].strip())
        sign *= inner
    number = _NUMBER.match(text)
    found = number and _unsigned(number)
    if number is None or found is None:
        return None
    found = dataclasses.replace(found, value=sign * found.value)
    found = _with_suffix(found, text[number.end() :].rstrip(), bool(currency))
    if found is None or currency is None:
        return found
    money = _suffix(currency[0]) or ""
    if not found.unit:
        return dataclasses.replace(found, unit=money, other=None)
    return found if same_unit(found.unit, money) or found.unit not in _MONEY else None


def _with_suffix(number: Quantity, text: str, money: bool) -> Quantity | None:
    """The number with what follows it: a magnitude, a unit, or both."""
    touches, text = not text.startswith(" "), text.strip()
    letter = text.rstrip(".")
    if letter in ("K", "T") and not touches and not money:  # kelvin, tonne: 300 K
        return dataclasses.replace(number, unit=unit_of(letter) or "", strict=True)
    word = _MAGNITUDE.fullmatch(text)
    power = word and _LETTERS.get(word[1], _WORDS.get(word[1].casefold()))
    if word is None or power is None:
        unit = _suffix(text)
        doubtful = letter == "G" or (touches and letter == "m")  # giga, millions
        return None if unit is None else dataclasses.replace(number, unit=unit, strict=doubtful)
    rest = word["rest"]
    unit = _suffix(rest.strip()) if not rest or rest[0] in " $£€¥₹₩₽\\" else None
    if unit is None:
        return None
    kelvin = dataclasses.replace(number, unit="k", strict=True) if letter == "K" else None
    places = None if number.places is None else number.places - power
    value = number.value * 10**power
    return dataclasses.replace(number, value=value, unit=unit, places=places, other=kelvin)


def without_thousands(text: str) -> str:
    """`1,000` as 1000; any other text as it is."""
    whole = len(text) <= LONGEST and re.fullmatch(rf"[-+]?{_THOUSANDS}", text)
    return text.replace(",", "").replace(" ", "") if whole else text


def same(first: Quantity, second: Quantity, tolerance: Fraction, exact: bool) -> bool:
    """Whether two numbers agree up to a relative tolerance, with their units where both have one.

    A percentage is its number and its hundredth. `exact`: whole numbers must be the same.
    """
    if first.name and second.name and first.name != second.name:
        return False
    if first.other or second.other:
        first_ones = [first, first.other] if first.other else [first]
        second_ones = [second, second.other] if second.other else [second]
        return any(
            same(
                dataclasses.replace(a, other=None),
                dataclasses.replace(b, other=None),
                tolerance,
                exact,
            )
            for a in first_ones
            for b in second_ones
        )
    strict = first.strict or second.strict
    if not same_unit(first.unit, second.unit) or (strict and first.unit != second.unit):
        return False
    a, b = first.value, second.value
    pairs = [(a, b)]
    if (first.unit == "%") != (second.unit == "%"):
        pairs.append((a / 100, b) if first.unit == "%" else (a, b / 100))
    return any(_close(a, b, tolerance, exact) for a, b in pairs)


def same_unit(first: str, second: str) -> bool:
    """Whether nothing is counted in another unit; no unit is any."""
    if not first or not second or first == second:
        return True
    ones, others = re.split("([/·])", first), re.split("([/·])", second)
    return len(ones) == len(others) and all(
        a == b or a in _EITHER.get(b, ()) or b in _EITHER.get(a, ())
        for a, b in zip(ones, others, strict=True)
    )


def _close(a: Fraction, b: Fraction, tolerance: Fraction, exact: bool) -> bool:
    if exact and a.denominator == b.denominator == 1:
        return a == b
    return abs(a - b) <= tolerance * max(abs(a), abs(b))


def unit_of(text: str) -> str | None:
    """The unit that a text names, in one spelling (`km/h`, `m2`); None if it names none."""
    parts = []
    for place, part in enumerate(_PER.split(text.casefold().strip())):
        if place % 2:
            parts.append("·" if "·" in part else "/")
            continue
        match = _UNIT.fullmatch(part)
        name = match and _NAMES.get(match["name"].replace(" ", ""))
        if not match or not name:
            return None
        power = match["before"] or match["after"] or match["power"] or ""
        parts.append(name + _POWERS.get(power.strip(), power))
    return "".join(parts)


def _suffix(text: str) -> str | None:
    """The unit after a number, as `%`, `km/h`, `€`; empty where nothing follows."""
    if not text:
        return ""
    if sign := _CURRENCY.fullmatch(text):
        return _NAMES[sign[1] or sign[2]]
    return "%" if _PERCENT.fullmatch(text) else unit_of(text)


def _plain(text: str) -> str:
    """A numeral without LaTeX and without characters that stand for several."""
    text = "".join(map(_spelled_out, text.replace("\N{MINUS SIGN}", "-")))
    text = _DEGREES.sub("°", _TEXT.sub(r" \1", text.replace("\\ ", " ")))
    text = _FRACTION.sub(lambda m: f" {m[1] or m[2]}/{m[3] or m[4]}", _THIN.sub(",", text))
    text = _TIMES_TEN.sub(lambda m: "e" + (m[1] or m[2].translate(_SUPERSCRIPTS)), text)
    return " ".join(text.split())


def _spelled_out(c: str) -> str:
    """`½` as ` 1/2`; other characters as they are."""
    if c == "\N{FRACTION SLASH}":
        return "/"
    if not unicodedata.decomposition(c).startswith("<fraction>"):
        return c
    return " " + unicodedata.normalize("NFKC", c).replace("\N{FRACTION SLASH}", "/")


def _without_sign(text: str) -> tuple[str, int]:
    if text[:1] in ("-", "+"):
        return text[1:].lstrip(), -1 if text[0] == "-" else 1
    return text, 1


def _unsigned(number: re.Match[str]) -> Quantity | None:
    over, under, whole = number["over"], number["under"], number["whole"]
    try:
        if under is None:
            return _decimal(over)
        value = _decimal(over).value / _decimal(under).value
    except (ValueError, ZeroDivisionError):
        return None
    return Quantity(value + int(whole or 0))


def _decimal(text: str) -> Quantity:
    mantissa, _, exponent = text.casefold().partition("e")
    if re.fullmatch(_THOUSANDS, mantissa):
        mantissa = mantissa.replace(",", "").replace(" ", "")
    mantissa = mantissa.replace(",", ".")
    if abs(int(exponent or 0)) > _LARGEST_EXPONENT:
        raise ValueError("no number of this size")
    value = Fraction(mantissa.removesuffix(".")) * Fraction(10) ** int(exponent or 0)
    if "." not in mantissa and not exponent:
        return Quantity(value)
    places = len(mantissa.partition(".")[2]) - int(exponent or 0)
    return Quantity(value, places=places, figures=len(mantissa.replace(".", "").lstrip("0")))
