"""Verifiers: whether an answer agrees with the gold one, and how far, as a number in [0, 1].

A verifier has two halves. `prepare` parses the gold answer and raises ValueError where it cannot;
it runs once when a record is loaded, so that no unparsable gold can ever score. `compare` judges
the text of one answer block and never raises: an answer that is not understood scores 0. Exactly
1 means correct. A record may have several gold answers: any of them is right. Everything matches
the *whole* answer: what it states is read without regard to the gold, by the same rule as the gold,
and no verifier searches it for something right. The cost of one comparison is bounded by what is
read, never by a clock, so that no verdict depends on the machine. What each accepts is written at
its `prepare` function, and tabled in docs/verifiers.md.

A verifier of one's own is named by where it is in `config.tasks`, `package.module:function` or
`file.py:function`: a function of an answer and the gold answer, or a `Verifier`. `register` gives
it a short name, known only to processes that ran the same line; a study's workers run its config
file for that.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from rdbcl_jax.messages import did_you_mean
from rdbcl_jax.rewards import (
    boxes,
    captions,
    choices,
    counting,
    edits,
    mathematics,
    pointing,
    reasoning_gym,
    vqa,
    words,
)
from rdbcl_jax.rewards.functions import FunctionFailed, in_one_line, load_function
from rdbcl_jax.rewards.numerals import Quantity, quantity, same, stated
from rdbcl_jax.rewards.text import visible

OverSplit = Callable[[Sequence[Sequence[str]]], Callable[[int, str], float]]
# (gold answer, size of the picture, size of the frame) → gold answer in the frame
Rescale = Callable[[str, tuple[int, int], tuple[int, int]], str]


@dataclasses.dataclass(frozen=True)
class Verifier:
    """One way to compare an answer with a gold answer.

    `compare(answer, prepared_gold)` returns a score in [0, 1]; where `parameter` is set it is
    passed as a third argument, which lies in `limits`.

    Attributes:
      reads_lists: a list in a record is one gold answer, as of boxes, and not several.
      reads_all: `prepare` gets all gold answers of a record at once, rather than each.
      graded: the accuracy that evaluation reports is the score, not the share of scores of 1.
      over_split: where that accuracy depends on all gold answers of a split: made of those of each
        record, it gives (number of a record, answer) → accuracy.
      measure: what the field calls the accuracy that evaluation reports.
      rescale: where gold answers are places in the picture as it is stored: a gold answer in the
        coordinates that the model names places in. Records are loaded so.
    """

    name: str
    prepare: Callable[[Any], Any]
    compare: Callable[..., float]
    parameter: float | None = None
    limits: tuple[float, float] = (0.0, math.inf)
    reads_lists: bool = False
    reads_all: bool = False
    graded: bool = False
    over_split: OverSplit | None = None
    measure: str = "accuracy"
    rescale: Rescale | None = None

    def prepared(self, gold: str | Sequence[str]) -> list[Any]:
        """What `prepare` makes of the gold answers; of several, those that it cannot read are
        passed over.

        Raises:
          ValueError: none can be read.
        """
        golds = [gold] if isinstance(gold, str) else [*gold]
        if self.reads_all:
            return [self.prepare(golds)]
        found, problems = [], []
        for text in golds:
            try:
                found.append(self.prepare(text))
            except ValueError as error:
                problems.append(error)
        if not found:
            raise problems[0] if problems else ValueError("there is no gold answer")
        return found

    def score(self, answer: str, gold: str | Sequence[str]) -> float:
        """The score in [0, 1] of the text of an answer block; an empty one is never right.

        Args:
          gold: one gold answer, or several: the highest score counts.
        Raises:
          ValueError: the gold answer is unparsable, or the score is not in [0, 1].
          FunctionFailed: the comparison raised, as one's own may.
        """
        golds = self.prepared(gold)
        return max(self._compared(answer, one) for one in golds) if visible(answer) else 0.0

    def _compared(self, answer: str, prepared: Any) -> float:
        extra = () if self.parameter is None else (self.parameter,)
        try:
            found = self.compare(answer, prepared, *extra)
        except Exception as error:
            raise FunctionFailed(
                f"verifier {self.name!r} raised {type(error).__name__} on the answer "
                f"{answer[:80]!r}: {in_one_line(error)}"
            ) from error
        try:
            score = float(found)
        except (TypeError, ValueError):
            score = math.nan
        if not 0 <= score <= 1:
            raise ValueError(
                f"verifier {self.name!r} returned {str(found)[:80]} for the answer "
                f"{answer[:80]!r}, expected a number in [0, 1]"
            )
        return score


VERIFIERS: dict[str, Verifier] = {}


def register(
    name: str,
    prepare: Callable[[Any], Any],
    compare: Callable[..., float],
    parameter: float | None = None,
    limits: tuple[float, float] = (0.0, math.inf),
    *,
    reads_lists: bool = False,
    reads_all: bool = False,
    graded: bool = False,
    over_split: OverSplit | None = None,
    measure: str = "accuracy",
    rescale: Rescale | None = None,
) -> Verifier:
    """Makes a verifier known by `name`; arguments are its attributes.

    Args:
      parameter: the default of its one parameter, if it has one.
      limits: the smallest and the largest parameter that may be asked for.
    """
    if not re.fullmatch(r"\w+", name):
        raise ValueError(f"verifier name {name!r}: expected letters, digits and underscores")
    flags = (reads_lists, reads_all, graded, over_split, measure, rescale)
    VERIFIERS[name] = Verifier(name, prepare, compare, parameter, limits, *flags)
    return VERIFIERS[name]


def get_verifier(name: str) -> Verifier:
    """The verifier of that name, or at `package.module:function` or `file.py:function`.

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
            f"as package.module:function or file.py:function{did_you_mean(base, VERIFIERS)}"
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
    if verifier.parameter is None or value is None:
        raise ValueError(f"verifier {name!r}: {verifier.name!r} takes no such parameter")
    low, high = verifier.limits
    if not low <= value <= high:
        raise ValueError(f"verifier {name!r}: expected a parameter from {low:g} to {high:g}")
    return dataclasses.replace(verifier, name=name, parameter=value)


