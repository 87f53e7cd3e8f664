"""The task sequence of a config: records of every split, checked before anything compiles."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from types import ModuleType

from ml_collections import ConfigDict

from rdbcl_jax.data.records import Record, load_records

EVALUATED = ("validation", "test")
SPLITS = ("train", *EVALUATED)
BUILT_IN = "digits:"
# modules with the same functions, by name: they stand on floors above, and are imported when asked
SUITES = {
    "digits": "rdbcl_jax.toy.digits_suite",
    "forks": "rdbcl_jax.lab.suites.forks",
    "puzzles": "rdbcl_jax.lab.suites.puzzles",
}


def load_suite(name: str) -> ModuleType:
    """The module of the built-in suite of that name."""
    return importlib.import_module(SUITES[name])


def suite_of(task: str) -> ModuleType:
    """The built-in suite that has a task; ValueError for an unknown one."""
    modules = [load_suite(name) for name in SUITES]
    for module in modules:
        if task in module.TASKS:
            return module
    names = ", ".join(name for module in modules for name in module.TASKS)
    raise ValueError(f"task {task!r} is not built in (built in: {names})")


@dataclasses.dataclass(frozen=True)
class TaskData:
    """One task; `train` is empty where it is only evaluated."""

    name: str
    train: list[Record]
    validation: list[Record]
    test: list[Record]


def load_sequence(config: ConfigDict) -> list[TaskData]:
    """Every task of `config.sequence`, in order.

    A task that `config.tasks` does not describe is the built-in one of that name. A split's source
    is a file, a pattern, `tfds:name/split`, or `SUITE:TASK` for a built-in one.

    Raises:
      ValueError: an empty sequence, a task named twice, a task without a source for a split.
    """
    names = tuple(config.sequence)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"config.sequence is {names}, expected different task names, at least one")
    return [_load_task(config, name, SPLITS) for name in names]


def load_held(config: ConfigDict) -> list[TaskData]:
    """Every task of `config.evaluation.tasks`: its validation and test records.

    Raises:
      ValueError: a task named twice, or in the sequence too; one without a source for a split.
    """
    names = tuple(config.evaluation.tasks)
    learned = set(names) & set(config.sequence)
    if learned or len(set(names)) < len(names):
        raise ValueError(
            f"config.evaluation.tasks is {names}, expected different task names, none of them in "
            f"config.sequence (there: {sorted(learned)}): its tasks are evaluated anyway"
        )
    return [_load_task(config, name, EVALUATED) for name in names]


def _load_task(config: ConfigDict, name: str, splits: Sequence[str]) -> TaskData:
    return TaskData(name, **{s: _load(config, name, s) if s in splits else [] for s in SPLITS})


def _load(config: ConfigDict, name: str, split: str) -> list[Record]:
    if name not in config.tasks:
        try:
            suite_of(name)
        except ValueError as error:
            field = "sequence" if name in config.sequence else "evaluation.tasks"
            raise ValueError(
                f"task {name!r} is in config.{field}, but not in config.tasks, and {error}; give "
                f"its sources in config.tasks.{name}"
            ) from None
        return _built_in(name, config, split)
    source = config.tasks[name].get(split)
    verifier = config.tasks[name].get("verifier") or None
    if not source:
        raise ValueError(f"config.tasks.{name} has no source for the {split} split")
    return read_source(source, config, split=split, task=name, verifier=verifier)


def read_source(
    source: str, config: ConfigDict, *, split: str, task: str, verifier: str | None = None
) -> list[Record]:
    """The records of a file, a pattern, `tfds:name/split`, or `SUITE:TASK` with one of `SUITES`,
    which has splits of its own, of `config.data`'s sizes."""
    suite_name, _, built_in = source.partition(":")
    if suite_name in SUITES:
        return _built_in(built_in, config, split)
    return load_records(source, task=task, verifier=verifier)


def _built_in(task: str, config: ConfigDict, split: str) -> list[Record]:
    count = config.data[f"{split}_count"]
    return suite_of(task).make_records(task, split, count, config.data.seed)
