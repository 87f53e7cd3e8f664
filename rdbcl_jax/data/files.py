"""Rows of JSONL, Parquet and TFDS sources, each with where it stands; what a file is not, in one
line."""

from __future__ import annotations

import datetime
import decimal
import glob
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

DEEPEST = 64  # nested lists and objects of a row
_OTHER_FILES = {  # by their first bytes
    b"\x1f\x8b": "gzip; unpack it first",
    b"\xff\xfe": "UTF-16; save it as UTF-8",
    b"\xfe\xff": "UTF-16; save it as UTF-8",
    b"PAR1": "Parquet; give it the suffix .parquet",
}


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


Numbered = tuple[int, Mapping[str, Any] | str]  # the columns, or why they cannot be read


def read_rows(source: str) -> Iterator[Row]:
    """All rows of a file, a pattern or `tfds:name/split`, in order.

    Raises:
      FileNotFoundError: no such file.
      ImportError: a `tfds:` source without TensorFlow Datasets.
      ValueError: a file of another format, or so damaged that its other rows cannot be found.
    """
    if source.startswith("tfds:"):
        yield from _tfds_rows(source)
        return
    paths = [source] if Path(source).exists() else sorted(glob.glob(source))
    if not paths:
        raise FileNotFoundError(f"no file at {source!r}; expected .jsonl or .parquet, or a pattern")
    for path in map(Path, paths):
        if path.suffix not in _READERS or not path.is_file():
            raise ValueError(f"{path}: expected a .jsonl or a .parquet file")
        place = "line" if path.suffix == ".jsonl" else "row"
        for number, found in _READERS[path.suffix](path):
            columns, problem = ({}, found) if isinstance(found, str) else (found, "")
            where, own = f"{path}, {place} {number}", f"{path.name}:{number}"
            yield Row(where, path.parent, own, columns, problem)


# --- JSONL ---------------------------------------------------------------------------------------


def _jsonl_rows(path: Path) -> Iterator[Numbered]:
    with path.open("rb") as file:
        start = file.read(4)
        for mark, what in _OTHER_FILES.items():
            if start.startswith(mark):
                raise ValueError(f"{path}: expected lines of JSON in UTF-8, found {what}")
        file.seek(3 if start.startswith(b"\xef\xbb\xbf") else 0)  # a byte-order mark says nothing
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield number, _object(line)
            except ValueError as error:
                yield number, str(error)


def _object(line: bytes) -> Mapping[str, Any]:
    """The row of a line; ValueError where it is none."""
    try:
        row = json.loads(line.rstrip().decode())
    except UnicodeDecodeError as error:
        found = f"byte {line[error.start]:#04x} at column {error.start + 1}"
        raise ValueError(f"not UTF-8 ({found}); save the file as UTF-8") from None
    except RecursionError:
        raise ValueError(f"not a record: nested more than {DEEPEST} deep") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    except ValueError as error:  # a number of thousands of digits
        raise ValueError(f"not JSON ({error})") from None
    _check_values(row)
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, found {short(row)}")
    return row


def _check_values(row: Any) -> None:
    """Raises ValueError for values nested too deep and for text that no file can hold."""
    level, depth = [row], 0
    while level:
        if depth > DEEPEST:
            raise ValueError(f"not a record: nested more than {DEEPEST} deep")
        inner: list[Any] = []
        for value in level:
            if isinstance(value, str) and not value.isascii():
                try:
                    value.encode()
                except UnicodeEncodeError as error:
                    half = f"\\u{ord(value[error.start]):04x}"
                    raise ValueError(f"half a character, {half}, stands alone in a text") from None
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, dict):
                inner += [*value, *value.values()]
        level, depth = inner, depth + 1


# --- Parquet -------------------------------------------------------------------------------------


def _parquet_rows(path: Path) -> Iterator[Numbered]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):  # whole files of images are large
                for found in _batch_rows(batch):
                    yield number, found
                    number += 1
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path}, row {number}: no Parquet file, or a damaged one; its rows from here on "
            f"cannot be read ({line_of(error)})"
        ) from None


def _batch_rows(batch: Any) -> Iterator[Mapping[str, Any] | str]:
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):  # text that is not UTF-8, a date after the year 9999
        rows = [_one_row(batch, i) for i in range(batch.num_rows)]
    narrow = {field.name: field.type for field in batch.schema if _has_narrow(field.type)}
    for row in rows:
        if narrow and not isinstance(row, str):
            row |= {name: _as_written(row[name], type) for name, type in narrow.items()}
        yield row


def _one_row(batch: Any, index: int) -> dict[str, Any] | str:
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[index].as_py()
        except (ValueError, OverflowError) as error:
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


_READERS = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows}


# --- TFDS ----------------------------------------------------------------------------------------


def _tfds_rows(source: str) -> Iterator[Row]:
    """Rows of `tfds:name/split` (ArrayRecord, random access), images left encoded.

    Checked with tensorflow-datasets 4.9.10, which needs no TensorFlow for this.
    """
    name, _, split = source.removeprefix("tfds:").rpartition("/")
    if not name or not split:
        raise ValueError(f"{source!r}: expected tfds:name/split, such as tfds:ai2dcaption/test")
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"{source!r} needs TensorFlow Datasets: pip install 'rdbcl_jax[tfds]'"
        ) from error
    features = tfds.builder(name).info.features
    pictures = [key for key, value in features.items() if isinstance(value, tfds.features.Image)]
    skip = {key: tfds.decode.SkipDecoding() for key in pictures}
    for number, row in enumerate(tfds.data_source(name, split=split, decoders=skip)):
        columns = {key: _python(value) for key, value in row.items()}
        yield Row(f"{source}, row {number}", Path(), f"{name}/{split}:{number}", columns)


def _python(value: Any) -> Any:
    """NumPy values as plain ones, UTF-8 bytes as text."""
    if getattr(value, "dtype", None) in (np.float16, np.float32):
        return shortest(value)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _python(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_python(item) for item in value]
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:  # an encoded image
        return value


# --- values --------------------------------------------------------------------------------------


def shortest(values: np.ndarray) -> Any:
    """Narrow floats as the doubles with the fewest digits that round to them."""
    return np.asarray(values).astype("U32").astype(np.float64).tolist()


def written(value: Any) -> str:
    """A value as a person would write it: `3` for 3.0, `3.50` for a decimal, JSON for a list.

    Raises:
      ValueError: bytes that are no text, a number that is not finite, a value of another kind.
    """
    if isinstance(value, Mapping | Sequence) and not isinstance(value, str | bytes):
        return json.dumps(_plain(value), ensure_ascii=False)
    plain = _plain(value)
    if isinstance(value, decimal.Decimal):
        return format(value, "f")
    if isinstance(plain, float) and plain.is_integer() and abs(plain) < 1e16:
        return str(int(plain))
    return plain if isinstance(plain, str) else json.dumps(plain)


def _plain(value: Any) -> Any:
    """What JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise ValueError(f"expected text, found {len(value)} bytes that are no UTF-8") from None
    if isinstance(value, datetime.datetime) and value.tzinfo is None:
        midnight = value.time() == datetime.time()  # how tables hold a date
        return str(value.date() if midnight else value)
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta):
        return str(value)
    if isinstance(value, float | decimal.Decimal):
        if not math.isfinite(value):
            raise ValueError(f"expected a finite number, found {value}")
        return float(value)
    if value is None or isinstance(value, str | bool | int):
        return value
    raise ValueError(f"expected text, a number or a date, found {short(value)}")


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def line_of(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
