"""JSON and text files: strict values, and files that are replaced in one move."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """What strict JSON can hold: arrays become lists, NaN and infinities become null."""
    if hasattr(value, "to_dict"):  # ml_collections
        value = value.to_dict()
    if hasattr(value, "tolist"):  # NumPy and JAX, scalars too
        value = np.asarray(value).tolist()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


_WHILE = ", while writing"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """An OSError within says what was being written: libraries, and buffers that are emptied late,
    leave it out."""
    try:
        yield
    except OSError as error:
        if error.strerror and error.strerror.endswith(_WHILE):
            raise
        reason = os.strerror(error.errno) if error.errno else str(error)
        named = str(error.filename or path)  # of something else that is in the way
        where = path if named.startswith(str(path)) else named
        raise OSError(error.errno, reason + _WHILE, str(where)) from error


def write_text(path: Path, text: str) -> None:
    """Replaces the file in one move: a reader sees the old content or the new."""
    if not isinstance(path, Path):  # on gs://, where every write is of a whole file
        with writing(path):
            path.write_text(text)
        return
    # a name of its own: a report may be asked for while the run writes the same one
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with writing(path):
        temporary.unlink(missing_ok=True)  # a link there would be written through
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Replaces the file in one move; see `plain` for what becomes of values."""
    write_text(path, json.dumps(plain(value), indent=indent, ensure_ascii=False) + "\n")


def parse_json(text: str | bytes) -> Any:
    """Raises ValueError for whatever is no JSON in UTF-8, also what is nested beyond reading."""
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8"))
    except RecursionError as error:
        raise ValueError(str(error)) from None


def each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The object that JSON's `pairs` make, where `json` would keep the last of two of a name.

    Raises:
      ValueError: a name stands there twice.
    """
    if len(found := dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{json.dumps(twice[:40])} is given twice")
    return found


def read_json(path: Path, default: Any) -> Any:
    """The file's content; `default` where there is no file.

    Raises:
      ValueError: it is not JSON, as after a write that was cut short.
    """
    try:
        return parse_json(path.read_bytes()) if path.exists() else default
    except ValueError as error:
        raise ValueError(f"{path} is damaged, it is no JSON: {error}") from None


def read_object(path: Path, default: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The names and values of a file that holds one JSON object.

    Raises:
      ValueError: it holds something else.
      FileNotFoundError: there is no file, and no default.
    """
    if default is None and not path.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    found = read_json(path, default)
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} holds {json.dumps(found)[:40]}, expected an object, {{…}}")
    return dict(found)
