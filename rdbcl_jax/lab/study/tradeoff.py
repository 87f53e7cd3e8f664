"""What learning new tasks cost on old ones (2506.23508): the numbers of a study's runs.

New are the tasks of the sequence, old those of `config.evaluation.tasks`, which are held out.
The path of a run goes from the base model through its evaluations during training to its end, on
validation data; its ends are also on test data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rdbcl_jax.lab.study.results import CellResults
from rdbcl_jax.reporting.metric_table import STUDY
from rdbcl_jax.reporting.numbers import DASH, spread
from rdbcl_jax.reporting.run_files import Run
from rdbcl_jax.reporting.text_tables import markdown_table

GRADIENT = 1e-3  # of an advantage: what equal rewards leave by rounding is below

NOTE = (
    "Mean accuracy on the tasks learned (new) and on those that were not (old), test split, %;"
    " forgotten is old before minus after, in points. Tokens are of responses: *learned* those that"
    " gave a gradient (a KL term, or an advantage that is not 0), *generated* those that the policy"
    " sampled while it learned. Rollouts collected for another arm are in neither."
)


def summary(runs: Sequence[Run], sampled: Sequence[np.ndarray]) -> dict[str, Any]:
    """The ends and the mean path of an arm's runs; empty where no task is held out.

    Args:
      runs: finished, one per seed, of one config.
      sampled: per run, responses sampled in each of its steps.
    """
    if not runs or not all(run.held_out for run in runs):
        return {}
    paths = [path(run, count) for run, count in zip(runs, sampled, strict=True)]
    same = {name: np.mean([p[name] for p in paths], axis=0) for name in AXES}
    each = {name: np.array([p[name] for p in paths]) for name in ("new", "old")}
    return {"ends": [ends(run) for run in runs], "path": {**same, **each}}


ENDS = ("new_before", "new_after", "old_before", "old_after", "forgotten")
AXES = ("step", "learned", "generated")


def ends(run: Run, split: str = "test") -> dict[str, float]:
    """Mean accuracy on new and old tasks before and after, fractions in [0, 1]."""
    matrix, new = run.matrix(split, held_out=True), len(run.tasks)
    return {
        "new_before": float(matrix[0, :new].mean()),
        "new_after": float(matrix[-1, :new].mean()),
        "old_before": float(matrix[0, new:].mean()),
        "old_after": float(matrix[-1, new:].mean()),
        "forgotten": float(matrix[0, new:].mean() - matrix[-1, new:].mean()),
    }


def path(run: Run, sampled: np.ndarray) -> dict[str, np.ndarray]:
    """Points of a run in order: `step` (steps done), `learned` and `generated` (response tokens so
    far), `new` and `old` (mean accuracies on validation records)."""
    points, count = run.measured(), len(run.tasks)
    steps = sorted(points)
    rows = run.logged(steps)
    learned, generated = (np.concatenate([[0.0], np.cumsum(t)]) for t in tokens(run, sampled))
    return {
        "step": np.array(steps, float),
        "learned": learned[rows],
        "generated": generated[rows],
        "new": np.array([points[s][:count].mean() for s in steps]),
        "old": np.array([points[s][count:].mean() for s in steps]),
    }


def tokens(run: Run, sampled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Response tokens of each step: those that gave a gradient, and those that were sampled."""
    if run.samples is None or not run.steps:
        return np.zeros(len(run.steps)), np.zeros(len(run.steps))
    column = {
        n: np.nan_to_num(np.asarray(run.samples[n], float))
        for n in run.samples.column_names
        if n in ("step", "length", "advantage", "kl_coef")
    }
    index = column["step"].astype(int)
    nothing = np.zeros(len(index))
    gradient = np.abs(column.get("advantage", nothing)) > GRADIENT
    gradient |= column.get("kl_coef", nothing) > 0
    size = max(row["step"] for row in run.steps) + 1

    def per_step(weights):
        found = np.bincount(index, weights=weights, minlength=size)
        return found[[row["step"] for row in run.steps]]

    kept, lengths = per_step(nothing + 1), per_step(column["length"])
    drawn = np.divide(sampled, kept, out=np.zeros(len(kept)), where=kept > 0)  # DAPO draws more
    made = [not row.get("no_signal") for row in run.steps]  # of other batches no update is made
    return per_step(column["length"] * gradient) * made, lengths * drawn


def table(cells: Sequence[CellResults]) -> str:
    """A row per arm, mean ± sd over seeds."""
    rows = []
    for cell in cells:
        found = cell.tradeoff
        if found:
            values = {name: np.array([end[name] for end in found["ends"]]) for name in ENDS}
            totals = (found["path"][axis][-1] for axis in AXES)
            cost = (DASH if total is None else f"{total:,.0f}" for total in totals)
            rows.append([cell.arm, *(spread(values[name]) for name in ENDS), *cost])
    return markdown_table(["arm", *(STUDY[name].label for name in (*ENDS, *AXES))], rows)
