"""The reference response of a record, from which SFT and DyME learn."""

from __future__ import annotations

import glob
from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq
from ml_collections import ConfigDict

from rdbcl_jax.data.records import Record
from rdbcl_jax.rewards.scoring import load_function

TARGETS = ("reasoning", "answer", "rollouts")

Demonstration = Callable[[Record], str | None]  # None: the record has none, and is left out


def demonstration(config: ConfigDict) -> Demonstration:
    """The one that `config.demonstrations.target` names.

    - `reasoning`: the record's column `response`; else its column `hint`, rewritten by
      `demonstrations.refiner` where one is set, and its gold answer, in the response format;
    - `answer`: the gold answer, after a reasoning that says nothing (`no_reasoning`);
    - `rollouts`: a correct response that `rdbcl collect` wrote to the files of this name or
      pattern; of several for a record the first.

    Raises:
      ValueError: another target, or a refiner that cannot be imported.
      FileNotFoundError: no such rollouts.
    """
    options = config.demonstrations
    if options.target == "answer":
        return lambda record: in_format(options.no_reasoning, record.answer)
    if options.target == "rollouts":
        rollouts = read_rollouts(options.rollouts)
        return lambda record: rollouts.get(record.id)
    if options.target != "reasoning":
        raise ValueError(f"demonstrations.target is {options.target!r}, expected {TARGETS}")
    refine = load_function("refiner", options.refiner) if options.refiner else original_hint
    written: dict[int, tuple[Record, str]] = {}  # a refiner may be slow: it is asked once a record

    def once(record: Record) -> str:
        if id(record) not in written:
            written[id(record)] = record, reasoned(record, refine)
        return written[id(record)][1]

    return once


def reasoned(record: Record, refine: Callable[..., str]) -> str:
    """The record's own response, or its hint and gold answer in the response format."""
    if response := record.columns.get("response"):
        return response
    if not record.columns.get("hint"):
        raise ValueError(
            f"record {record.id!r} has neither a `response` nor a `hint` column to learn from; add "
            "one, or set demonstrations.target to 'answer'"
        )
    known: dict[str, Any] = {"prompt": record.prompt, "answer": record.answer}
    return in_format(refine(**{**record.columns, **known}), record.answer)


def original_hint(hint: str, **columns) -> str:
    """The refiner that changes nothing.

    A refiner gets the record's columns, its `prompt` and `answer` as keyword arguments: the hint,
    and whatever visual facts the data holds (DyME's refiner writes them into the hint).
    """
    return hint


def in_format(reasoning: str, answer: str) -> str:
    return f"<think> {reasoning} </think> <answer> {answer} </answer>"


def read_rollouts(pattern: str) -> dict[str, str]:
    """Record id to response, from Parquet files with columns `record_id` and `completion`."""
    paths = sorted(glob.glob(pattern))
    if not paths:
        raise FileNotFoundError(
            f"demonstrations.rollouts is {pattern!r}: no such file; `rdbcl collect` writes one"
        )
    found: dict[str, str] = {}
    for path in paths:
        table = pq.read_table(path, columns=["record_id", "completion"]).to_pydict()
        for record_id, completion in zip(table["record_id"], table["completion"], strict=True):
            found.setdefault(record_id, completion)
    return found
