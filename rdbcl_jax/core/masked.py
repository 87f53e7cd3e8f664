"""Reductions in which a mask cannot be forgotten.

Every function selects its input *before* computing with it (`where` on the way in, and again on
the way out where an array is returned), so NaN or infinity behind the mask reaches neither the
value nor the gradient. Sums are carried in float32 (float64 stays float64). With nothing to
reduce, a mean, variance, minimum or maximum is 0, never NaN.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

Axis = int | tuple[int, ...] | None


def to_float(x: Num[Array, "..."]) -> Float[Array, "..."]:
    """`x` in at least float32: what every accumulation of this package runs in."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def select(x: Num[Array, "..."], mask: Num[Array, "..."], fill: float = 0.0) -> Float[Array, "..."]:
    """`x` in float32 where `mask` holds, `fill` elsewhere, with no gradient through the rest."""
    return jnp.where(jnp.asarray(mask).astype(bool), to_float(x), fill)


def masked_sum_and_count(
    x: Num[Array, "..."], mask: Num[Array, "..."], axis: Axis = None
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The sum of the valid elements and their number: add pairs over micro-batches, divide once.

    Args:
      x: any shape.
      mask: of a shape that broadcasts to that of `x`; nonzero where valid.
      axis: the axes reduced, all by default.
    """
    x = jnp.asarray(x)
    mask = jnp.broadcast_to(jnp.asarray(mask).astype(bool), x.shape)
    kept = select(x, mask)
    return kept.sum(axis), mask.astype(kept.dtype).sum(axis)


def divide(total: Float[Array, "..."], count: Float[Array, "..."]) -> Float[Array, "..."]:
    """`total / count`, 0 where the count is 0."""
    return jnp.where(count > 0, total, 0) / jnp.where(count > 0, count, 1)


def masked_mean(
    x: Num[Array, "..."], mask: Num[Array, "..."], axis: Axis = None
) -> Float[Array, "..."]:
    """Mean over the valid elements along `axis`; 0 where there is none.

    Args:
      x, mask, axis: as for `masked_sum_and_count`.
    """
    return divide(*masked_sum_and_count(x, mask, axis))


def masked_variance(
    x: Num[Array, "..."], mask: Num[Array, "..."], axis: Axis = None, *, ddof: int = 0
) -> Float[Array, "..."]:
    """Variance over the valid elements (two passes); 0 where no more than `ddof` are valid.

    Args:
      x, mask, axis: as for `masked_sum_and_count`.
      ddof: subtracted from the number of valid elements; 1 for the sample variance.
    """
    kept = select(x, mask)
    total, count = masked_sum_and_count(kept, mask, axis)
    mean = divide(total, count)
    mean = mean if axis is None else jnp.expand_dims(mean, axis)
    squares, _ = masked_sum_and_count(jnp.square(kept - mean), mask, axis)
    return divide(squares, jnp.maximum(count - ddof, 0))


def masked_zscore(
    x: Num[Array, "..."],
    mask: Num[Array, "..."],
    axis: Axis = None,
    *,
    floor: float = 1e-3,
    ddof: int = 0,
) -> Float[Array, "..."]:
    """(x − mean) / max(standard deviation, floor) over the valid elements; 0 where masked.

    Args:
      x, mask, axis: as for `masked_sum_and_count`.
      floor: smallest standard deviation, positive, in the units of `x`. `floor=1e-3` is whitening
        by sqrt(max(variance, 1e-6)), as in MSSR's official code (2512.18215).
      ddof: as for `masked_variance`.

    Raises:
      ValueError: a floor that is not positive.
    """
    if floor <= 0:
        raise ValueError(f"floor must be positive, or equal values divide by 0; got {floor}")
    kept = select(x, mask)
    mean, variance = masked_mean(kept, mask, axis), masked_variance(kept, mask, axis, ddof=ddof)
    if axis is not None:
        mean, variance = jnp.expand_dims(mean, axis), jnp.expand_dims(variance, axis)
    return select((kept - mean) / jnp.sqrt(jnp.maximum(variance, floor**2)), mask)


def masked_min(
    x: Num[Array, "..."], mask: Num[Array, "..."], axis: Axis = None
) -> Float[Array, "..."]:
    """Smallest valid element along `axis`; 0 where there is none.

    Args:
      x, mask, axis: as for `masked_sum_and_count`.
    """
    return -masked_max(-to_float(x), mask, axis)


def masked_max(
    x: Num[Array, "..."], mask: Num[Array, "..."], axis: Axis = None
) -> Float[Array, "..."]:
    """Largest valid element along `axis`; 0 where there is none.

    Args:
      x, mask, axis: as for `masked_sum_and_count`.
    """
    x = to_float(x)
    mask = jnp.broadcast_to(jnp.asarray(mask).astype(bool), x.shape)
    found = mask.any(axis)
    # A finite fill: an all-masked slice then has a finite gradient too.
    largest = select(x, mask, jnp.finfo(x.dtype).min).max(axis)
    return jnp.where(found, largest, 0)


def masked_rank(x: Num[Array, " B"], mask: Bool[Array, " B"]) -> Float[Array, " B"]:
    """Rank of each element among the valid ones, ties averaged; carries no gradient.

    Valid elements get 0 (smallest) … n−1 (largest). A masked element gets the rank of its own
    value among the valid ones, in [−0.5, n−0.5], so ranks are monotone over the whole array.

    Args:
      x: one axis; valid elements must not be NaN.
      mask: nonzero where valid.
    """
    x = jax.lax.stop_gradient(to_float(x))
    mask = jnp.asarray(mask).astype(bool)
    ordered = jnp.sort(jnp.where(mask, x, jnp.inf))
    count = mask.sum()
    below = jnp.minimum(jnp.searchsorted(ordered, x, side="left"), count)
    not_above = jnp.minimum(jnp.searchsorted(ordered, x, side="right"), count)
    return (below + not_above - 1).astype(x.dtype) / 2
