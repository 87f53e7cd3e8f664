"""Captions: CIDEr-D over a whole split (arXiv:1411.5726), which is reported and never rewarded.

What is compared are n-grams of up to four words; one that few pictures' references hold weighs
more. So a score depends on all references of the split, and no single answer has one by itself: as
a reward, a caption counts where it is one of its picture's references.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

from rdbcl_jax.rewards.text import seen

LONGEST = 4  # words of an n-gram
_SPREAD = 6.0  # how many words lengths may differ by: a standard deviation
_CLITIC = re.compile(r"(?<=[a-z])(n't|'(?:s|re|ve|ll|d|m))\b")
_WORD = re.compile(r"n't|'(?:s|re|ve|ll|d|m)\b|[^\W_]+(?:[.,'-][^\W_]+)*")

Gram = tuple[str, ...]


def words(text: str) -> list[str]:
    """Words in small letters; marks are none. `it's` is two, as in the Penn Treebank."""
    text = seen(text).lower().replace("’", "'")
    return _WORD.findall(_CLITIC.sub(r" \1", text))


def prepare(gold: str) -> list[str]:
    """One of a picture's captions: its words in their order; marks and case are nothing."""
    if not (found := words(gold)):
        raise ValueError("the gold caption has no words")
    return found


def compare(answer: str, gold: list[str]) -> float:
    """Whether the answer is that caption, which says little of how good it is."""
    return words(answer) == gold


@dataclasses.dataclass(frozen=True)
class _Weighed:
    """A text: per length of n-gram, the weight of each; the norms of those; its words."""

    grams: tuple[Mapping[Gram, float], ...]
    norms: tuple[float, ...]
    words: int


class Cider:
    """Scores captions against the references of a split: `Cider(references)(picture, caption)`.

    Args:
      references: of each picture the captions that people gave it, at least one.
    """

    def __init__(self, references: Sequence[Sequence[str]]):
        self.pictures = len(references)
        self.frequency: collections.Counter[Gram] = collections.Counter()
        for own in references:
            self.frequency.update({gram for text in own for gram in _grams(words(text))})
        self.references = [[self._weighed(text) for text in own] for own in references]

    def __call__(self, picture: int, caption: str) -> float:
        """CIDEr-D of a caption of that picture, 0 to 10; papers print a hundred times its mean."""
        said, own = self._weighed(caption), self.references[picture]
        return sum(_likeness(said, reference) for reference in own) / len(own)

    def _weighed(self, text: str) -> _Weighed:
        found = words(text)
        grams: list[dict[Gram, float]] = [{} for _ in range(LONGEST)]
        for gram, count in collections.Counter(_grams(found)).items():
            rarity = math.log(self.pictures / max(1, self.frequency[gram]))
            grams[len(gram) - 1][gram] = count * rarity
        norms = [math.sqrt(sum(weight**2 for weight in own.values())) for own in grams]
        return _Weighed(tuple(grams), tuple(norms), len(found))


def _grams(text: Sequence[str]) -> list[Gram]:
    lengths = range(1, LONGEST + 1)
    return [tuple(text[i : i + n]) for n in lengths for i in range(len(text) - n + 1)]


def _likeness(said: _Weighed, reference: _Weighed) -> float:
    """Ten times the mean over lengths of cosines in which no n-gram counts more often than the
    reference has it; less where one text is longer."""
    total = 0.0
    for n in range(LONGEST):
        one, other = said.grams[n], reference.grams[n]
        shared = sum(
            min(weight, other.get(gram, 0.0)) * other.get(gram, 0.0) for gram, weight in one.items()
        )
        norms = said.norms[n] * reference.norms[n]
        total += shared / norms if norms else 0.0
    # the published program counts pairs of neighbours, of which a text without words has none
    longer = max(said.words, 1) - max(reference.words, 1)
    return 10.0 * total / LONGEST * math.exp(-(longer**2) / (2 * _SPREAD**2))
