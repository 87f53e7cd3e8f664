"""How well a signal ranks outcomes: AUROC and Spearman's ρ, with bootstrap intervals.

Both are functions of weighted mid-ranks: drawing n rows with replacement is weighting each row by
how often it was drawn, so all bootstrap replicates are computed at once, and ties are averaged.
What is not defined (one class only, a constant) is NaN, never a number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

RESAMPLES = 1000
_AT_ONCE = 50  # replicates
COVERAGE = 0.95  # of the intervals


class Estimate(NamedTuple):
    """A value and the ends of its percentile interval; NaN where not defined."""

    value: float
    low: float
    high: float


_UNDEFINED = Estimate(np.nan, np.nan, np.nan)


class Reliability(NamedTuple):
    """How well a signal ranks outcomes over `rows` independent rows."""

    auroc: Estimate
    spearman: Estimate
    rows: int


def reliability(
    signal: Float[np.ndarray, "n G"],
    outcome: Float[np.ndarray, "n G"],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Reliability:
    """AUROC and ρ of a signal for outcomes in [0, 1]; intervals resample rows.

    A row is a prompt, its G entries are samples of it: they are not independent, so a bootstrap
    replicate takes or leaves all of them. A signal that is one number per prompt is given as
    [n, 1] and stands for each of the prompt's outcomes in AUROC, while ρ is then that with the
    prompt's mean outcome. Entries where either is NaN do not count.
    """
    signal, outcome = np.asarray(signal, float), np.asarray(outcome, float)
    if signal.shape[1] == 1:
        outcome = outcome.mean(axis=1, keepdims=True)  # AUROC takes fractions as they are
    known = np.isfinite(signal) & np.isfinite(outcome)
    rows = known.any(axis=1)
    if not rows.any():
        return Reliability(_UNDEFINED, _UNDEFINED, 0)
    signal, outcome, known = signal[rows], outcome[rows], known[rows]
    n, samples, known = len(signal), signal.shape[1], known.reshape(-1)
    signal, outcome = signal.reshape(-1)[known], outcome.reshape(-1)[known]
    found = []
    for rows_drawn in _replicates(n, resamples, seed):
        weights = np.repeat(rows_drawn, samples, axis=1)[:, known]
        found.append((auroc(signal, outcome, weights), spearman(signal, outcome, weights)))
    areas, correlations = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Reliability(_estimate(areas), _estimate(correlations), n)


def _replicates(n: int, resamples: int, seed: int) -> Iterator[Float[np.ndarray, "R n"]]:
    """How often each of n rows counts: once, in the sample itself, then as it is drawn. Some
    replicates at a time, for all of them would be more than memory holds."""
    yield np.ones((1, n))
    rng = np.random.default_rng(seed)
    for first in range(0, resamples, _AT_ONCE):
        yield rng.multinomial(n, np.full(n, 1 / n), min(_AT_ONCE, resamples - first))


def auroc(
    signal: Float[np.ndarray, "n"],
    outcome: Float[np.ndarray, "n"],
    weights: Float[np.ndarray, "R n"] | None = None,
) -> Float[np.ndarray, "R"]:
    """Probability that a positive has the higher signal than a negative, ties counted half.

    Args:
      outcome: in [0, 1]. A fraction p is p of a positive and 1 − p of a negative: what one gets by
        listing every one of a prompt's binary outcomes beside the prompt's signal.
      weights: non-negative, one set per replicate; default: one set of ones.
    Returns:
      One value per replicate; NaN without a positive or without a negative.
    """
    weights = np.ones((1, len(signal))) if weights is None else weights
    positive, negative = weights * outcome, weights * (1 - outcome)
    above = (positive * mid_ranks(signal, negative)).sum(axis=1)
    return _divide(above, positive.sum(axis=1) * negative.sum(axis=1))


def spearman(
    x: Float[np.ndarray, "n"],
    y: Float[np.ndarray, "n"],
    weights: Float[np.ndarray, "R n"] | None = None,
) -> Float[np.ndarray, "R"]:
    """Spearman's ρ: Pearson's of the mid-ranks, in [−1, 1]; NaN where x or y is constant."""
    weights = np.ones((1, len(x))) if weights is None else weights
    total = weights.sum(axis=1, keepdims=True)

    def centred(values):
        ranks = mid_ranks(values, weights)
        return ranks - _divide((weights * ranks).sum(axis=1, keepdims=True), total)

    x, y = centred(x), centred(y)
    covariance, x_squares, y_squares = (
        (weights * product).sum(axis=1) for product in (x * y, x * x, y * y)
    )
    return _divide(covariance, np.sqrt(x_squares * y_squares))


def mid_ranks(
    values: Float[np.ndarray, "n"], weights: Float[np.ndarray, "R n"]
) -> Float[np.ndarray, "R n"]:
    """The weight below each value and half the weight of its equals."""
    if not len(values):
        return np.zeros(weights.shape)
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    new = np.append(True, ordered[1:] != ordered[:-1])  # the first of each run of equals
    equals = np.add.reduceat(weights[:, order], np.flatnonzero(new), axis=1)
    middle = np.cumsum(equals, axis=1) - equals / 2
    ranks = np.empty(weights.shape)
    ranks[:, order] = middle[:, np.cumsum(new) - 1]
    return ranks


def _estimate(values: Float[np.ndarray, "R"]) -> Estimate:
    """Of the replicates, the first being the sample itself. Those that are not defined are left
    out; where they are more than half, so is the interval."""
    value, replicates = values[0], values[1:][np.isfinite(values[1:])]
    if not np.isfinite(value) or 2 * len(replicates) < len(values) - 1 or not len(replicates):
        return Estimate(float(value), np.nan, np.nan)
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return Estimate(float(value), float(low), float(high))


def _divide(total: np.ndarray, by: np.ndarray) -> np.ndarray:
    positive = by > 1e-9  # sums of ranks of a constant may differ from 0 by rounding
    return np.divide(total, by, out=np.full(np.shape(total), np.nan), where=positive)
