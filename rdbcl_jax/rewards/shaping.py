"""Rewards of a response's form, beside its answer: not too long, and not the same again and again.

Both are at most 0 and depend on the response's tokens alone. `overlong:LONGEST:BUFFER` and
`repetition:N` name them among the reward functions of a config.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Ids = Sequence[Sequence[int]]


def overlong(longest: float, buffer: float) -> Callable[..., list[float]]:
    """DAPO's soft penalty of long responses (arXiv:2503.14476, equation 13), from −1 to 0.

    0 up to `longest` − `buffer` tokens, then down to −1 at `longest`, and −1 beyond. A response
    that is cut at `rollout.max_tokens` = `longest` so gets −1, and one just shorter nearly so.
    """
    if not 0 < buffer <= longest or buffer % 1 or longest % 1:
        raise ValueError(
            f"overlong:{longest:g}:{buffer:g}: expected whole numbers of tokens, the buffer from 1 "
            "to the longest"
        )

    def penalty(completion_ids: Ids, **_: Any) -> list[float]:
        allowed = longest - buffer
        return [-min(max((len(ids) - allowed) / buffer, 0.0), 1.0) for ids in completion_ids]

    return penalty


def repetition(size: float) -> Callable[..., list[float]]:
    """The share of runs of `size` tokens that have been there before, negative: from −1 to 0
    (arXiv:2502.03373, appendix). Its weight is the largest penalty."""
    n = int(size)
    if n != size or n < 1:
        raise ValueError(f"repetition:{size:g}: expected a whole number of tokens from 1 on")

    def penalty(completion_ids: Ids, **_: Any) -> list[float]:
        return [distinct_share([[*ids]], n, without=1.0) - 1 for ids in completion_ids]

    return penalty


def distinct_share(sequences: Iterable[Sequence], n: int, *, without: float) -> float:
    """Distinct n-grams over all n-grams of the sequences, in (0, 1]; `without` any, that."""
    runs = [run for own in sequences for run in zip(*(own[i:] for i in range(n)), strict=False)]
    return len({*runs}) / len(runs) if runs else without


SHAPING: dict[str, Callable[..., Callable[..., list[float]]]] = {
    "overlong": overlong,
    "repetition": repetition,
}


def shaped(name: str) -> Callable[..., list[float]] | None:
    """The reward function that `overlong:1024:256` or the like names; None for another name.

    Raises:
      ValueError: its numbers are wrong.
    """
    kind, *numbers = name.split(":")
    if kind not in SHAPING:
        return None
    try:
        return SHAPING[kind](*map(float, numbers))
    except (TypeError, OverflowError):
        raise ValueError(
            f"{name!r}: expected overlong:LONGEST:BUFFER or repetition:N, in tokens"
        ) from None
