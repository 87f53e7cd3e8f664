"""The average of two policies' weights: of adapters, that of the matrices they make."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rdbcl_jax.models.partition import Trained


def averaged(first: Trained, second: Trained, share: float) -> Trained:
    """`share` of the first's weights and the rest of the second's, in dtype and place of the
    second's. Of adapters see `nearest`."""
    return _averaged(first, second, share)


def _averaged(first: Any, second: Any, share: float) -> Any:
    if second is None:
        return None
    if not isinstance(second, dict):
        return (share * first + (1 - share) * second).astype(second.dtype)
    if second.get("lora_a") is None:
        return {name: _averaged(first[name], part, share) for name, part in second.items()}
    pair = second["lora_a"], second["lora_b"]
    places = jax.tree.map(lambda factor: factor.sharding, pair)
    found = jax.jit(nearest, out_shardings=places)(first["lora_a"], first["lora_b"], *pair, share)
    rest = {name: None for name in second}  # the matrix beside them does not learn
    return rest | dict(zip(("lora_a", "lora_b"), found, strict=True))


def nearest(
    a1: Float[Array, "*L n r"],
    b1: Float[Array, "*L r m"],
    a2: Float[Array, "*L n r"],
    b2: Float[Array, "*L r m"],
    share: float,
) -> tuple[Float[Array, "*L n r"], Float[Array, "*L r m"]]:
    """The A·B nearest to share · A₁·B₁ + (1 − share) · A₂·B₂, in the sum of squares.

    That average has up to twice the rank. It is met exactly where one of the two adds nothing, as
    every adapter before its first update. (The factors averaged one by one would be off by
    share · (1 − share) · (A₁ − A₂)·(B₁ − B₂).) A has orthogonal columns, as long as A₂'s are on
    average, so that B learns on from any result, 0 among them.
    """
    dtypes, rank = (a2.dtype, b2.dtype), a2.shape[-1]
    a1, b1, a2, b2 = (factor.astype(jnp.float32) for factor in (a1, b1, a2, b2))
    left, within_left = jnp.linalg.qr(jnp.concatenate([a1, a2], -1))
    both = jnp.concatenate([share * b1, (1 - share) * b2], -2)
    right, within_right = jnp.linalg.qr(both.mT)
    u, sizes, v = jnp.linalg.svd(_product(within_left, within_right.mT), full_matrices=False)
    kept = min(rank, sizes.shape[-1])  # fewer where the matrix itself has no more
    length = jnp.sqrt((a2**2).sum((-2, -1), keepdims=True) / rank)
    a = length * _product(left, u[..., :kept])
    b = sizes[..., :kept, None] / length * _product(v[..., :kept, :], right.mT)
    a, b = jnp.zeros_like(a2).at[..., :kept].set(a), jnp.zeros_like(b2).at[..., :kept, :].set(b)
    return a.astype(dtypes[0]), b.astype(dtypes[1])


def _product(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)
