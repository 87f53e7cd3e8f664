"""The task sequence of a config: records of every split, checked before anything compiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rdbcl_jax.config import RunConfig
from rdbcl_jax.data.check import HEADERS, Check
from rdbcl_jax.data.indexed import Records
from rdbcl_jax.data.layouts import Layout, layout_of
from rdbcl_jax.data.loading import load_records
from rdbcl_jax.data.records import Record
from rdbcl_jax.data.suites import find_task, names_a_suite
from rdbcl_jax.messages import did_you_mean
from rdbcl_jax.remote import at, copy_of
from rdbcl_jax.rewards.verifiers import get_verifier

EVALUATED = ("validation", "test")
SPLITS = ("train", *EVALUATED)
READ_BY = ("verifier", "format", "image_folder")  # fields that say how a task's rows are read
TASK_FIELDS = (*SPLITS, *READ_BY)
BUILT_IN = "digits:"


@dataclasses.dataclass(frozen=True)
class TaskData:
    """One task; `train` is empty where the task is only evaluated."""

    name: str
    train: Sequence[Record]
    validation: Sequence[Record]
    test: Sequence[Record]


def load_sequence(
    config: RunConfig, check: Check | None = None, left_out: list[str] | None = None
) -> list[TaskData]:
    """Every task of `config.sequence`, in order.

    A task that `config.tasks` does not describe is built in, or `SUITE:TASK` of a suite; see
    `rdbcl_jax.data.suites`. A split's source is one that `rdbcl_jax.data.sources.open_source`
    knows, or `SUITE:TASK`.

    Args:
      check: how each record is looked at.
      left_out: gets what is wrong with the records that `config.data.on_bad_record` leaves out.
    Raises:
      ValueError: an empty sequence, a task named twice, a task without a source for a split, a
        record that is wrong.
    """
    names = _own_names(config.sequence)
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"config.sequence is {tuple(config.sequence)}, expected different task names, at least "
            "one"
        )
    return [_load_task(config, name, SPLITS, check, left_out) for name in config.sequence]


def load_held_out(
    config: RunConfig, check: Check | None = None, left_out: list[str] | None = None
) -> list[TaskData]:
    """Every task of `config.evaluation.tasks`: its validation and test records; otherwise as
    `load_sequence`.

    Raises:
      ValueError: a task that is in the sequence too; otherwise as `load_sequence`.
    """
    names = _own_names(config.evaluation.tasks)
    learned = set(names) & set(_own_names(config.sequence))
    if learned or len(set(names)) < len(names):
        raise ValueError(
            f"config.evaluation.tasks is {tuple(config.evaluation.tasks)}, expected different task "
            f"names, none of them in config.sequence (there: {sorted(learned)}): its tasks are "
            "evaluated anyway"
        )
    return [
        _load_task(config, name, EVALUATED, check, left_out) for name in config.evaluation.tasks
    ]


def shared_records(task: TaskData) -> list[str]:
    """How many records of the splits that are evaluated ask what a training record asks, of the
    same pictures: a line for each split that has some. Records that a suite makes are not compared.
    """
    if not isinstance(task.train, Records) or not task.train.facts:
        return []
    learned, found = {*task.train.facts.asked}, []
    for split in EVALUATED:
        records = getattr(task, split)
        asked = records.facts.asked if isinstance(records, Records) and records.facts else ()
        if count := sum(one in learned for one in asked):
            found.append(
                f"task {task.name!r}: {count} of the {len(records)} records of {split} are in "
                "train, too (the same question and pictures); what is measured on them is memory"
            )
    return found


def _own_names(names: Sequence[str]) -> list[str]:
    """What tasks are called in results: of `SUITE:TASK`, TASK, as its records have it.

    Raises:
      ValueError: a name that is not fit for a file's, which it will be part of.
    """
    own = [name.rpartition(":")[2] for name in names]
    for name in own:
        plain = name.isprintable() and not {*name} & {*"/\\"} and 0 < len(name.encode()) <= 100
        if not plain or name.startswith("."):
            raise ValueError(
                f"a task is called {name!r}; expected at most 100 bytes that can be part of a "
                "file's name: no slash, no control character, no dot at the beginning"
            )
    return own


def _load_task(
    config: RunConfig,
    name: str,
    splits: Sequence[str],
    check: Check | None,
    left_out: list[str] | None,
) -> TaskData:
    (own,) = _own_names([name])
    records = {split: load_split(config, name, split, check, left_out) for split in splits}
    return TaskData(own, **{split: records.get(split, []) for split in SPLITS})


def load_split(
    config: RunConfig,
    name: str,
    split: str,
    check: Check | None = None,
    left_out: list[str] | None = None,
) -> Sequence[Record]:
    """One split of a task that the config names; arguments as of `load_sequence`."""
    if name not in config.tasks:
        try:
            find_task(name)
        except ValueError as error:
            field = "sequence" if name in config.sequence else "evaluation.tasks"
            advice = "" if ":" in name else f"; give its sources in config.tasks.{name}"
            raise ValueError(
                f"task {name!r} is in config.{field}, but not in config.tasks, and {error}{advice}"
            ) from None
        return _from_suite(name, config, split)
    for field in config.tasks[name]:
        if field not in TASK_FIELDS:
            hint = did_you_mean(field, TASK_FIELDS)
            raise ValueError(f"config.tasks.{name}.{field} is no field of a task{hint}")
    source = config.tasks[name].get(split)
    if source and names_a_suite(source):
        for field in READ_BY:
            if config.tasks[name].get(field):
                raise ValueError(
                    f"config.tasks.{name}.{field}: {split} is {source!r}, whose records are made "
                    "with all that they need; expected none beside a suite's task"
                )
    verifier = config.tasks[name].get("verifier") or None
    if not source:
        raise ValueError(f"config.tasks.{name} has no source for the {split} split")
    if verifier:
        try:
            get_verifier(verifier)
        except ValueError as error:
            raise ValueError(f"config.tasks.{name}.verifier: {error}") from None
    try:
        return read_source(
            source,
            config,
            split=split,
            task=name,
            verifier=verifier,
            layout=task_layout(config, name),
            check=check,
            left_out=left_out,
        )
    except (FileNotFoundError, ImportError) as error:
        raise type(error)(f"config.tasks.{name}.{split}: {error}") from None


def task_layout(config: RunConfig, name: str) -> Layout | None:
    """How a task's rows are read; None: as `rdbcl_jax.data.conventions` says.

    Raises:
      ValueError: there is no such layout.
    """
    fields = config.tasks.get(name, {})
    layout = layout_of(fields.get("format"), f"config.tasks.{name}.format")
    if folder := fields.get("image_folder"):
        return dataclasses.replace(layout or Layout(), image_folder=str(copy_of(folder).absolute()))
    return layout


def read_source(
    source: str,
    config: RunConfig,
    *,
    split: str,
    task: str,
    verifier: str | None = None,
    layout: Layout | None = None,
    check: Check | None = None,
    left_out: list[str] | None = None,
) -> Sequence[Record]:
    """The records of a source that `open_source` knows, or of `SUITE:TASK`; the last has splits of
    its own, of the sizes in `config.data`. Of verifiers `package.module:function`, rows may name
    those that the config's tasks name."""
    if names_a_suite(source):
        return _from_suite(source, config, split)
    root = config.data.image_root
    if root and not at(root).is_dir():
        raise ValueError(f"config.data.image_root is {root!r}, expected a directory that is there")
    root = str(copy_of(root)) if root else root
    problems = None
    if config.data.on_bad_record == "skip":
        problems = [] if left_out is None else left_out
    return load_records(
        source,
        task=task,
        verifier=verifier,
        trusted={str(own.get("verifier")) for own in config.tasks.values()}
        | ({layout.verifier} if layout else set()),
        image_root=root,
        layout=layout,
        problems=problems,
        check=check or HEADERS,
    )


def _from_suite(name: str, config: RunConfig, split: str) -> Sequence[Record]:
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)} of {name!r}")
    suite, task = find_task(name)
    return suite.make_records(task, split, getattr(config.data, f"{split}_count"), config.data.seed)