def _as_it_is(gold: str) -> str:
    if not visible(gold):
        raise ValueError("the gold answer is empty")
    return gold


# --- number: equal up to a relative tolerance ----------------------------------------------------

_TOLERANCE = 1e-6


def parse_number(text: str) -> float | None:
    """The finite number that a text is, as `numerals` reads it; its unit is dropped."""
    found = quantity(text)
    return float(found.value) if found and _finite(found.value) else None


def _finite(value: Fraction) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _prepare_number(gold: str) -> Quantity:
    """One number, as `numerals` reads it; units count where both sides have one, 50% is 50 or 0.5.

    Numbers are compared relatively, whole ones exactly unless a tolerance is asked for.
    """
    if (found := stated(gold)) is None or not _finite(found.value):
        counted = counting.count_of(gold) is not None
        hint = "; verifier count reads a number of things" if counted else ""
        raise ValueError(f"expected a finite number, found {gold[:80]!r}{hint}")
    return found


def _compare_number(answer: str, gold: Quantity, tolerance: float) -> float:
    found = stated(answer)
    return found is not None and same(
        found, gold, Fraction(str(tolerance)), tolerance <= _TOLERANCE
    )


register("exact", words.prepare_exact, words.compare_exact)
register("yes_no", words.prepare_yes_no, words.compare_yes_no)
register("choice", words.prepare_choice, words.compare_choice)
register("number", _prepare_number, _compare_number, _TOLERANCE, (0.0, 0.5))
register(
    "reasoning_gym", reasoning_gym.prepare, reasoning_gym.compare, reads_lists=True, reads_all=True
)
register("sequence", words.prepare_sequence, words.compare_sequence, reads_lists=True)
register("jigsaw", words.prepare_jigsaw, words.compare_jigsaw, reads_lists=True)
# IoU from which two boxes match
register("boxes", boxes.prepare, boxes.compare, 0.5, (0.05, 1.0), reads_lists=True)
register(
    "grounding",
    boxes.prepare,
    boxes.compare,
    0.5,
    (0.05, 1.0),
    reads_lists=True,
    rescale=boxes.rescaled,
)
# how far from a gold point, of the picture's diagonal
register(
    "pointing",
    pointing.prepare,
    pointing.compare,
    0.05,
    (0.0, 0.5),
    reads_lists=True,
    rescale=pointing.rescaled,
)
# relative tolerance, beside rounding
register("math", mathematics.prepare, mathematics.compare, 0.0, (0.0, 0.5))
register("vqa", vqa.prepare, vqa.compare, reads_all=True, graded=True, measure="VQA accuracy")
register(
    "caption", captions.prepare, captions.compare, over_split=captions.Cider, measure="CIDEr-D"
)
register("choices", choices.prepare, choices.compare, reads_lists=True)
register("count", counting.prepare_count, counting.compare_count)
# relative tolerance of numbers
register("chart", counting.prepare_chart, counting.compare_chart, 0.05, (0.0, 0.5))
# similarity below which nothing is right
register("anls", edits.prepare, edits.compare, 0.5, (0.0, 1.0), graded=True, measure="ANLS")
