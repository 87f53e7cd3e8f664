"""Numbers held in fewer bits than they are computed in: rounded up or down at random, so that the
mean of many small steps is right where each is smaller than the last bit.

To the nearest, an update of 1e-6 on a bfloat16 weight of 0.02 (whose neighbours are 1e-4 away) is
lost. Here it moves the weight to its neighbour in one of a hundred steps (stochastic rounding,
arXiv:2010.06192). The same key gives the same bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

_DROPPED = 16  # bits that float32 has and bfloat16 has not


def round_at_random(key: Array, x: Float[Array, "*n"], dtype: Any) -> Float[Array, "*n"]:
    """Float32 as `dtype`: float32 stays; bfloat16 is one of the two neighbours, each with the
    probability that makes the mean `x`. NaN and infinities stay."""
    if dtype == jnp.float32:
        return x
    if dtype != jnp.bfloat16:
        raise ValueError(f"numbers are rounded to bfloat16, not {dtype}")
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    kept = (bits + noise) >> _DROPPED << _DROPPED
    kept = jnp.where(jnp.isfinite(x), kept, bits)
    return jax.lax.bitcast_convert_type(kept, jnp.float32).astype(dtype)  # exact, but for NaN


def round_tree(key: Array, tree: Any, like: Any) -> Any:
    """Every float32 leaf in the dtype of that leaf of `like`; others as they are."""
    leaves, structure = jax.tree.flatten(tree)
    found = [
        round_at_random(jax.random.fold_in(key, i), a, b.dtype) if a.dtype != b.dtype else a
        for i, (a, b) in enumerate(zip(leaves, jax.tree.leaves(like), strict=True))
    ]
    return jax.tree.unflatten(structure, found)


class Held(NamedTuple):
    """An optimizer's state in fewer bits, and the number of updates, which seeds the rounding."""

    step: Int[Array, ""]
    inner: Any


def held_in(
    optimizer: optax.GradientTransformation, dtype: Any, seed: int
) -> optax.GradientTransformation:
    """The optimizer, computing in float32 whatever it is given, whose moments are held in `dtype`
    (float32 or bfloat16)."""

    def hold(a):
        return a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a

    def init(params):
        return Held(jnp.zeros((), jnp.int32), jax.tree.map(hold, optimizer.init(_wide(params))))

    def update(grads, state, params=None):
        updates, inner = optimizer.update(_wide(grads), _wide(state.inner), _wide(params))
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        return updates, Held(state.step + 1, round_tree(key, inner, state.inner))

    return optax.GradientTransformation(init, update)


def _wide(tree: Any) -> Any:
    return jax.tree.map(lambda a: a.astype(jnp.float32) if a.dtype == jnp.bfloat16 else a, tree)
