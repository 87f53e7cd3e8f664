"""VQA soft accuracy: an answer is as right as annotators agree with it (arXiv:1505.00468).

The normalisation is that of the published evaluation, which VQAv2, OK-VQA, TextVQA and VizWiz
share, but for one oddity: there, annotators who all say the same are compared letter by letter.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence

from rdbcl_jax.rewards.text import seen, unwrapped, visible

FEWEST = 4  # gold answers: with fewer, leaving one out, no answer could be fully right
_AGREE = 3  # annotators, besides the one left out, who make an answer right

_ARTICLES = {"a", "an", "the"}
_UP_TO_TEN = "one two three four five six seven eight nine ten"
_NUMBERS = {word: str(n) for n, word in enumerate(_UP_TO_TEN.split(), start=1)}
_NUMBERS |= {"none": "0", "zero": "0"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_FULL_STOP = re.compile(r"\.(?!\d)")
_THOUSANDS = re.compile(r"\d,\d")
_WITH_APOSTROPHE = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
# each is also read where one of its apostrophes is missing
_CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word
    for word in _WITH_APOSTROPHE.split()
    for at, c in enumerate(word)
    if c == "'"
}
_CONTRACTIONS |= {"somebody'd": "somebodyd"}  # as published


def prepare(golds: Sequence[str]) -> collections.Counter[str]:
    """The answers of at least four annotators, ten as a rule, each counted after `normalised`.

    An empty one is an annotator with whom nobody agrees.
    """
    if len(golds) < FEWEST or not any(map(visible, golds)):
        raise ValueError(
            f"expected the answers of at least {FEWEST} annotators, found {list(golds)!r:.80}; for "
            "fewer name exact, which takes any of them for right"
        )
    return collections.Counter(map(normalised, golds))


def compare(answer: str, golds: collections.Counter[str]) -> float:
    """min(matches / 3, 1), averaged over the sets in which one of the annotators is left out.

    Of ten annotators one makes 0.3, two 0.6, three 0.9 and four 1.
    """
    count, everyone = golds[normalised(answer)], golds.total()
    others = (everyone - count) * min(count, _AGREE) + count * min(count - 1, _AGREE)
    return others / (_AGREE * everyone) if count else 0.0


def normalised(text: str) -> str:
    """In small letters, without punctuation and articles, numbers up to ten as digits.

    A text of nothing else stays as it is, so that `A` is the letter, and nothing is not `!`.
    """
    text = unwrapped(seen(text)).replace("’", "'").lower()
    words = [_NUMBERS.get(word, word) for word in _without_punctuation(text).split()]
    words = [_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES]
    return " ".join(words) or text


def _without_punctuation(text: str) -> str:
    """Marks next to a space vanish, and all do in a text with `1,000`; others become a space."""
    plain, together = text, _THOUSANDS.search(text) is not None
    for mark in _PUNCTUATION:
        gone = together or f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if gone else " ")
    return _FULL_STOP.sub("", plain)
