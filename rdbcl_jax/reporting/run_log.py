"""What a run leaves in its workdir: one writer, `RunLog`, and one reader, `read_run`.

    results.json     accuracy matrix, metrics, config, versions, timing
    metrics.jsonl    one JSON object per training step
    samples/         Parquet, one row per sampled response; one file per task once it is over
    examples.json    a few responses with their image and per-token log-probs
    tb/              TensorBoard events

Steps are global and counted from 0. A run that resumes has `resume_step` steps behind it: rows of
steps ≥ resume_step are dropped first, so that a killed and resumed run holds nothing twice.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tensorboardX import SummaryWriter

from rdbcl_jax.json_files import plain, read_json, write_json, write_text

TEXT_COLUMNS = ("task", "record_id", "prompt", "completion", "gold")  # always stored as strings
INDEX_KEYS = ("step", "task", "task_index", "task_step")  # of a metrics row; the rest are metrics


class RunLog:
    """Writes a run's files. Use one per run, on one process."""

    def __init__(self, workdir: str | os.PathLike, *, resume_step: int = 0):
        self.workdir = Path(workdir)
        self.workdir.mkdir(parents=True, exist_ok=True)
        self._truncate(resume_step)
        self._metrics = open(self.workdir / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        self._board = SummaryWriter(
            str(self.workdir / "tb"),
            purge_step=resume_step or None,  # TensorBoard then hides the steps that are run again
            filename_suffix=f".{resume_step:08d}",  # two files of one second must not collide
        )
        self._samples = self.workdir / "samples"
        self._task: str | None = None

    def write_step(self, row: Mapping[str, Any]) -> None:
        """Log one step's metrics: needs "step"; scalars also go to TensorBoard."""
        row = plain(row)
        self._metrics.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._metrics.flush()
        for key, value in row.items():
            if key not in INDEX_KEYS and isinstance(value, int | float):
                self._board.add_scalar(key, value, row["step"])

    def write_samples(self, rows: Mapping[str, Any]) -> None:
        """Log one step's samples: columns of equal length, or one value for all of its rows."""
        table = _sample_table(rows)
        if not len(table):
            return
        task, step = table["task"][0].as_py(), table["step"][0].as_py()
        if self._task not in (None, task):
            merge_parts(self._samples)
        self._task = task
        self._samples.mkdir(exist_ok=True)
        path = self._samples / f"part-{step:08d}.parquet"
        _write_table(_concat([pq.read_table(path), table]) if path.exists() else table, path)

    def write_examples(self, examples: Iterable[Mapping[str, Any]]) -> None:
        """Add examples to those of earlier calls."""
        path = self.workdir / "examples.json"
        write_json(path, read_json(path, []) + plain(list(examples)))

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Replace results.json in one move: a reader sees the old file or the new one."""
        write_json(self.workdir / "results.json", results, indent=1)

    def close(self) -> None:
        """Gather the last task's samples and close the files."""
        merge_parts(self._samples)
        self._metrics.close()
        self._board.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _truncate(self, step: int) -> None:
        """Drop everything that was logged at `step` or later."""
        metrics, examples = self.workdir / "metrics.jsonl", self.workdir / "examples.json"
        if metrics.exists():
            rows = [row for row in read_steps(self.workdir) if row["step"] < step]
            write_text(metrics, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
        if examples.exists():
            write_json(examples, [e for e in read_json(examples, []) if e["step"] < step])
        truncate_samples(self.workdir / "samples", step)
        if step == 0:
            shutil.rmtree(self.workdir / "tb", ignore_errors=True)


# ------------------------------------------------------------------------------ samples/
# Parquet cannot be appended to, so each step writes a small part, and the parts of a task are
# merged into one file when the task is over. A kill in the middle loses nothing.


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


def _write_table(table: pa.Table, path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    pq.write_table(table, temporary)
    os.replace(temporary, path)


def _concat(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables, promote_options="permissive")  # tasks differ in their rewards


def _sample_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Merged files, and the parts that no merged file holds yet (a kill may leave both)."""
    merged = sorted(p for p in folder.glob("*.parquet") if not p.name.startswith("part-"))
    last = max((max(_steps_of(path)) for path in merged), default=-1)
    return merged, [p for p in sorted(folder.glob("part-*.parquet")) if int(p.stem[5:]) > last]


def _steps_of(path: Path) -> list[int]:
    return pq.read_table(path, columns=["step"])["step"].to_pylist()


def merge_parts(folder: Path) -> None:
    """Gather the parts of a finished task in one file, `<first step>-<task>.parquet`."""
    _, parts = _sample_files(folder)
    if parts:
        table = _concat([pq.read_table(path) for path in parts])
        task = re.sub(r"[^\w.-]+", "_", str(table["task"][0]))
        _write_table(table, folder / f"{parts[0].stem[5:]}-{task}.parquet")
    for path in folder.glob("part-*.parquet"):
        path.unlink()


def truncate_samples(folder: Path, step: int) -> None:
    """Keep only rows of steps before `step`."""
    merged, parts = _sample_files(folder)
    for path in folder.glob("part-*.parquet"):
        if path not in parts or int(path.stem[5:]) >= step:
            path.unlink()
    for path in merged:
        steps = np.asarray(_steps_of(path))
        if np.all(steps >= step):
            path.unlink()
        elif np.any(steps >= step):
            _write_table(pq.read_table(path).filter(steps < step), path)


# ------------------------------------------------------------------------------ reading


@dataclasses.dataclass(frozen=True)
class Run:
    """All that a workdir holds, as far as the run has come; what is missing is empty."""

    workdir: Path
    results: dict[str, Any]
    steps: list[dict[str, Any]]  # metrics.jsonl
    samples: pa.Table | None  # step, task and the numeric columns (`read_samples` has all)
    examples: list[dict[str, Any]]

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in training order."""
        seen = dict.fromkeys(row["task"] for row in self.steps if row.get("task"))
        return list(self.results.get("tasks") or seen)

    @property
    def held(self) -> list[str]:
        """Names of the tasks that are evaluated and not learned."""
        return list(self.results.get("held") or [])

    def matrix(self, split: str = "test", what: str = "accuracy", *, held=False) -> np.ndarray:
        """[T + 1, T] floats, row 0 = base model; NaN where the run has not come yet. `held` adds
        the columns of the tasks that are not learned."""
        rows = self.results.get("splits", {}).get(split, {}).get(what) or []
        tasks = len(self.tasks)
        return full_matrix(rows, tasks, tasks + len(self.held) if held else tasks)

    def measured(self) -> dict[int, np.ndarray]:
        """Steps behind the policy → its accuracy on validation records of every task, the held ones
        last: before and after each task, and wherever `evaluation.every` asked for it."""
        names, matrix = [*self.tasks, *self.held], self.matrix("validation", held=True)
        keys = [f"eval/{name}/accuracy" for name in names]
        found = {0: matrix[0]}
        for done, row in enumerate(self.steps, start=1):
            if done == len(self.steps) or self.steps[done]["task"] != row["task"]:
                found[done] = matrix[self.tasks.index(row["task"]) + 1]
            elif all(row.get(key) is not None for key in keys):
                found[done] = np.array([row[key] for key in keys], float)
        return {done: accuracy for done, accuracy in found.items() if np.isfinite(accuracy).all()}

    @property
    def tasks_done(self) -> int:
        """How many tasks were trained and evaluated."""
        splits = self.results.get("splits", {})
        reached = [np.isfinite(self.matrix(split)).all(axis=1) for split in splits]
        return max((int(rows[1:].sum()) for rows in reached), default=0)

    @property
    def complete(self) -> bool:
        """Whether the run is over and every row of the matrix is there."""
        return self.results.get("status") == "done" and self.tasks_done == len(self.tasks) > 0

    def series(self, key: str, task: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Global steps and values of a metric, NaN where it was not finite."""
        rows = [r for r in self.steps if task is None or r.get("task") == task]
        rows = [r for r in rows if key in r and isinstance(r[key], int | float | None)]
        values = [math.nan if r[key] is None else r[key] for r in rows]
        return np.array([r["step"] for r in rows], int), np.array(values, float)

    @property
    def keys(self) -> list[str]:
        """Names of all scalar metrics, in order of appearance."""
        found: dict[str, None] = {}
        for row in self.steps:
            found.update(dict.fromkeys(k for k, v in row.items() if isinstance(v, int | float)))
        return [key for key in found if key not in INDEX_KEYS]


def full_matrix(rows: list, tasks: int, columns: int) -> np.ndarray:
    """[tasks + 1, columns] with NaN for absent rows and null cells."""
    matrix = np.full((tasks + 1, columns), np.nan)
    for i, row in enumerate(rows[: tasks + 1]):
        cells = [math.nan if cell is None else cell for cell in (row or [])[:columns]]
        matrix[i, : len(cells)] = cells
    return matrix


def read_run(workdir: str | os.PathLike) -> Run:
    """Read a workdir, of a finished, running or killed run."""
    workdir = Path(workdir)
    if not (workdir / "results.json").exists() and not (workdir / "metrics.jsonl").exists():
        raise FileNotFoundError(f"{workdir}: no results.json and no metrics.jsonl; not a workdir?")
    return Run(
        workdir=workdir,
        results=read_json(workdir / "results.json", {}),
        steps=read_steps(workdir),
        samples=read_samples(workdir, numeric=True),
        examples=read_json(workdir / "examples.json", []),
    )


def read_steps(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl; a line that a kill cut short is left out."""
    path = Path(workdir) / "metrics.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows


def read_samples(workdir: str | os.PathLike, *, numeric: bool = False) -> pa.Table | None:
    """The per-sample table of all tasks; `numeric` leaves the long text columns out."""
    merged, parts = _sample_files(Path(workdir) / "samples")
    tables = []
    for path in merged + parts:
        names = pq.read_schema(path).names
        if numeric:
            names = [name for name in names if name == "task" or name not in TEXT_COLUMNS]
        tables.append(pq.read_table(path, columns=names))
    return _concat(tables) if tables else None
