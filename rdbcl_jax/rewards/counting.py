"""Verifiers of how many there are, and of what a chart shows."""

from __future__ import annotations

import re
from fractions import Fraction

from rdbcl_jax.rewards.numerals import Quantity, same, stated
from rdbcl_jax.rewards.text import LEAD_IN, seen, unwrapped, visible
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
    r"(?:" + LEAD_IN + r"(?:the |my )?(?:final |correct )?"
    r"(?:answer|count|(?:total )?number|total)(?P<of> of(?: [a-z'’-]{2,}){1,5})?(?: is|:| is:)"
    r"|in total,?|there (?:is|are)|i (?:count|see|can see)) "
)
_COUNT = re.compile(
    r"(?:only |exactly |just )?"
    r"(?:(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,9})(?:\.0+)?(?= |$)"
    rf"|(?P<word>{'|'.join(sorted(_WORDS, key=len, reverse=True))})\b(?![-']))"
    r"|(?P<none>(?:none|nothing)$)"
)
_NO = re.compile(r"(?:there (?:are|is)|i (?:can )?see) no(?= )")
# what is counted: adjectives, a noun, and where or what that is; `one` also before a singular
_WORD = r"(?:tv|[a-z][a-z'’-]{2,})"
_PLURAL = (
    r"(?:[a-z][a-z'’-]*[a-rt-z'’]s|[a-z]*(?:people|children|men)|sheep|fish|deer"
    r"|mice|feet|teeth|geese|aircraft|oxen|dice)"
)
_WHERE = (
    r"(?: [a-z]+ing(?: [a-z]{3,}){0,2})?(?: here| visible| shown)?(?: in total"
    r"| (?:in|on|at|of|with|near|behind|beside|by|inside|outside|from)(?: [a-z'’-]+){1,6})?"
)
_MANY = re.compile(rf"(?:(?: {_WORD}){{0,4}} (?P<noun>{_PLURAL}))?{_WHERE}")
_ONE = re.compile(rf"(?:(?: {_WORD}){{0,4}} (?P<noun>{_WORD}))?{_WHERE}")
# none of them there: an excuse, and no count
_EXCUSE = re.compile(
    r"(?:answer|clue|idea|comment|image|picture|photo|detail|word|way|doubt|thank|guesse|result"
    r"|hint|option|limit|fact|problem|question|worrie)s?"
)
# words that make another number of it, leave it open, or say something about it
_OTHER = re.compile(
    r"\b(?:or|and|not|but|no|non|none|nothing|never|maybe|perhaps|about|around|approx|approximately"
    r"|roughly|nearly|almost|over|under|more|less|fewer|few|many|much|too|than|least|most|maximum"
    r"|minimum|best|worst|other|others|another|extra|additional|further|odd|ish|minus|plus|times"
    r"|squared?|squares|cubed|half|halves|third|thirds|quarter|quarters|pairs?|couples?|trios?|duos?"
    r"|tens|doz|dozens?|scores?|gross|grand|hundreds?|thousands?|thou|[a-z]*illions?|milliards?"
    r"|myriads?|lakhs?|lacs?|crores?|bn|mn|tn|mil|mils|mln|bln|mio|mrd|percent[a-z]*|per|cents?|pct|pcts|k|m"
    r"|(?:fif|six|seven|eigh|nin|ten|eleven|twelf|[a-z]+teen|[a-z]+tie|hundred|thousand)ths?"
    r"|(?:[a-z]*met(?:er|re)|inche?|mile|yard|[a-z]*gram|kilo|lb|ounce|pound|[a-z]*lit(?:er|re)"
    r"|degree|dollar|euro)s?|unsure|sure|unclear|uncertain|possibl[ey]|potential|probabl[ey]|likely|unlikely"
    r"|guess(?:es)?|hunch|doubt|error|estimate|estimated|if|unless|except|without|to|wait|moment|sec"
    r"|seconds?|actually|wrong|wrongly|incorrect|incorrectly|false|right|correct|impossible|point"
    r"|missing|lacking|short|excluding|including|counting|is|are|was|were|be|been|being|has|have|had"
    r"|do|does|did|can|cannot|could|will|would|may|might|must|should|seems?|looks?|appears?|knows?"
    r"|equals?|means?|always|thus|versus|besides|this|yes)\b|n['’]t\b|\b(?:"
    + "|".join(_WORDS)
    + r")(?:e?s)?\b"
)


def prepare_count(gold: str) -> int:
    """A whole number from 0 on, as digits or as a word up to ninety-nine: `3`, `three`, `3 dogs`,
    `There are only three dogs in the picture`, `There are no dogs`, `none`.

    What is counted is not compared, but must be a noun (in the plural, but for one) with what
    stands round it: no word that makes another number of it, or says something about it.
    """
    if (found := count_of(gold)) is None:
        raise ValueError(f"expected a count such as 3 or three, found {gold[:80]!r}")
    return found


def compare_count(answer: str, gold: int) -> float:
    return count_of(answer) == gold


def count_of(text: str) -> int | None:
    """How many a whole text says; None for any other."""
    text = unwrapped(seen(text[: 2 * _LONGEST])).casefold()
    text = re.sub(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1", r"\2", text)
    if len(text) > _LONGEST:
        return None
    for _ in range(2):  # the answer is: there are
        if no := _NO.match(text):
            return 0 if _counted(text[no.end() :], 0) else None
        if lead := _LEAD.match(text):
            if lead["of"] and _OTHER.search(lead["of"]):
                return None
            text = unwrapped(text[lead.end() :])
    match = _COUNT.match(text := unwrapped(text))
    if match is None:
        return None
    if match["none"]:
        return 0
    found = int(match["digits"].replace(",", "")) if match["digits"] else _WORDS[match["word"]]
    rest = text[match.end() :]
    return found if not rest or _counted(rest, found) else None


def _counted(rest: str, count: int) -> bool:
    """Whether that can stand behind a count."""
    match = (_ONE if count == 1 else _MANY).fullmatch(rest)
    if match is None or _OTHER.search(rest):
        return False
    return count > 0 or bool(match["noun"] and not _EXCUSE.fullmatch(match["noun"]))


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
