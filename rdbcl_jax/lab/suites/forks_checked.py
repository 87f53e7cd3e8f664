"""The built-in `forks_checked` suite, for studies of long responses: `forks`, whose traces are
written again and again before the answer, as models check what they have thought.

    <think> columns 4 1 9 0 skip 3 3 top again columns 4 1 9 0 skip 3 3 top again … top </think>
    <answer> 3 </answer>

Pictures, prompts, decisions and answers are those of `forks`. With six passes a response has 65
tokens, its end included, where `forks` has 15. The decisions stand in the first pass; the others
follow from it, so any policy that was taught to check would write them too: of the reasoning three
tokens in 59 can be what a previous policy would not have said.
"""

from __future__ import annotations

import dataclasses

from rdbcl_jax.data.records import Record
from rdbcl_jax.lab.suites import forks
from rdbcl_jax.lab.suites.forks import OPTIONS, TASKS, Procedure, mistake, verified
from rdbcl_jax.rewards.response_format import in_format, parse

__all__ = [
    "OPTIONS",
    "TASKS",
    "Demonstrations",
    "Procedure",
    "make_record",
    "make_records",
    "make_trace",
    "mistake",
    "named_procedure",
    "verified",
    "words",
]
PASSES = 6
AGAIN = "again"


def words() -> tuple[str, ...]:
    """Every word of the suite's prompts and traces, digits included."""
    return (*forks.words(), AGAIN)


def make_record(task: str, split: str, index: int, seed: int) -> Record:
    """Record `index` of an endless stream, a pure function of the arguments."""
    record = forks.make_record(task, split, index, seed)
    columns = {**record.columns, "response": _checked(record.columns["response"])}
    return dataclasses.replace(record, columns=columns)


def make_records(task: str, split: str, count: int, seed: int) -> list[Record]:
    """The first `count` records of a stream; see `forks.make_records`."""
    return [make_record(task, split, index, seed) for index in range(count)]


def make_trace(
    record: Record, procedure: Procedure | None = None, changes: dict[int, int] | None = None
) -> str:
    """The response that carries out a procedure (default: the rewarded one) on a record, and
    checks it. `changes` overwrites the state of a step, in all passes; later steps and the answer
    follow from it."""
    return _checked(forks.make_trace(record, procedure, changes))


def named_procedure(reasoning: str) -> Procedure | None:
    """The decisions that a trace names; None unless each pass names each once, and all the same."""
    named = {forks.named_procedure(written) for written in reasoning.split(AGAIN)}
    return named.pop() if len(named) == 1 else None


class Demonstrations:
    """Random-access source of (record, response); see `forks.Demonstrations`."""

    def __init__(self, count: int, seed: int, follow: float = 0.7):
        self.source = forks.Demonstrations(count, seed, follow)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Record, str]:
        record, response = self.source[index]
        return record, _checked(response)


def _checked(response: str) -> str:
    parsed = parse(response)
    return in_format(f" {AGAIN} ".join([parsed.reasoning] * PASSES), parsed.answer)
