"""The scorers of reasoning-gym as one verifier. A gold answer says which puzzle: it is made again
from its data set, seed, size and number, and the data set's own scorer judges the answer.

Some scorers evaluate the answer as Python or hand it to a parser that does. An answer comes from a
policy that is rewarded for whatever works, so here it is a literal at most, or plain arithmetic.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

MOST_CHARACTERS = 10_000  # of an answer
# of those that a parser evaluates: names of functions, single letters, small powers that are not
# powers of powers
_ARITHMETIC = re.compile(
    r"(?:[\s\d.+\-*/(),]|\b(?:sin|cos|tan|exp|log|ln|sqrt|[a-zA-Z])\b)*", re.ASCII
)
_POWER = re.compile(r"\*\*\s*(?!\(?\s*-?\d{1,2}(?:/\d{1,2})?\s*\)?(?!\s*(?:\*\*|[\d.])))")
_MOST_ARITHMETIC = 200
_PARSED = {
    "countdown",
    "intermediate_integration",
    "polynomial_multiplication",
    "puzzle24",
    "simple_integration",
}
_EVALUATING = (
    "algorithmic.binary_matrix",
    "algorithmic.spiral_matrix",
    "algorithmic.string_insertion",
    "games.n_queens",
)


class Puzzle(NamedTuple):
    """Which puzzle a record is."""

    dataset: str
    seed: int
    size: int
    number: int


def prepare(golds: Sequence[str]) -> Puzzle:
    """The puzzle that the last of the gold answers names, as JSON.

    Raises:
      ValueError: it names none.
    """
    try:
        puzzle = Puzzle(**json.loads(golds[-1]))
        entry(puzzle)
    except (TypeError, LookupError, RecursionError, json.JSONDecodeError):
        raise ValueError(
            "expected a puzzle as the suite reasoning_gym names it, found "
            f"{golds[-1] if golds else ''!r:.80}"
        ) from None
    return puzzle


def compare(answer: str, puzzle: Puzzle) -> float:
    """The score of the data set's own scorer, in [0, 1]; 0 for what it cannot read."""
    if len(answer) > MOST_CHARACTERS or not _safe(answer, puzzle.dataset):
        return 0.0
    try:
        found = float(dataset(*puzzle[:3]).score_answer(answer, entry(puzzle)))
    except Exception:  # scorers raise what they like at answers they do not expect
        return 0.0
    return min(max(found, 0.0), 1.0) if found == found else 0.0


def _safe(answer: str, name: str) -> bool:
    if name not in _PARSED:
        return True
    plain = len(answer) <= _MOST_ARITHMETIC and bool(_ARITHMETIC.fullmatch(answer))
    return plain and not _POWER.search(answer) and not re.search(r"\d{16}", answer)


@functools.lru_cache(64)
def dataset(name: str, seed: int, size: int) -> Any:
    """A data set of reasoning-gym.

    Raises:
      ImportError: reasoning-gym is not installed.
      ValueError: it has no such data set.
    """
    from reasoning_gym import create_dataset

    for module in _EVALUATING:  # where `eval` is no name of the module's own, the built-in is meant
        vars(sys.modules[f"reasoning_gym.{module}"])["eval"] = ast.literal_eval
    return create_dataset(name, seed=seed, size=size)


@functools.lru_cache(4096)
def entry(puzzle: Puzzle) -> dict[str, Any]:
    """The puzzle: `question`, `answer` (one that is right, or None) and `metadata`."""
    return dataset(*puzzle[:3])[puzzle.number]
