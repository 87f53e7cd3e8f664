"""How far a number could have come out otherwise: 95 % intervals, over seeds or over records.

Over seeds: Student's t of the runs. A single run has no such spread; its interval is of the records
alone: had others of the same kind been asked, each accuracy would be a draw from a binomial. Every
cell of the accuracy matrix is drawn by itself, though two rows answer the same records: intervals
of differences between rows are then too wide rather than too narrow. The highest of several draws
is on average above the highest of what they are drawn from: by so much a `forgetting_max` grows
with each drawing, and that is taken off. What is no share of right answers, such as a CIDEr, has
none.
"""

from __future__ import annotations

import functools

import jax
import numpy as np
from scipy import stats

from rdbcl_jax.core.continual_metrics import continual_metrics, held_out_metrics
from rdbcl_jax.reporting.run_files import Run

DRAWS, LEVEL = 1000, 0.95
Interval = tuple[float, float]


def over_seeds(values: np.ndarray) -> Interval | None:
    """Of the mean of n ≥ 2 values; None for fewer."""
    if len(values) < 2:
        return None
    reach = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * np.std(values, ddof=1)
    reach /= np.sqrt(len(values))
    return float(np.mean(values) - reach), float(np.mean(values) + reach)


def around(estimate: float, draws: np.ndarray) -> Interval:
    """The central 95 % of draws of it, less what they are above it on average; the estimate itself
    is always within."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - np.mean(draws) + estimate
    return min(float(low), estimate), max(float(high), estimate)


def draws_over_records(run: Run, split: str, seed: int) -> dict[str, np.ndarray]:
    """Metric → `DRAWS` values, as other records might have given them; empty for a run that is not
    complete or does not say how many records there were. No metric is of a task whose accuracy is
    no share of right answers."""
    found = run.results.splits.get(split)
    if not run.complete or not found or not found.count:
        return {}
    matrix, tasks = run.matrix(split, held_out=True), len(run.tasks)
    counts = np.array(found.count[: matrix.shape[1]])
    if not np.isfinite(matrix).all() or len(counts) < matrix.shape[1] or (counts < 1).any():
        return {}
    rng = np.random.default_rng(seed)
    drawn = rng.binomial(counts, np.clip(matrix, 0, 1), (DRAWS, *matrix.shape)) / counts
    shares = run.results.measures.keys().isdisjoint
    metrics = _metrics()(drawn[:, :, :tasks]) if shares(run.tasks) else {}
    if matrix.shape[1] > tasks and shares(run.held_out):
        metrics |= jax.vmap(held_out_metrics)(drawn[:, :, tasks:])
    return {name: np.asarray(values) for name, values in metrics.items()}


@functools.cache
def _metrics():
    return jax.jit(jax.vmap(continual_metrics))
