"""Suite `reasoning_gym`: the text puzzles of reasoning-gym, made by seed and number, each judged by
its data set's own scorer. `reasoning_gym:leg_counting` is a task."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from rdbcl_jax.data.records import Record
from rdbcl_jax.rewards.reasoning_gym import Puzzle, entry

# a puzzle is a function of its seed plus its number: those of other splits are far away
_APART = 10_000_000
_SPLITS = ("train", "validation", "test")


class _Names(Mapping[str, str]):
    """The data sets by name; the library is imported when one is looked for."""

    def __getitem__(self, name: str) -> str:
        if name not in _data_sets():
            raise KeyError(name)
        return name

    def __iter__(self) -> Iterator[str]:
        return iter(_data_sets())

    def __len__(self) -> int:
        return len(_data_sets())


TASKS: Mapping[str, str] = _Names()


def make_records(task: str, split: str, count: int, seed: int) -> list[Record]:
    """`count` puzzles, with the library's own settings of difficulty."""
    first = (seed * len(_SPLITS) + _SPLITS.index(split)) * _APART
    return [_record(Puzzle(task, first, count, i), f"{split}-{i}") for i in range(count)]


def _record(puzzle: Puzzle, name: str) -> Record:
    found = entry(puzzle)
    answer = found["answer"] or ""
    return Record(
        id=f"{puzzle.dataset}-{name}",
        task=puzzle.dataset,
        prompt=found["question"],
        images=(),
        answer=answer,
        verifier="reasoning_gym",
        answers=(answer, json.dumps(puzzle._asdict())),
    )


def _data_sets() -> list[str]:
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ImportError(
            "tasks of reasoning_gym need reasoning-gym: pip install 'rdbcl_jax[reasoning_gym]'"
        ) from error
    return sorted({*DATASETS} - {"composite"})  # made of others
