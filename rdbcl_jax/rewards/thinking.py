"""DyME's local checker: how much of the hint a response's reasoning mentions (2506.23061)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from rdbcl_jax.rewards.response_format import parse

_WORD = re.compile(r"[^\W_]+(?:[.'’][^\W_]+)*")
_SUFFIXES = ("ing", "ies", "ied", "es", "ed", "s")
# words that say nothing about the picture
_FUNCTION_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "been",
        "but",
        "by",
        "can",
        "could",
        "did",
        "do",
        "does",
        "for",
        "from",
        "had",
        "has",
        "have",
        "he",
        "her",
        "his",
        "how",
        "i",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "may",
        "might",
        "must",
        "no",
        "nor",
        "not",
        "of",
        "on",
        "or",
        "our",
        "shall",
        "she",
        "should",
        "so",
        "some",
        "such",
        "than",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "these",
        "they",
        "this",
        "those",
        "to",
        "too",
        "was",
        "we",
        "were",
        "what",
        "when",
        "where",
        "which",
        "while",
        "who",
        "whom",
        "whose",
        "why",
        "will",
        "with",
        "would",
        "you",
        "your",
    ]
)


def hint_f1(
    completions: Sequence[str], hint: Sequence[str | None], **columns
) -> list[float | None]:
    """F1 between the content words of each response's reasoning and its record's hint, in [0, 1].

    A reward function in TRL's form, for records with a `hint` column: None where there is none.
    The official checker compares lemmas; stems by common English endings stand for them here (a
    reconstruction). 0 for a response that does not parse, or where no word is shared.
    """
    pairs = zip(completions, hint, strict=True)
    return [None if text is None else _f1(parse(done).reasoning, text) for done, text in pairs]


def _f1(found: str, wanted: str) -> float:
    there, hint = content_words(found), content_words(wanted)
    shared = (there & hint).total()
    return 2 * shared / (there.total() + hint.total()) if shared else 0.0


def content_words(text: str) -> Counter[str]:
    """Stems of a text's content words, each as often as it occurs; numbers count."""
    words = (word.casefold() for word in _WORD.findall(text))
    return Counter(stem(word) for word in words if word not in _FUNCTION_WORDS)


def stem(word: str) -> str:
    """The word without one common ending; short words and numbers stay."""
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            return word.removesuffix(suffix) + ("y" if suffix in ("ies", "ied") else "")
    return word
