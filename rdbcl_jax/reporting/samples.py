"""samples/: what each step sampled, as Parquet, one row per response and one file per task.

Parquet cannot be appended to, so each step writes a small part, and the parts of a task are merged
into one file when the task is over. A kill in the middle loses nothing. What has no name of these,
or another than its rows say, such as a copy, is somebody's: it is neither read nor removed.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rdbcl_jax.json_files import plain, writing
from rdbcl_jax.messages import line_of

_PART, _MERGED = re.compile(r"part-(\d{8})\.parquet"), re.compile(r"\d{8}-[\w.-]+\.parquet")
TEXT_COLUMNS = ("task", "record_id", "prompt", "completion", "gold")  # always stored as strings


def write_part(folder: Path, rows: Mapping[str, Any], *, after: str | None = None) -> str | None:
    """Writes one step's rows: columns of equal length, or one value for all; "step" and "task" are
    among them. The parts of `after`, the task of the part before, are merged once another begins.

    Returns:
      The task of the last part, `after` where there are no rows.
    """
    table = _sample_table(rows)
    if not len(table):
        return after
    task, step = table["task"][0].as_py(), table["step"][0].as_py()
    if after not in (None, task):
        merge_parts(folder)
    folder.mkdir(exist_ok=True)
    path = folder / f"part-{step:08d}.parquet"
    write_table(_concat([pq.read_table(path), table]) if path.exists() else table, path)
    return task


def merge_parts(folder: Path) -> None:
    """Gathers the parts of each task in one file, `<first step>-<task>.parquet`, beside what that
    holds already of a run that was cut short within the task."""
    merged, parts = _sample_files(folder)
    begun = {_task_of(path): path for path in merged}
    for task, own in itertools.groupby(parts, _task_of):
        paths = list(own)
        path = begun.get(task, folder / _merged_name(_step_of(paths[0]), task))
        earlier = [path] if task in begun else []
        write_table(_concat([pq.read_table(p) for p in earlier + paths]), path)
    for path in _parts(folder):
        path.unlink()


def truncate_samples(folder: Path, step: int) -> list[str]:
    """Keeps only rows of steps before `step`; returns the names of files that cannot be read, which
    are set aside as `NAME.damaged`."""
    for path in folder.glob("*.tmp"):  # of a write that was cut short
        path.unlink()
    damaged = [path for path in [*_parts(folder), *_merged(folder)] if not _readable(path)]
    for path in damaged:
        path.rename(path.with_name(path.name + ".damaged"))
    merged, parts = _sample_files(folder)
    for path in _parts(folder):
        if path not in parts or _step_of(path) >= step:
            path.unlink()
    for path in merged:
        steps = np.asarray(_steps_of(path))
        if np.all(steps >= step):
            path.unlink()
        elif np.any(steps >= step):
            write_table(pq.read_table(path).filter(steps < step), path)
    return [path.name for path in damaged]


def logged_steps(folder: Path) -> set[int]:
    """Steps of which there are rows."""
    merged, parts = _sample_files(folder)
    return {step for path in merged + parts for step in _steps_of(path)}


def read_samples(workdir: str | os.PathLike, *, numeric: bool = False) -> pa.Table | None:
    """The per-sample table of all tasks; `numeric` leaves the long text columns out.

    Raises:
      ValueError: a file is damaged, or holds something else.
    """
    folder, without = Path(workdir) / "samples", TEXT_COLUMNS[1:] if numeric else ()
    for attempt in itertools.count():
        try:
            files = itertools.chain(*_sample_files(folder))
            tables = [_table(path, without=without) for path in files]
            return _concat(tables) if tables else None
        except FileNotFoundError:  # a run that goes on has just merged its parts
            if attempt == 3:
                raise
    return None


def _sample_table(rows: Mapping[str, Any]) -> pa.Table:
    length = max((len(v) for v in rows.values() if _is_column(v)), default=1)
    columns = {k: v if _is_column(v) else [v] * length for k, v in rows.items()}
    wrong = {k: len(v) for k, v in columns.items() if len(v) != length}
    if wrong:
        raise ValueError(f"samples: {length} rows expected, but columns have other lengths {wrong}")
    return pa.table({k: _column(k, v) for k, v in columns.items()})


def _is_column(value: Any) -> bool:
    return isinstance(value, list | tuple) or (hasattr(value, "shape") and len(value.shape) > 0)


def _column(name: str, values: Any) -> pa.Array:
    if name in TEXT_COLUMNS:
        texts = (v if isinstance(v, str | None) else str(plain(v)) for v in values)
        valid = [t if t is None else t.encode("utf-8", "replace").decode() for t in texts]
        return pa.array(valid, pa.string())
    return pa.array(values if isinstance(values, list | tuple) else np.asarray(values))


def write_table(table: pa.Table, path: Path) -> None:
    """Replaces the file in one move."""
    temporary = path.with_suffix(".tmp")
    with writing(path):
        pq.write_table(table, temporary)
        os.replace(temporary, path)


def _concat(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables, promote_options="permissive")  # tasks differ in their rewards


def _sample_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Merged files, and the parts that no merged file holds yet (a kill may leave both)."""
    merged = [path for path in _merged(folder) if path.name == _name_by_rows(path)]
    last = max((max(_steps_of(path)) for path in merged), default=-1)
    return merged, [path for path in _parts(folder) if _step_of(path) > last]


def _parts(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if _PART.fullmatch(path.name))


def _merged(folder: Path) -> list[Path]:
    """What may be merged files, by their names."""
    return sorted(path for path in folder.glob("*") if _MERGED.fullmatch(path.name))


def _step_of(part: Path) -> int:
    return int(part.stem[len("part-") :])


def _merged_name(step: int, task: str) -> str:
    name = re.sub(r"[^\w.-]+", "_", task)
    return f"{step:08}-{name}.parquet"


def _name_by_rows(path: Path) -> str:
    """What a merged file with its rows is called."""
    rows = _table(path, ["step", "task"])
    return _merged_name(rows["step"][0].as_py(), str(rows["task"][0])) if len(rows) else ""


def _table(
    path: Path, columns: Sequence[str] | None = None, without: Sequence[str] = ()
) -> pa.Table:
    """A file of samples; of another, or of one that is cut short, the error says which it is."""
    try:
        kinds = {field.name: field.type for field in pq.read_schema(path)}
        if not (pa.types.is_integer(kinds["step"]) and pa.types.is_string(kinds["task"])):
            raise KeyError("step")
        names = [n for n in columns or kinds if n not in without]
        return pq.read_table(path, columns=names)
    except FileNotFoundError:
        raise
    except KeyError:
        raise ValueError(f"{path} holds no samples: it has no steps and tasks") from None
    except (OSError, ValueError) as error:  # Arrow's errors are of both kinds
        raise ValueError(f"{path} is damaged: {line_of(error)}") from None


def _readable(path: Path) -> bool:
    try:
        _table(path)
    except ValueError:
        return False
    return path.is_file()


def _task_of(path: Path) -> str:
    return str(_table(path, ["task"])["task"][0])


def _steps_of(path: Path) -> list[int]:
    return _table(path, ["step"])["step"].to_pylist()
