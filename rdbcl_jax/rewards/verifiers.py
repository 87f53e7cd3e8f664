"""Verifiers: whether an answer agrees with the gold one, and how far, as a number in [0, 1].

A verifier has two halves. `prepare` parses the gold answer and raises ValueError where it cannot;
it runs once when a record is loaded, so that no unparsable gold can ever score. `compare` judges
the text of one answer block and never raises: an answer that is not understood scores 0. Exactly
1 means correct. Everything matches the *whole* answer: no verifier searches it for something right.

A verifier of one's own is named by where it is, `package.module:function` in `config.tasks`: a
function of an answer and the gold answer, or a `Verifier`. `register` gives it a short name, known
only to processes that ran the same line; a study's workers run its config file for that.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import unicodedata
from collections.abc import Callable
from typing import Any

from rdbcl_jax.rewards import boxes, mathematics
from rdbcl_jax.rewards.functions import load_function
from rdbcl_jax.spelling import did_you_mean


@dataclasses.dataclass(frozen=True)
class Verifier:
    """One way to compare an answer with a gold answer.

    `compare(answer, prepared_gold)` returns a score in [0, 1]; where `parameter` is set it is
    passed as a third argument.
    """

    name: str
    prepare: Callable[[str], Any]
    compare: Callable[..., float]
    parameter: float | None = None

    def score(self, answer: str, gold: str) -> float:
        """The score in [0, 1] of the text of an answer block; an empty one is never right.

        Raises:
          ValueError: the gold answer is unparsable, or the score is not in [0, 1].
        """
        prepared = self.prepare(gold)
        if not answer.strip():
            return 0.0
        extra = () if self.parameter is None else (self.parameter,)
        score = float(self.compare(answer, prepared, *extra))
        if not 0 <= score <= 1:
            raise ValueError(f"verifier {self.name!r} scored {score}, expected a number in [0, 1]")
        return score


VERIFIERS: dict[str, Verifier] = {}


def register(
    name: str,
    prepare: Callable[[str], Any],
    compare: Callable[..., float],
    parameter: float | None = None,
) -> Verifier:
    """Makes a verifier known by `name`; `parameter` is the default of its one parameter, if any."""
    if not re.fullmatch(r"\w+", name):
        raise ValueError(f"verifier name {name!r}: expected letters, digits and underscores")
    VERIFIERS[name] = Verifier(name, prepare, compare, parameter)
    return VERIFIERS[name]


def get_verifier(name: str) -> Verifier:
    """The verifier of that name, or at `package.module:function`, which is imported.

    `number:0.05` and `package.module:function:0.05` set the parameter of a verifier that has one.
    A plain function is called with the answer and the gold answer, both text, and the parameter if
    there is one.

    Raises:
      ValueError: no such verifier, or a parameter that it does not take.
    """
    return _imported(name) if is_imported(name) else _registered(name)


def is_imported(name: str) -> bool:
    """Whether a verifier's name says where its code is, rather than names a known one."""
    base, _, function = name.partition(":")
    return base not in VERIFIERS and function.partition(":")[0].isidentifier()


def _registered(name: str) -> Verifier:
    base, colon, parameter = name.partition(":")
    if base not in VERIFIERS:
        raise ValueError(
            f"unknown verifier {name!r}; there are: {', '.join(sorted(VERIFIERS))}, and your own "
            f"as package.module:function{did_you_mean(base, VERIFIERS)}"
        )
    return _with_parameter(VERIFIERS[base], name, parameter) if colon else VERIFIERS[base]


@functools.lru_cache
def _imported(name: str) -> Verifier:
    module, function, *parameter = name.split(":", 2)
    found = load_function("verifier", f"{module}:{function}")
    if not isinstance(found, Verifier):
        if not callable(found):
            raise ValueError(f"verifier {name!r} is not a function but {found!r}"[:200])
        found = Verifier(name, _as_it_is, found, 0.0 if parameter else None)
    return _with_parameter(found, name, parameter[0]) if parameter else found


def _with_parameter(verifier: Verifier, name: str, parameter: str) -> Verifier:
    value = parse_number(parameter)
    if verifier.parameter is None or value is None or value < 0:
        raise ValueError(f"verifier {name!r}: {verifier.name!r} takes no such parameter")
    return dataclasses.replace(verifier, name=name, parameter=value)


def _as_it_is(gold: str) -> str:
    if not gold.strip():
        raise ValueError("the gold answer is empty")
    return gold


# --- exact: the same words -----------------------------------------------------------------------


def normalise(text: str) -> str:
    """The text without differences of case, white space and Unicode width, or a final full stop."""
    words = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return words.removesuffix(".") or words


def _prepare_exact(gold: str) -> str:
    if not normalise(gold):
        raise ValueError("the gold answer is empty")
    return normalise(gold)


def _compare_exact(answer: str, gold: str) -> float:
    return normalise(answer) == gold


