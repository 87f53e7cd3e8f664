"""ANLS: how much of a read text is right, by edit distance (arXiv:1905.13648)."""

from __future__ import annotations

from rdbcl_jax.rewards.text import seen, unwrapped, visible

LONGEST = 4096  # characters of a gold answer


def prepare(gold: str) -> str:
    """The text in small letters, its blanks single, without formatting and a final full stop."""
    text = _read(gold)
    if not visible(gold) or len(text) > LONGEST:
        raise ValueError(f"expected a text of at most {LONGEST} characters, found {gold[:80]!r}")
    return text


def compare(answer: str, gold: str, threshold: float) -> float:
    """1 less the edit distance over the length of the longer text; 0 below the threshold."""
    text = _read(answer[: 8 * LONGEST])
    longer, shorter = max(len(text), len(gold)), min(len(text), len(gold))
    if len(answer) > 8 * LONGEST or shorter < threshold * longer or longer > 4 * LONGEST:
        return 0.0
    similar = 1 - distance(text, gold) / longer
    return similar if similar >= threshold else 0.0


def _read(text: str) -> str:
    return unwrapped(seen(text)).casefold()


def distance(first: str, second: str) -> int:
    """The fewest characters to insert, delete or replace.

    A row of the table is one integer (Myers 1999, in Hyyrö's form): bit i of `up` says that its
    entry i is one more than the entry before, of `down` that it is one less.
    """
    if not first:
        return len(second)
    places: dict[str, int] = {}
    for i, c in enumerate(first):
        places[c] = places.get(c, 0) | 1 << i
    everywhere, last = (1 << len(first)) - 1, 1 << (len(first) - 1)
    up, down, found = everywhere, 0, len(first)
    for c in second:
        same = places.get(c, 0)
        diagonal = (((same & up) + up) ^ up) | same | down
        right_up, right_down = down | ~(diagonal | up), up & diagonal
        found += bool(right_up & last) - bool(right_down & last)
        right_up, right_down = right_up << 1 | 1, right_down << 1
        up = (right_down | ~(diagonal | right_up)) & everywhere
        down = right_up & diagonal & everywhere
    return found
