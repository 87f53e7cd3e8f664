"""The accuracy matrix as a table's cells: a shade each, a frame where a task was just trained."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from rdbcl_jax.reporting.numbers import DASH, fixed, percent


@dataclasses.dataclass(frozen=True)
class Cell:
    """`shade` is the colour's opacity; `strong` shades want light text."""

    text: str = DASH
    title: str = ""
    shade: str = ""
    trained: bool = False
    strong: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """The policy `after` a task, or the base model; the mean is over the learned tasks."""

    after: str
    learned: Sequence[Cell]
    held_out: Sequence[Cell]
    mean: str


@dataclasses.dataclass(frozen=True)
class HeatMap:
    """`hue` names a colour of the style sheet."""

    title: str
    note: str
    hue: str
    tasks: Sequence[str]
    held_out: Sequence[str]
    rows: Sequence[Row]

    @property
    def columns(self) -> int:
        return len(self.tasks) + len(self.held_out)


def heat_map(
    matrix: np.ndarray,
    tasks: Sequence[str],
    held_out: Sequence[str] = (),
    *,
    counts: Sequence[int] = (),
    title: str = "",
    note: str = "",
    hue: str = "accuracy",
) -> HeatMap:
    """From a matrix [T + 1, T + H] of fractions, NaN where there is none; `counts` are the records
    of each column whose values are shares of them, else 0."""
    names, rows = [*tasks, *held_out], []
    for i, values in enumerate(matrix):
        after = tasks[i - 1] if i else ""
        policy = f"after {after}" if i else "base"
        cells = [
            _cell(value, f"{policy}, on {name}", i == j + 1, counts[j] if j < len(counts) else 0)
            for j, (value, name) in enumerate(zip(values, names, strict=True))
        ]
        mean = percent(values[: len(tasks)].mean()) if tasks else DASH
        rows.append(Row(after, cells[: len(tasks)], cells[len(tasks) :], mean))
    return HeatMap(title, note, hue, tasks, held_out, rows)


def _cell(value: float, what: str, trained: bool, count: int) -> Cell:
    if not math.isfinite(value):
        return Cell()
    title = f"{what}: {percent(value, digits=2)} %"
    if count:
        error = math.sqrt(max(value * (1 - value), 0) / count)
        title += f" ± {percent(error, digits=2)} (standard error, n = {count})"
    shade = fixed(0.04 + 0.9 * min(max(value, 0.0), 1.0), 3)
    return Cell(percent(value), title, shade, trained, value > 0.6)
