"""The reference response of a record, from which SFT and DyME learn."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Callable
from typing import Any, Literal

import pyarrow.parquet as pq

from rdbcl_jax.data.records import Record
from rdbcl_jax.remote import local
from rdbcl_jax.rewards.boxes import unsized
from rdbcl_jax.rewards.functions import FunctionFailed, in_one_line, load_function
from rdbcl_jax.rewards.response_format import in_format
from rdbcl_jax.rewards.verifiers import get_verifier
from rdbcl_jax.sections import Count, Section, Share, section

Demonstration = Callable[[Record], str | None]  # None: the record has none, and is left out


ANY = ""  # task

# options of `demonstration`; the others are of mixtures
DEMONSTRATED = tuple(
    f"demonstrations.{name}" for name in ("target", "no_reasoning", "rollouts", "refiner")
)


@section("demonstrations")
@dataclasses.dataclass(frozen=True)
class DemonstrationOptions(Section):
    """Of `sft`, `dyme` and `sft_rl`: see `demonstration`.

    Attributes:
      target: what is learned from.
      no_reasoning: what stands in place of the reasoning for "answer".
      rollouts: for "rollouts" and `rft_sft`: Parquet files, a name or a pattern.
      refiner: "package.module:function" or "file.py:function" that writes the reasoning; empty:
        none.
      mixture: of `sft_rl`, which prompts of which batches are taught by demonstrations: a part of
        each batch ("mixed"), all of every few ("interleaved"), fewer and fewer ("progressive").
      share: of a batch that is taught, of "mixed".
      period: steps, of which the first is taught, of "interleaved".
    """

    target: Literal["reasoning", "answer", "rollouts"] = "reasoning"
    no_reasoning: str = "."
    rollouts: str = ""
    refiner: str = ""
    mixture: Literal["mixed", "interleaved", "progressive"] = "mixed"
    share: Share = 0.5
    period: Count = 2


def demonstration(options: DemonstrationOptions) -> Demonstration:
    """The one that `options.target` names.

    - `reasoning`: the record's column `response`, or its column `hint` and its gold answer in the
      response format; where `demonstrations.refiner` is set, what it makes of the record's columns
      and the gold answer;
    - `answer`: the gold answer, after a reasoning that says nothing (`no_reasoning`);
    - `rollouts`: a correct response that `rdbcl collect` wrote to the files of this name or
      pattern; where a record has several, the first.

    Raises:
      ValueError: a refiner that cannot be imported.
      FileNotFoundError: no such rollouts.
    """
    if options.target == "answer":
        return lambda record: in_format(options.no_reasoning, _taught(record))
    if options.target == "rollouts":
        rollouts = read_rollouts(options.rollouts)
        return lambda record: rollouts.get((record.task, record.id), rollouts.get((ANY, record.id)))
    refine = load_function("refiner", options.refiner) if options.refiner else None
    written: dict[tuple[Any, ...], str] = {}  # a refiner may be slow: asked once per record

    def once(record: Record) -> str:
        # a record is made anew whenever it is read, and its id may be another's in another source
        told = record.prompt, record.answer, hash(repr(record.columns))
        known = record.task, record.id, record.where, *told
        if known not in written:
            written[known] = reasoned(record, refine)
        return written[known]

    return once


def reasoned(record: Record, refine: Callable[..., str] | None) -> str:
    """A response with reasoning: the refiner's, else the record's own.

    A refiner gets the record's columns, `prompt`, `answer`, `task` and `id` as keyword arguments,
    and returns the reasoning: from a hint and whatever visual facts the data holds (as DyME's
    does), from the record's own response, or from nothing but the question.
    """
    if refine is not None:
        return in_format(_refined(record, refine), _taught(record))
    if response := record.columns.get("response"):
        return response
    if hint := record.columns.get("hint"):
        return in_format(hint, _taught(record))
    raise ValueError(
        f"record {record.id!r} has neither a `response` nor a `hint` column to learn from; add "
        "one, or set demonstrations.target to 'answer'"
    )


def _taught(record: Record) -> str:
    """The gold answer; places without the size of what they lie in."""
    places = get_verifier(record.verifier).rescale is not None
    return unsized(record.answer) if places else record.answer


def _refined(record: Record, refine: Callable[..., str]) -> str:
    known = {key: getattr(record, key) for key in ("prompt", "answer", "task", "id")}
    try:
        reasoning = refine(**{**record.columns, **known})
    except Exception as error:
        raise FunctionFailed(
            f"demonstrations.refiner raised {type(error).__name__} on record {record.id!r}, which "
            f"has columns {sorted(record.columns)}: {in_one_line(error)}"
        ) from error
    if not isinstance(reasoning, str) or not reasoning.strip():
        raise ValueError(
            f"demonstrations.refiner returned {reasoning!r} for record {record.id!r}, expected the "
            "text of a reasoning"
        )
    return reasoning


def read_rollouts(pattern: str) -> dict[tuple[str, str], str]:
    """(task, record id) to response, from Parquet files with columns `task`, `record_id` and
    `completion`; without `task` it is of any. Two tasks' sources may have the same ids."""
    paths = sorted(glob.glob(str(local(pattern))))
    if not paths:
        raise FileNotFoundError(
            f"demonstrations.rollouts is {pattern!r}: no such file; `rdbcl collect` writes one"
        )
    found: dict[tuple[str, str], str] = {}
    for path in paths:
        table = pq.read_table(path)
        ids, said = (table[name].to_pylist() for name in ("record_id", "completion"))
        tasks = table["task"].to_pylist() if "task" in table.column_names else [ANY] * len(ids)
        for task, record_id, completion in zip(tasks, ids, said, strict=True):
            found.setdefault((task, record_id), completion)
    return found
