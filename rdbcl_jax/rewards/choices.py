"""Verifier of questions with several right options: the same letters, in any order."""

from __future__ import annotations

import re

from rdbcl_jax.rewards.text import THE_RIGHT
from rdbcl_jax.rewards.words import bare

_LONGEST = 256  # characters
_ROUND = re.compile(r"\[([^\[\]]*)\]|\{([^{}]*)\}|\(([^()]*,[^()]*)\)", re.S)
_LEAD = re.compile(
    rf"^{THE_RIGHT}"
    r"(?:answers|options|choices|letters)(?: are)?(?: ?: ?| )(?:options |choices |letters )?",
    re.I,
)
_END = re.compile(r" are (?:the )?(?:correct|right)(?: answers| options| choices| ones)?$", re.I)
_BETWEEN = re.compile(r"\s*[,;&+|、]\s*(?:and\s+)?|\s+and\s+|\s+", re.I)
_LETTER = re.compile(r"\(([A-Z])\)|\[([A-Z])\]|([\"'*`]{0,2})([A-Z])[.:)]?\3", re.I)


def prepare(gold: str) -> frozenset[str]:
    """Letters, each once: `A, C`, `C and A`, `(A)(C)`, `["A", "C"]`, or `AC` in order and capitals;
    `the correct answers are A and C`, `A and C are correct`.

    Nothing else may stand there, no text of an option and no `or`, nor `A/C`, which may mean it.
    """
    if not (letters := _letters(gold)):
        raise ValueError(f"expected letters of options, found {gold[:80]!r}")
    return letters


def compare(answer: str, gold: frozenset[str]) -> float:
    """1 for exactly these letters: one too many or too few is wrong."""
    return _letters(answer) == gold


def _letters(text: str) -> frozenset[str]:
    """Empty where the text is anything else."""
    text = _LEAD.sub("", bare(text))
    if said := _END.search(text):
        text = re.sub("^both ", "", text[: said.start()], flags=re.I)
    text = bare(text)
    if len(text) > _LONGEST:
        return frozenset()
    if whole := _ROUND.fullmatch(text):
        text = next(part for part in whole.groups() if part is not None).strip()
    if re.fullmatch("[A-Z]{2,26}", text):
        found = [*text] if sorted(text) == [*text] else []
    else:
        parts = _BETWEEN.split(re.sub(r"([)\]])\s*([(\[])", r"\1,\2", text))
        matches = [_LETTER.fullmatch(part) for part in parts]
        found = [(m[1] or m[2] or m[4]).upper() if m else "" for m in matches]
    return frozenset(found) if all(found) and len({*found}) == len(found) else frozenset()