# --- yes_no --------------------------------------------------------------------------------------


def _prepare_yes_no(gold: str) -> str:
    if normalise(gold) not in ("yes", "no"):
        raise ValueError(f"expected yes or no, found {gold!r}")
    return normalise(gold)


# --- choice: the letter of an option -------------------------------------------------------------

# "B", "(B)", "B.", and "B) a dog": a text may follow a letter that is set off from it
_CHOICE = re.compile(r"\(?([A-Z])(?:\)|[.:])?|(?:\([A-Z]\)|[A-Z][.:)])\s+(?P<text>.+)", re.I | re.S)
_OPTION = re.compile(r"(?<!\w)\(?[A-Z][.:)](?!\w)", re.I)


def _choice(text: str) -> str | None:
    match = _CHOICE.fullmatch(text.strip())
    if match is None or _OPTION.search(match["text"] or ""):  # a second option: no choice
        return None
    return text.strip().lstrip("(")[0].upper()


def _prepare_choice(gold: str) -> str:
    if (letter := _choice(gold)) is None:
        raise ValueError(f"expected the letter of an option, found {gold!r}")
    return letter


def _compare_choice(answer: str, gold: str) -> float:
    return _choice(answer) == gold


# --- number: equal up to a relative tolerance ----------------------------------------------------

_DECIMAL = r"[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]*)?(?:e[-+]?[0-9]+)?"
_NUMBER = re.compile(rf"({_DECIMAL})(?:\s*/\s*({_DECIMAL}))?", re.I)
_LONGEST_NUMBER = 64  # characters


def parse_number(text: str) -> float | None:
    """A finite number written alone: 1,234.5, -2e3, 3/4, $5 or 12 % (the signs are dropped)."""
    text = text.strip().replace("\N{MINUS SIGN}", "-").removesuffix("%").strip(" $€£")
    if len(text) > _LONGEST_NUMBER or not (match := _NUMBER.fullmatch(text)):
        return None
    try:
        value = float(match[1].replace(",", "")) / float((match[2] or "1").replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None
    return value if math.isfinite(value) else None


def _prepare_number(gold: str) -> float:
    if (value := parse_number(gold)) is None:
        raise ValueError(f"expected a finite number, found {gold!r}")
    return value


def _compare_number(answer: str, gold: float, tolerance: float) -> float:
    value = parse_number(answer)
    return value is not None and math.isclose(value, gold, rel_tol=tolerance, abs_tol=1e-12)


# --- sequence: tokens in order -------------------------------------------------------------------


def _tokens(text: str) -> list[str]:
    """Splits at commas or semicolons, else at white space; brackets and quotes are dropped."""
    text = normalise(text).strip("[]() ")
    parts = re.split("[,;]", text) if re.search("[,;]", text) else text.split()
    return [token for part in parts if (token := part.strip(" '\""))]


def _prepare_sequence(gold: str) -> list[str]:
    if not (tokens := _tokens(gold)):
        raise ValueError(f"expected a list of tokens, found {gold!r}")
    return tokens


def _compare_sequence(answer: str, gold: list[str]) -> float:
    """The fraction of places that agree; missing and superfluous tokens both count as wrong."""
    tokens = _tokens(answer)
    right = sum(a == b for a, b in zip(tokens, gold, strict=False))
    return right / max(len(tokens), len(gold))


# --- jigsaw: a permutation -----------------------------------------------------------------------


def _permutation(text: str) -> list[int] | None:
    parts = re.split(r"[\s,;]+", text.strip().strip("[]()").strip())
    if not all(re.fullmatch("[0-9]{1,4}", part) for part in parts):
        return None
    numbers = [int(part) for part in parts]
    return numbers if sorted(numbers) == list(range(1, len(numbers) + 1)) else None


def _prepare_jigsaw(gold: str) -> list[int]:
    numbers = _permutation(gold)
    if numbers is None or len(numbers) < 2:
        raise ValueError(f"expected a permutation of 1..n, found {gold!r}")
    return numbers


def _compare_jigsaw(answer: str, gold: list[int]) -> float:
    """The fraction of pieces in their place (arXiv:2506.23508); 0 unless a permutation of 1..n."""
    numbers = _permutation(answer)
    if numbers is None or len(numbers) != len(gold):
        return 0.0
    return sum(a == b for a, b in zip(numbers, gold, strict=True)) / len(gold)


register("exact", _prepare_exact, _compare_exact)
register("yes_no", _prepare_yes_no, _compare_exact)
register("choice", _prepare_choice, _compare_choice)
register("number", _prepare_number, _compare_number, 1e-6)  # relative tolerance
register("sequence", _prepare_sequence, _compare_sequence)
register("jigsaw", _prepare_jigsaw, _compare_jigsaw)
register("boxes", boxes.prepare, boxes.compare, 0.5)  # IoU from which two boxes match
register("math", mathematics.prepare, mathematics.compare)
