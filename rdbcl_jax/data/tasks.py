"""The task sequence of a config: records of every split, checked before anything compiles."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from rdbcl_jax.data import suite
from rdbcl_jax.data.records import Record, load_records

SPLITS = ("train", "validation", "test")
BUILT_IN = "digits:"


@dataclasses.dataclass(frozen=True)
class TaskData:
    """One task of the sequence."""

    name: str
    train: list[Record]
    validation: list[Record]
    test: list[Record]


def load_sequence(config: ConfigDict) -> list[TaskData]:
    """Every task of `config.sequence`, in order.

    A task that `config.tasks` does not describe is the built-in one of that name. A split's source
    is a file, a pattern, `tfds:name/split` or `digits:TASK`.

    Raises:
      ValueError: an empty sequence, a task named twice, a task without a source for a split.
    """
    names = tuple(config.sequence)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"config.sequence is {names}, expected different task names, at least one")
    return [TaskData(name, **{s: _load(config, name, s) for s in SPLITS}) for name in names]


def _load(config: ConfigDict, name: str, split: str) -> list[Record]:
    if name not in config.tasks:
        if name not in suite.TASKS:
            raise ValueError(
                f"task {name!r} is in config.sequence, but neither in config.tasks nor built in "
                f"(built in: {', '.join(suite.TASKS)}); give its sources in config.tasks.{name}"
            )
        source, verifier = BUILT_IN + name, None
    else:
        source = config.tasks[name].get(split)
        verifier = config.tasks[name].get("verifier") or None
        if not source:
            raise ValueError(f"config.tasks.{name} has no source for the {split} split")
    return read_source(source, config, split=split, task=name, verifier=verifier)


def read_source(
    source: str, config: ConfigDict, *, split: str, task: str, verifier: str | None = None
) -> list[Record]:
    """The records of a file, a pattern, `tfds:name/split` or `digits:TASK`; the last one has
    splits of its own, of `config.data`'s sizes."""
    if source.startswith(BUILT_IN):
        built_in, count = source.removeprefix(BUILT_IN), config.data[f"{split}_count"]
        return suite.make_records(built_in, split, count, config.data.seed)
    return load_records(source, task=task, verifier=verifier)
