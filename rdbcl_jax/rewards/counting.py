"""Verifiers of how many there are, and of what a chart shows."""

from __future__ import annotations

import re
from fractions import Fraction

from rdbcl_jax.rewards.numerals import Quantity, same, stated
from rdbcl_jax.rewards.text import seen, unwrapped, visible
from rdbcl_jax.rewards.words import normalise

_LONGEST = 128  # characters of a count with its noun
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_WORDS = {word: n for n, word in enumerate(_SMALL.split())}
_WORDS |= {word: 10 * n for n, word in enumerate(_TENS.split(), start=2)}
_WORDS |= {
    f"{ten}{joint}{one}": _WORDS[ten] + _WORDS[one]
    for ten in _TENS.split()
    for one in _SMALL.split()[1:10]
    for joint in ("-", " ")
}
_LEAD = re.compile(
    r"(?:(?:so |therefore,? )?(?:the |my )?(?:final |correct )?(?:answer|count|total|number)"
    r"(?: is|:| is:)|in total,?|there (?:is|are)|i (?:count|see|can see)) "
)
_COUNT = re.compile(
    rf"(?P<digits>[0-9]{{1,3}}(?:,[0-9]{{3}})+|[0-9]{{1,9}})(?:\.0+)?(?= |$)"
    rf"|(?P<word>{'|'.join(sorted(_WORDS, key=len, reverse=True))})\b(?![-'])"
    r"|(?P<none>none$|no(?= \w))"
)
_NOUN = re.compile(r"(?: [a-z][a-z'’-]*){1,8}")
# words that make another number of it, or leave it open
_OTHER = re.compile(
    r"\b(?:or|and|not|but|no|none|maybe|perhaps|about|around|approximately|nearly|almost|over|under"
    r"|more|less|fewer|than|least|most|another|minus|plus|times|half|halves|third|thirds|quarter"
    r"|quarters|pairs?|dozens?|hundreds?|thousands?|millions?|billions?|percent|unsure|sure|unclear"
    r"|if|to|wait|actually|wrong|point|k|m)\b|n['’]t\b|\b(?:" + "|".join(_WORDS) + r")\b"
)


def prepare_count(gold: str) -> int:
    """A whole number from 0 on, as digits or as a word up to ninety-nine: `3`, `three`, `3 dogs`,
    `There are three dogs in the picture`, `no dogs`, `none`.

    What is counted is not compared; it is at most eight words, of which none makes another number
    of it (`dozen`, `half`, `or`, `not`, `about`).
    """
    if (found := count_of(gold)) is None:
        raise ValueError(f"expected a count such as 3 or three, found {gold[:80]!r}")
    return found


def compare_count(answer: str, gold: int) -> float:
    return count_of(answer) == gold


def count_of(text: str) -> int | None:
    """How many a whole text says; None for any other."""
    text = unwrapped(seen(text[: 2 * _LONGEST])).casefold()
    if len(text) > _LONGEST:
        return None
    for _ in range(2):  # the answer is: there are
        text = unwrapped(text[lead.end() :]) if (lead := _LEAD.match(text)) else text
    match = _COUNT.match(unwrapped(text))
    if match is None:
        return None
    rest = unwrapped(text)[match.end() :]
    if rest and (_OTHER.search(rest) or not _NOUN.fullmatch(rest)):
        return None
    if match["digits"]:
        return int(match["digits"].replace(",", ""))
    return _WORDS[match["word"]] if match["word"] else 0


def prepare_chart(gold: str) -> Quantity | str:
    """A number, as verifier `number` reads it, or else words, as `exact` does."""
    if not visible(gold):
        raise ValueError("the gold answer is empty")
    return stated(gold) or normalise(gold)


def compare_chart(answer: str, gold: Quantity | str, tolerance: float) -> float:
    """ChartQA's relaxed accuracy (arXiv:2203.10244): numbers up to a share of the larger, whole
    ones and years too; words exactly."""
    if isinstance(gold, str):
        return stated(answer) is None and normalise(answer) == gold
    found = stated(answer)
    return found is not None and same(found, gold, Fraction(str(tolerance)), exact=False)
