"""Suites: modules that make the records of their tasks, and how a task of one is named.

`SUITE:TASK` names a task of a suite; SUITE is one of `SUITES`, or any module that can be imported,
such as `my_package.my_suite`. A built-in task goes by its own name, too.
"""

from __future__ import annotations

import importlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from rdbcl_jax.data.records import Record
from rdbcl_jax.data.sources import FILES, LIBRARIES
from rdbcl_jax.messages import did_you_mean
from rdbcl_jax.remote import is_remote

# imported when asked for: the first are on floors above, the others need libraries
SUITES = {
    "digits": "rdbcl_jax.toy.digits_suite",
    "forks": "rdbcl_jax.lab.suites.forks",
    "forks_checked": "rdbcl_jax.lab.suites.forks_checked",
    "puzzles": "rdbcl_jax.lab.suites.puzzles",
    "easy_vqa": "rdbcl_jax.data.easy_vqa",
    "easy_vqa_traced": "rdbcl_jax.lab.suites.easy_vqa_traced",
    "reasoning_gym": "rdbcl_jax.data.reasoning_gym",
}
BUILT_IN = ("digits", "forks", "puzzles")  # a task of these goes by its own name, too


class Suite(Protocol):
    """What a module must have for runs to learn its tasks.

    Attributes:
      TASKS: the tasks by name, whatever they are to the suite. No name holds a colon.
    """

    TASKS: Mapping[str, Any]

    def make_records(self, task: str, split: str, count: int, seed: int) -> Sequence[Record]:
        """`count` records, as a pure function of the arguments. Splits are "train", "validation"
        and "test". Each record's `task` is the task's name, without the suite's."""


class TaughtSuite(Suite, Protocol):
    """What `config.base.suite` needs besides: a tiny base model is taught the suite."""

    def words(self) -> Sequence[str]:
        """Every word of prompts and traces, which the tokenizer then knows."""

    def Demonstrations(self, count: int, seed: int, *, follow: float) -> Sequence[Any]:
        """`count` pairs of a record and a response in the response format; those that take
        decisions take the one that is cued with probability `follow`."""


class TracedSuite(Suite, Protocol):
    """What `rdbcl gate` needs besides: traces that are known, and can be tampered with.

    Attributes:
      Procedure: a frozen dataclass of a trace's decisions, each a word of the trace.
      OPTIONS: the words that each field of `Procedure` can be.
    """

    Procedure: type
    OPTIONS: Mapping[str, Sequence[str]]

    def make_record(self, task: str, split: str, index: int, seed: int) -> Record:
        """Record `index` of an endless stream."""

    def verified(self, record: Record) -> Any:
        """The procedure that is rewarded."""

    def make_trace(
        self, record: Record, procedure: Any = None, changes: Mapping[int, int] | None = None
    ) -> str:
        """The response that carries out a procedure (default: the rewarded one); `changes`
        overwrites the states of some steps, and what follows from them."""

    def named_procedure(self, reasoning: str) -> Any:
        """The procedure that the reasoning names; None unless it names each decision once."""

    def mistake(
        self, record: Record, procedure: Any, last: bool, rng: np.random.Generator
    ) -> tuple[dict[int, int], int]:
        """`changes` that overwrite a state in the middle, or the last one, and the length of the
        response up to there, in words."""


def named_options(reasoning: str, options: Mapping[str, Sequence[str]]) -> tuple[str, ...] | None:
    """Of each decision the option that a trace names, in the order of `options`; None unless it
    names each decision once."""
    words = reasoning.split()
    named = [[word for word in words if word in row] for row in options.values()]
    return tuple(n[0] for n in named) if all(len(n) == 1 for n in named) else None


def load_suite(name: str, needs: type = Suite) -> Any:
    """The module of a suite, by its name in `SUITES` or the module's own.

    Raises:
      ValueError: no such suite, or one that lacks something of the protocol `needs`.
    """
    try:
        suite = importlib.import_module(SUITES.get(name, name))
    except (ModuleNotFoundError, TypeError, ValueError) as error:  # the last two: no module's name
        lacking = getattr(error, "name", None)
        if lacking and not f"{name}.".startswith(f"{lacking}."):
            raise  # the suite is there, and a package that it imports is not
        raise ValueError(
            f"suite is {name!r}, expected one of {[*SUITES]}, or the name of a module that can be "
            f"imported{did_you_mean(name, SUITES)}"
        ) from None
    missing = [member for member in _members(needs) if not hasattr(suite, member)]
    if missing:
        raise ValueError(
            f"suite {name!r} has no {', '.join(missing)}; "
            f"rdbcl_jax.data.suites.{needs.__name__} says what it needs"
        )
    return suite


def find_task(name: str, needs: type = Suite) -> tuple[Any, str]:
    """The suite of `SUITE:TASK`, or of a built-in TASK, and the task's own name.

    Raises:
      ValueError: no such suite or task.
    """
    suite_name, colon, task = name.rpartition(":")
    if colon:
        suite = load_suite(suite_name, needs)
        if task not in suite.TASKS:
            raise ValueError(
                f"suite {suite_name!r} has no task {task!r}, expected one of {[*suite.TASKS]}"
            )
        return suite, task
    for suite_name in BUILT_IN:
        suite = load_suite(suite_name)
        if task in suite.TASKS:
            return load_suite(suite_name, needs), task
    names = [task for suite in map(load_suite, BUILT_IN) for task in suite.TASKS]
    raise ValueError(f"task {task!r} is not built in (built in: {', '.join(names)})")


def names_a_suite(source: str) -> bool:
    """Whether a source is `SUITE:TASK` rather than one that `open_source` knows."""
    suite, colon, _ = source.partition(":")
    files = source.endswith((*FILES,)) or pathlib.Path(source).exists()
    dotted = all(part.isidentifier() for part in suite.split("."))
    files = files or is_remote(source)
    return bool(colon) and dotted and suite not in LIBRARIES and not files


def _members(protocol: type) -> list[str]:
    """What a protocol asks for, and those that it extends."""
    parts = [part for part in protocol.__mro__ if Suite in part.__mro__]
    names = [name for part in parts for name in (*vars(part), *part.__annotations__)]
    return [name for name in dict.fromkeys(names) if not name.startswith("_")]
