"""What a source is: rows that are read when they are asked for, by any thread."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol


class Row(NamedTuple):
    """One row of a source.

    Attributes:
      where: file and line, or row.
      folder: that of the file.
      id: for a row that has none of its own.
      columns: empty where the row cannot be read.
      problem: why it cannot.
    """

    where: str
    folder: Path
    id: str
    columns: Mapping[str, Any]
    problem: str = ""


class Source(Protocol):
    """Rows by number. A source holds where they are, never what they hold.

    Attributes:
      files: all that it reads, but for files that its rows name.
      version: what its rows depend on besides.
    """

    @property
    def files(self) -> Sequence[Path]: ...

    @property
    def version(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Row: ...


class Shards:
    """Several sources, one after the other."""

    def __init__(self, parts: Sequence[Source]):
        self.parts = parts
        self.files = [file for part in parts for file in part.files]
        self.version = " ".join(part.version for part in parts if part.version)
        self.ends = [*itertools.accumulate(map(len, parts))]

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, number: int) -> Row:
        part = bisect.bisect_right(self.ends, number)
        if part == len(self.ends):  # what ends an iteration
            raise IndexError(number)
        return self.parts[part][number - (self.ends[part - 1] if part else 0)]


def rows_of(source: Source) -> Iterator[Row]:
    return (source[number] for number in range(len(source)))
