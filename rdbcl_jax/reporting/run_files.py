"""The files of a run's workdir, read: of a finished, running or killed run."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rdbcl_jax.json_files import parse_json, read_json
from rdbcl_jax.lock import is_held
from rdbcl_jax.reporting.samples import read_samples
from rdbcl_jax.results import FILE, RunResults, SplitResults, read_results

INDEX_KEYS = ("step", "task", "task_index", "task_step")  # of a metrics row; the rest are metrics


@dataclasses.dataclass(frozen=True)
class Run:
    """All that a workdir holds, as far as the run has come; what is missing is empty."""

    workdir: Path
    results: RunResults
    steps: list[dict[str, Any]]  # metrics.jsonl
    samples: pa.Table | None  # step, task and the numeric columns (`read_samples` has all)
    examples: list[dict[str, Any]]
    running: bool = False  # a process has the workdir, and has not finished

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in training order."""
        seen = dict.fromkeys(row["task"] for row in self.steps if row.get("task"))
        return list(self.results.tasks or seen)

    @property
    def held_out(self) -> list[str]:
        """Names of the tasks that are evaluated and not learned."""
        return list(self.results.held_out)

    def matrix(self, split="test", what="accuracy", *, held_out: bool = False) -> np.ndarray:
        """[T + 1, T] floats, row 0 = base model; NaN where the run has not come yet. `held_out`
        adds the columns of the tasks that are not learned."""
        rows = getattr(self.results.splits.get(split, SplitResults()), what)
        tasks = len(self.tasks)
        return full_matrix(rows, tasks, tasks + len(self.held_out) if held_out else tasks)

    def measured(self) -> dict[int, np.ndarray]:
        """Steps behind the policy → its accuracy on validation records of every task, those
        held out last: before and after each task, and wherever `evaluation.every` asked for it."""
        names, matrix = [*self.tasks, *self.held_out], self.matrix("validation", held_out=True)
        keys = [f"eval/{name}/accuracy" for name in names]
        ends = {row["task"]: row["step"] + 1 for row in self.steps}  # as far as a task has come
        found = {0: matrix[0]} | {
            done: matrix[self.tasks.index(task) + 1] for task, done in ends.items()
        }
        for row in self.steps:
            if all(row.get(key) is not None for key in keys):
                found[row["step"] + 1] = np.array([row[key] for key in keys], float)
        return {done: found[done] for done in sorted(found) if np.isfinite(found[done]).all()}

    def logged(self, done: Sequence[int]) -> np.ndarray:
        """How many rows there are of the first `done` steps: as many, but for lines that were
        lost."""
        return np.searchsorted([row["step"] + 1 for row in self.steps], done, side="right")

    @property
    def tasks_done(self) -> int:
        """How many tasks were trained and evaluated."""
        reached = [np.isfinite(self.matrix(split)).all(axis=1) for split in self.results.splits]
        return max((int(rows[1:].sum()) for rows in reached), default=0)

    @property
    def reached(self) -> str:
        """How far it has come, in words."""
        if not self.steps and not any(split.accuracy for split in self.results.splits.values()):
            return "before its first evaluation"
        return f"{self.tasks_done} of {len(self.tasks)} tasks"

    @property
    def complete(self) -> bool:
        """Whether the run is over and every row of the matrix is there."""
        return self.results.status == "done" and self.tasks_done == len(self.tasks) > 0

    def series(self, key: str, task: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Global steps and values of a metric, NaN where it was not finite."""
        rows = [r for r in self.steps if task is None or r.get("task") == task]
        rows = [r for r in rows if key in r and isinstance(r[key], int | float | None)]
        values = [math.nan if r[key] is None else r[key] for r in rows]
        return np.array([r["step"] for r in rows], int), np.array(values, float)

    @property
    def warnings(self) -> list[str]:
        """What kept the run from learning, a line for each task that it concerns."""
        lines = []
        for task in self.tasks:
            rows = [row for row in self.steps if row.get("task") == task]
            last = rows[-1] if rows else {}
            silent = sum(bool(row.get("no_signal")) for row in rows)
            if skipped := last.get("skipped_updates"):
                lines.append(
                    f"{task}: {skipped:.0f} updates were left out, since their loss or gradient "
                    "was not finite"
                )
            if task in self.results.unchanged:
                why = f"{last['updates']:.0f} updates were too small for the parameters' type"
                if last["updates"] == 0:
                    why = (
                        f"no update was made, and {silent} of {len(rows)} batches had no signal "
                        "(equal rewards in every group)"
                    )
                lines.append(f"{task}: nothing was learned, every parameter is as before: {why}")
        return lines

    @property
    def keys(self) -> list[str]:
        """Names of all scalar metrics, in order of appearance."""
        found: dict[str, None] = {}
        for row in self.steps:
            found.update(dict.fromkeys(k for k, v in row.items() if isinstance(v, int | float)))
        return [key for key in found if key not in INDEX_KEYS]


def full_matrix(rows: Sequence, tasks: int, columns: int) -> np.ndarray:
    """[tasks + 1, columns] with NaN for absent rows and null cells."""
    matrix = np.full((tasks + 1, columns), np.nan)
    for i, row in enumerate(rows[: tasks + 1]):
        cells = [math.nan if cell is None else cell for cell in (row or [])[:columns]]
        matrix[i, : len(cells)] = cells
    return matrix


def read_run(workdir: str | os.PathLike) -> Run:
    """Reads a workdir, of a finished, running or killed run."""
    workdir = Path(workdir)
    if not (workdir / FILE).exists() and not (workdir / "metrics.jsonl").exists():
        raise FileNotFoundError(f"{workdir}: no results.json and no metrics.jsonl; not a workdir?")
    results = read_results(workdir) or RunResults()
    return Run(
        workdir=workdir,
        results=results,
        steps=read_steps(workdir),
        samples=read_samples(workdir, numeric=True),
        examples=read_examples(workdir),
        running=results.status != "done" and is_held(workdir),
    )


def read_examples(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """Rows of examples.json.

    Raises:
      ValueError: the file is damaged.
    """
    path = Path(workdir) / "examples.json"
    rows = read_json(path, [])
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and type(row.get("step", 0)) is int for row in rows
    ):
        raise ValueError(f"{path} is damaged, it holds no examples")
    return rows


def read_steps(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl; a line that is damaged, or was cut short by a kill, is left out."""
    path = Path(workdir) / "metrics.jsonl"
    rows = []
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            row = parse_json(line)
        except ValueError:  # no UTF-8, or no JSON
            continue
        if isinstance(row, dict) and type(row.get("step")) is int:
            rows.append(row)
    return rows
