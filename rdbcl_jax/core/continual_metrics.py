"""Continual-learning metrics of an accuracy matrix.

Row i of the matrix holds the accuracy on every task after training through task i; row 0 is the
base model. Tasks that are evaluated and never learned have columns too, and metrics of their own;
all others count learned tasks alone. Public toolkits' definitions differ, by several points, so
every variant is computed and carries its own name.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from rdbcl_jax.core.masked import divide, masked_sum_and_count, select, to_float


def continual_metrics(matrix: Float[Array, "T+1 T"]) -> dict[str, Float[Array, ""]]:
    """All metrics of an accuracy matrix, in its own units; float32 scalars.

    With a[i, j], i = 0 … T, j = 1 … T:

    | name               | definition                                                            |
    |--------------------|-----------------------------------------------------------------------|
    | `last`             | mean_j a[T, j]                                                        |
    | `avg_seen`         | mean over i ≥ 1 of mean_{j ≤ i} a[i, j]                               |
    | `avg_all`          | mean over i ≥ 1 of mean_j a[i, j], unseen tasks included              |
    | `mft`              | mean_j a[j, j], each task just after its training (plasticity)        |
    | `bwt`              | Σ_{j<T} (a[T, j] − a[j, j]) / (T − 1): backward transfer              |
    | `bwt_over_t`       | the same sum / T                                                      |
    | `forgetting_first` | Σ_{j<T} (a[j, j] − a[T, j]) / (T − 1) = −bwt                          |
    | `forgetting_max`   | mean_{j<T} (max_{j≤i<T} a[i, j] − a[T, j]): from the best, not first  |
    | `transfer`         | mean of a[i, j] over 1 ≤ i < j: accuracy on tasks still to come       |
    | `fwt_zeroshot`     | mean_{j>1} (a[j−1, j] − a[0, j]): what earlier tasks did for a new one |

    `bwt` after 1706.08840 (GEM), `forgetting_max` after 1801.10112, `transfer` after 2303.06628.
    With one task the means over no cell (`bwt`, `bwt_over_t`, both forgettings, `transfer`,
    `fwt_zeroshot`) are 0. A NaN cell makes NaN those metrics that read it, and no others: a matrix
    without its upper triangle still has `last`, `avg_seen`, `mft`, `bwt` and the forgettings.

    Raises:
      ValueError: the matrix is not [T + 1, T] with T ≥ 1.
    """
    matrix = to_float(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] + 1 or matrix.shape[1] < 1:
        raise ValueError(
            "the accuracy matrix is [T + 1, T] (row 0 the base model, then one row per task); "
            f"got {list(matrix.shape)}"
        )
    base, a = matrix[0], matrix[1:]
    tasks = a.shape[0]
    row, column = jnp.indices(a.shape)
    before_last = jnp.arange(tasks) < tasks - 1
    last, first = a[-1], jnp.diagonal(a)
    lost = select(first - last, before_last)
    best = jnp.where((row >= column) & (row < tasks - 1), a, -jnp.inf).max(axis=0)
    seen = select(a, row >= column).sum(axis=1) / jnp.arange(1, tasks + 1)
    zero_shot = jnp.diagonal(a, offset=1) - base[1:]
    return {
        "last": last.mean(),
        "avg_seen": seen.mean(),
        "avg_all": a.mean(),
        "mft": first.mean(),
        "bwt": -lost.sum() / max(tasks - 1, 1),
        "bwt_over_t": -lost.sum() / tasks,
        "forgetting_first": lost.sum() / max(tasks - 1, 1),
        "forgetting_max": select(best - last, before_last).sum() / max(tasks - 1, 1),
        "transfer": divide(*masked_sum_and_count(a, column > row)),
        "fwt_zeroshot": zero_shot.sum() / max(tasks - 1, 1),
    }


def held_out_metrics(matrix: Float[Array, "T+1 H"]) -> dict[str, Float[Array, ""]]:
    """What became of H ≥ 1 held-out tasks while T others were learned; in the matrix's units.

    With h[i, j] the accuracy on task j after training through task i, i = 0 the base model:
    `held_out_last` is mean_j h[T, j], and `held_out_change` mean_j (h[T, j] − h[0, j]), negative
    where what the base model could do was forgotten.

    Raises:
      ValueError: the matrix is not [T + 1, H] with T ≥ 1 and H ≥ 1.
    """
    matrix = to_float(matrix)
    if matrix.ndim != 2 or matrix.shape[0] < 2 or matrix.shape[1] < 1:
        raise ValueError(
            "the accuracy matrix of held-out tasks is [T + 1, H] (row 0 the base model, then "
            f"one row per learned task), T ≥ 1 and H ≥ 1; got {list(matrix.shape)}"
        )
    change = (matrix[-1] - matrix[0]).mean()
    return {"held_out_last": matrix[-1].mean(), "held_out_change": change}
