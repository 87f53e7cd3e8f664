"""What a source is: rows that are read when they are asked for, by any thread."""

from __future__ import annotations

import bisect
import itertools
import os
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


class Stamp:
    """What tells a file that is being read from one that was written over it: size and time."""

    def __init__(self, path: Path):
        self.path, self.seen = path, _seen(path)

    def check(self) -> None:
        """Raises ValueError where the file is no longer the one that it was."""
        if (now := _seen(self.path)) != self.seen:
            what = f"now {now[0]:,} bytes, {self.seen[0]:,} before" if now[1] else "now gone"
            raise ValueError(
                f"the file has changed since it was opened ({what}), and what was checked is not "
                "what is there; start again, with files that stay as they are"
            )


def _seen(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


class Shards:
    """Several sources, one after the other. Of files that have one name, rows are called by their
    folders too."""

    def __init__(self, parts: Sequence[Source]):
        self.parts = parts
        self.files = [file for part in parts for file in part.files]
        self.version = " ".join(part.version for part in parts if part.version)
        self.ends = [*itertools.accumulate(map(len, parts))]
        self.folders = _folders([part.files for part in parts])

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, number: int) -> Row:
        part = bisect.bisect_right(self.ends, number)
        if part == len(self.ends):  # what ends an iteration
            raise IndexError(number)
        row = self.parts[part][number - (self.ends[part - 1] if part else 0)]
        return row._replace(id=self.folders[part] + row.id) if self.folders else row


def _folders(files: Sequence[Sequence[Path]]) -> list[str]:
    """For each part of one file its folder, from where they part on; empty where names differ."""
    if any(len(part) != 1 for part in files):
        return []
    paths = [part[0].absolute() for part in files]
    if len({path.name for path in paths}) == len(paths):
        return []
    common = os.path.commonpath([path.parent for path in paths])
    relative = [path.parent.relative_to(common).as_posix() for path in paths]
    return ["" if folder == "." else f"{folder}/" for folder in relative]


def rows_of(source: Source) -> Iterator[Row]:
    return (source[number] for number in range(len(source)))
