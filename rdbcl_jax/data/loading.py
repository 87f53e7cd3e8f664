"""Records of a source: opened, each looked at, made when they are asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path

from rdbcl_jax.data.check import HEADERS, Check, examine
from rdbcl_jax.data.indexed import Records
from rdbcl_jax.data.layouts import Layout, Named
from rdbcl_jax.data.pictures import size_of
from rdbcl_jax.data.records import Record, make_record
from rdbcl_jax.data.sources import Row, open_source
from rdbcl_jax.rewards.verifiers import get_verifier


def load_records(
    source: str | Path,
    *,
    task: str,
    verifier: str | None = None,
    trusted: Collection[str] = (),
    image_root: str | Path = "",
    layout: Layout | None = None,
    problems: list[str] | None = None,
    check: Check = HEADERS,
) -> Records:
    """The records of a source, checked.

    Args:
      source: as `rdbcl_jax.data.sources.open_source` takes it.
      task: the name of the records' task.
      verifier: of all records; None: each row's `verifier` column, else `exact`.
      trusted: verifiers of the form `package.module:function` that rows may name. Others are
        refused: no data file says what is imported.
      image_root: the directory in which all images lie, links followed; empty: that of the file
        that names them.
      layout: which columns are read; None: those of `rdbcl_jax.data.conventions`.
      problems: where given, records that are wrong are left out, and what is wrong with each is
        appended.
      check: how each record is looked at.

    Raises:
      FileNotFoundError: no such file.
      ImportError: the library that a source needs is not installed.
      ValueError: the first record that is wrong: which one, what was found, what was expected. A
        file that is not readable at all. No record is left.
    """

    def make(row: Row) -> Record:
        return in_frame(make_record(row, task, verifier, trusted), check)

    rows = open_source(str(source))
    return examine(
        Records(Named(rows, layout) if layout else rows, make),
        check,
        task=task,
        source=str(source),
        root=image_root,
        problems=problems,
        settings=repr((verifier, sorted(trusted), str(image_root))),
    )


def in_frame(record: Record, check: Check) -> Record:
    """The record, whose gold answers are in the coordinates of the check's model where they are
    places in its picture.

    Raises:
      ValueError: a place outside the picture, or more or fewer pictures than one.
    """
    rescale = get_verifier(record.verifier).rescale
    if rescale is None or check.encoder is None:
        return record
    try:
        if len(record.images) != 1:
            raise ValueError(
                f"the verifier {record.verifier!r} reads places in one picture, found "
                f"{len(record.images)}"
            )
        picture = size_of(record.images[0])
        frame = check.encoder().processor.frame(picture)
        golds = {gold: rescale(gold, picture, frame) for gold in (record.answer, *record.answers)}
    except ValueError as error:
        raise ValueError(f"{record.where} (id {record.id!r}): {error}") from error
    answers = tuple(golds[gold] for gold in record.answers)
    return dataclasses.replace(record, answer=golds[record.answer], answers=answers)
