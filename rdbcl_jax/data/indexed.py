"""Sequences of records that are not held: each is made of its row when it is asked for."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import functools
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import numpy as np

from rdbcl_jax.data.pictures import OfRow
from rdbcl_jax.data.records import Record
from rdbcl_jax.data.sources import Row, Source

_MADE = 4096  # records that are kept as they were made, without the pictures of their rows
_WHOLE_BYTES = 2**27  # of records that are kept with them: a picture is read soon after its record


@dataclasses.dataclass(frozen=True)
class Facts:
    """What was found when every record was looked at, or more than these.

    Attributes:
      digest: what all of them say; empty: these are some of those that were looked at.
      needs: sizes of batches (`data.prompt_lengths` and so on) to the sizes that records need.
      asked: a number for what each record asks, question and pictures: the same, the same question.
      verifiers: all that judge one of them.
    """

    digest: str
    needs: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    asked: Sequence[int] = ()
    verifiers: Sequence[str] = ()

    def of(self, indices: Sequence[int]) -> Facts:
        """Of some of the records: sizes and verifiers are among those of all."""
        asked = [self.asked[index] for index in indices] if self.asked else ()
        return dataclasses.replace(self, digest="", asked=asked)


class Records(Sequence[Record]):
    """Those of some rows of a source.

    Args:
      make: the record of a row; ValueError where it is none.
      rows: which, in order; all by default.
      facts: None: they have not been looked at.
    """

    def __init__(
        self,
        source: Source,
        make: Callable[[Row], Record],
        rows: Any = None,
        facts: Facts | None = None,
    ):
        self.source, self.make, self.facts = source, make, facts
        self.rows = np.arange(len(source)) if rows is None else np.asarray(rows, np.int64)
        self._kept = _Recent()
        self._made = functools.lru_cache(_MADE)(self._light)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Records: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.only(range(len(self))[index])
        return self._made(int(self.rows[index]))

    def only(self, indices: Sequence[int]) -> Records:
        """Some of them, in this order."""
        facts = self.facts and self.facts.of(indices)
        rows = self.rows[np.asarray(indices, np.int64)]
        return Records(self.source, self.make, rows, facts)

    def _light(self, row: int) -> Record:
        """The record; pictures of the row itself are left there."""
        record = self._whole(row)
        images = [
            OfRow(record.where, k, len(image), functools.partial(self._picture, row, k))
            if isinstance(image, bytes)
            else image
            for k, image in enumerate(record.images)
        ]
        return dataclasses.replace(record, images=tuple(images))

    def _whole(self, row: int) -> Record:
        record = self._kept.get(row)
        if record is None:
            record = self.make(self.source[row])
            if any(isinstance(image, bytes) for image in record.images):
                self._kept.put(row, record)
        return record

    def _picture(self, row: int, position: int) -> bytes:
        image = self._whole(row).images[position]
        assert isinstance(image, bytes), "as it was when the record was made"
        return image


class _Recent:
    """The records that were made last and hold pictures, `_WHOLE_BYTES` of them."""

    def __init__(self) -> None:
        self.records: collections.OrderedDict[int, Record] = collections.OrderedDict()
        self.bytes, self.lock = 0, threading.Lock()

    def get(self, row: int) -> Record | None:
        with self.lock:
            return self.records.get(row)

    def put(self, row: int, record: Record) -> None:
        with self.lock:
            if row not in self.records:
                self.records[row] = record
                self.bytes += _bytes(record)
            while self.bytes > _WHOLE_BYTES:
                self.bytes -= _bytes(self.records.popitem(last=False)[1])


def _bytes(record: Record) -> int:
    """Those of its pictures, its text and its columns, about: those hold no pictures."""
    texts = (len(value) for value in record.columns.values() if isinstance(value, str))
    pictures = (len(image) for image in record.images if isinstance(image, bytes))
    return 1000 + len(record.prompt) + sum(texts) + sum(pictures)


class Made(Sequence[Record]):
    """A sequence whose records are made when they are asked for, one by one."""

    def at(self, index: int) -> Record:
        """The record of an index from 0 on."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self.at(i) for i in range(len(self))[index]]
        return self.at(range(len(self))[index])  # from the end, too


class Joined(Made):
    """Several sequences, one after the other."""

    def __init__(self, parts: Sequence[Sequence[Record]]):
        self.parts = [part for part in parts if len(part)]
        self.ends = [*itertools.accumulate(map(len, self.parts))]

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def at(self, index: int) -> Record:
        part = bisect.bisect_right(self.ends, index)
        return self.parts[part][index - (self.ends[part - 1] if part else 0)]


def only(records: Sequence[Record], indices: Sequence[int]) -> Sequence[Record]:
    """Some of the records, in this order."""
    if isinstance(records, Records):
        return records.only(indices)
    return [records[index] for index in indices]


def verifiers_of(records: Sequence[Record]) -> Sequence[str]:
    """All that judge one of the records, without reading them where that was done before."""
    if isinstance(records, Records) and records.facts:
        return records.facts.verifiers
    return sorted({record.verifier for record in records})
