"""Curves that a page draws itself, with uPlot: hover, zoom, smoothing, a logarithmic axis.

The page holds their numbers; `templates/charts.js` draws them. Nothing is fetched.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rdbcl_jax.reporting.plots import Curve, thin
from rdbcl_jax.reporting.run_files import Run

DIGITS = 5  # of a value, significant


@dataclasses.dataclass(frozen=True)
class Line:
    """One curve. `points`: single measurements, which are not smoothed; `faint`: one of several
    that another line is the mean of."""

    label: str
    colour: str
    curve: Curve
    points: bool = False
    faint: bool = False


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart with its title and a note under it; drawn only where a line has a finite value.

    Attributes:
      x: what the lines run over, in a word.
      log: its axis is logarithmic at first.
      top: values above it are cut off; None: none are.
      limits: of the values shown at least.
    """

    title: str
    note: str
    lines: Sequence[Line]
    x: str = "step"
    log: bool = False
    top: float | None = None
    limits: tuple[float, float] | None = None

    def data(self) -> Mapping[str, Any]:
        """What charts.js draws from: a common x, and each line's values from its first one on."""
        curves = [line.curve if line.points else thin(*line.curve) for line in self.lines]
        xs = np.unique(np.concatenate([np.asarray(x, float) for x, _ in curves] or [np.zeros(0)]))
        return {
            "x": [_short(x) for x in xs],
            "name": self.x,
            "log": self.log,
            "top": self.top,
            "limits": self.limits,
            "lines": [
                {
                    "label": line.label,
                    "colour": line.colour,
                    "points": line.points,
                    "faint": line.faint,
                    **_aligned(xs, *curve),
                }
                for line, curve in zip(self.lines, curves, strict=True)
                if len(curve[0])
            ],
        }


def from_start(run: Run, key: str, task: str) -> Curve:
    """A metric over a task's own steps."""
    x, y = run.series(key, task)
    first = next((row["step"] for row in run.steps if row.get("task") == task), 0)
    return x - first, y


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Of several runs, at each step that any of them has."""
    x = np.concatenate([x for x, _ in curves])
    y = np.concatenate([y for _, y in curves])
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    steps, at = np.unique(x, return_inverse=True)
    return steps, np.bincount(at, y, len(steps)) / np.bincount(at, minlength=len(steps))


def over_tasks(
    curves: Mapping[str, Curve], colours: Mapping[str, str], title: str, note: str, **options: Any
) -> Chart:
    """One metric over a whole run: a line per task."""
    lines = [Line(task, colours[task], curve) for task, curve in curves.items()]
    return Chart(title, note, lines, **options)


def _aligned(xs: np.ndarray, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    at = np.searchsorted(xs, x)
    values: list[float | None] = [None] * int(at[-1] - at[0] + 1)
    for place, value in zip(at - at[0], y, strict=True):
        values[place] = _short(value)
    return {"first": int(at[0]), "y": values}


def _short(value: float) -> float | None:
    value = float(value) + 0.0  # no −0.0
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
