"""Rows of Arrow tables: `.arrow` files, mapped into memory, and row groups of `.parquet` files."""

from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rdbcl_jax.data.sources.rows import Row, Stamp
from rdbcl_jax.data.values import shortest
from rdbcl_jax.messages import line_of

HELD_BYTES = 2**28  # row groups of a Parquet file that are kept, all files together
LARGEST_GROUP = 2**30  # one is read whole for the sake of each of its rows


class ArrowRows:
    """Rows of a file as `datasets` and Feather write it. Nothing but what is asked for is read."""

    version = ""

    def __init__(self, path: Path):
        import pyarrow as pa

        self.path, self.files, self.stamp = path, [path], Stamp(path)
        with _readable(path, "Arrow"):
            mapped = pa.memory_map(str(path))
            try:
                self.table = pa.ipc.open_stream(mapped).read_all()
            except pa.ArrowInvalid:
                self.table = pa.ipc.open_file(mapped).read_all()

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, number: int) -> Row:
        try:
            self.stamp.check()  # what is mapped into memory would change, or go
        except ValueError as error:
            return _row(self.path, number, str(error))
        return _row(self.path, number, columns_of(self.table, number))


class ParquetRows:
    """Rows of a file, whose row groups are read when a row of one is asked for."""

    version = ""

    def __init__(self, path: Path):
        import pyarrow.parquet as pq

        self.path, self.files, self.stamp = path, [path], Stamp(path)
        with _readable(path, "Parquet"):
            self.metadata = pq.read_metadata(path)
        groups = [self.metadata.row_group(g) for g in range(self.metadata.num_row_groups)]
        self.starts = np.cumsum([0, *(group.num_rows for group in groups)])
        largest = max((group.total_byte_size for group in groups), default=0)
        if largest > LARGEST_GROUP:
            raise ValueError(
                f"{path}: has a row group of {largest / 2**20:,.0f} MB, which would be read for "
                f"each of its rows; expected at most {LARGEST_GROUP / 2**20:,.0f} MB: write it "
                "again with row_group_size=100"
            )

    def __len__(self) -> int:
        return self.metadata.num_rows

    def __getitem__(self, number: int) -> Row:
        group = int(np.searchsorted(self.starts, number, side="right")) - 1
        try:
            table = _GROUPS.get(self, group)
        except ValueError as error:
            return _row(self.path, number, str(error))
        return _row(self.path, number, columns_of(table, number - int(self.starts[group])))

    def read(self, group: int) -> Any:
        """The table of a row group.

        Raises:
          ValueError: it is damaged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.stamp.check()
        try:
            with pq.ParquetFile(self.path, metadata=self.metadata) as file:
                return file.read_row_group(group, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"its row group, {group} from 0 on, cannot be read: the file is damaged "
                f"({line_of(error)})"
            ) from None


class _Groups:
    """The row groups that were asked for last, `HELD_BYTES` of them. Threads that want the same one
    wait for the first of them to read it."""

    def __init__(self) -> None:
        self.held: collections.OrderedDict[tuple, Any] = collections.OrderedDict()
        self.lock = threading.Lock()
        self.reading: dict[tuple, threading.Lock] = collections.defaultdict(threading.Lock)
        self.bytes = 0  # of all held: tables of few rows are many

    def get(self, source: ParquetRows, group: int) -> Any:
        # a file that replaces this one is another
        key = (source.path, *source.stamp.seen, group)
        with self.lock:
            own = self.reading[key]
        with own:
            with self.lock:
                if key in self.held:
                    self.held.move_to_end(key)
                    return self.held[key]
            table = source.read(group)
            with self.lock:
                self.held[key] = table
                self.bytes += table.nbytes
                while len(self.held) > 1 and self.bytes > HELD_BYTES:
                    _, oldest = self.held.popitem(last=False)
                    self.bytes -= oldest.nbytes
                self.reading.pop(key, None)
        return table


_GROUPS = _Groups()


@contextlib.contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    """Raises ValueError for a file that is not of that kind."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path}: no {kind} file, or a damaged one ({line_of(error)}); write it again"
        ) from None


def _row(path: Path, number: int, found: Mapping[str, Any] | str) -> Row:
    columns, problem = ({}, found) if isinstance(found, str) else (found, "")
    where, own = f"{path}, row {number}", f"{path.name}:{number}"
    return Row(where, path.parent, own, columns, problem)


# --- one row -------------------------------------------------------------------------------------


def columns_of(table: Any, number: int) -> dict[str, Any] | str:
    """The values of a row of an Arrow table, or why one cannot be read."""
    row = {}
    for name, column in zip(table.schema.names, table.columns, strict=True):
        try:
            row[name] = _as_written(column[number].as_py(), column.type)
        # no UTF-8, a date after the year 9999, an unknown time zone
        except (ValueError, OverflowError, KeyError) as error:
            return f"column {name!r} cannot be read ({line_of(error)})"
    return row


def _has_narrow(type: Any) -> bool:
    """Whether an Arrow type holds floats of less than 64 bits."""
    fields = [type.field(i) for i in range(type.num_fields)]
    return str(type) in ("float", "halffloat") or any(_has_narrow(f.type) for f in fields)


def _as_written(value: Any, type: Any) -> Any:
    """The value with its narrow floats as they were written: 0.1, not 0.10000000149011612."""
    if value is None or not _has_narrow(type):
        return value
    if not type.num_fields:
        return shortest(np.asarray(value, np.float32 if str(type) == "float" else np.float16))
    if isinstance(value, dict):
        return {name: _as_written(item, type.field(name).type) for name, item in value.items()}
    if type.num_fields == 1 and not str(type).startswith("map"):
        return [_as_written(item, type.field(0).type) for item in value]
    return value
