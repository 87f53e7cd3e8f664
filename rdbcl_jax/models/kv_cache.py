"""Caches of keys and values, laid out as the products of decoding read them.

A key has its slots last and a value its channels last: scores and outputs are then both products
with a matrix as it lies in memory, which CPUs do up to four times as fast as with a transpose.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rdbcl_jax.models.attention import Block

# The responses' (keys, values): [layers, P, G, Hkv, Dh, S] and [layers, P, G, Hkv, S, Dh], each a
# stack or a tuple of layers, as the prompt's are.
Cache = tuple[Any, Any]
_ROWS, _SLOTS = -4, (-1, -2)  # axes; of slots those of keys and of values


class KeyValues(NamedTuple):
    """Keys and values of every layer, and which are real.

    A stack, or a tuple of layers where the parameters are one (`VLM.for_decoding`).
    """

    key: Float[Array, "layers *lead Hkv Dh S"] | tuple[Array, ...]
    value: Float[Array, "layers *lead Hkv S Dh"] | tuple[Array, ...]
    mask: Bool[Array, "*lead S"]

    def layer(self, key, value) -> Block:
        """The block that one layer's keys and values are to attention."""
        return Block(jnp.moveaxis(key, -1, -3), jnp.swapaxes(value, -2, -3), self.mask)


def laid_out(key: Float[Array, "*lead S Hkv Dh"], value: Float[Array, "*lead S Hkv Dh"]):
    """A layer's keys and values in the order of caches."""
    return jnp.moveaxis(key, -3, -1), jnp.swapaxes(value, -2, -3)


def empty_cache(prompt: KeyValues, samples: int) -> Cache:
    """A cache without slots for `samples` responses to each prompt."""

    def empty(a, slots):
        *lead, heads, _, _ = a.shape
        shape = [*lead, samples, heads, *a.shape[-2:]]
        shape[slots] = 0
        return jnp.zeros(shape, a.dtype)

    return _map(empty, (prompt.key, prompt.value), _SLOTS)


def slots(cache: Cache) -> int:
    """S, how many tokens the cache holds."""
    return jax.tree.leaves(cache[0])[0].shape[_SLOTS[0]]


def grow(cache: Cache, size: int) -> Cache:
    """The cache with empty slots up to `size`."""
    return _map(lambda a, axis: _padded(a, axis, size), cache, _SLOTS)


def write(cache: Cache, new: Cache, at: Int[Array, ""], *layer) -> Cache:
    """The cache with one token's keys and values, [(1,) *lead, Hkv, ...], in slot `at`."""

    def put(old, token, axis):
        start = [*layer, *[0] * (old.ndim - len(layer))]
        start[axis] = at
        return jax.lax.dynamic_update_slice(old, token, start)

    return _map(put, cache, new, _SLOTS)


def take_rows(cache: Cache, rows: Int[Array, "P W"]) -> Cache:
    """Of each prompt the responses `rows`."""

    def take(a):
        index = jnp.expand_dims(rows, (*range(a.ndim + _ROWS - 1), -1, -2, -3))
        return jnp.take_along_axis(a, index, _ROWS)

    return jax.tree.map(take, cache)


def pad_rows(cache: Cache, samples: int) -> Cache:
    """The cache with rows of zeros up to `samples` responses to each prompt."""
    return jax.tree.map(lambda a: _padded(a, _ROWS, samples), cache)


def _padded(a, axis, size):
    widths = [(0, 0)] * a.ndim
    widths[axis] = (0, size - a.shape[axis])
    return jnp.pad(a, widths)


def _map(function, *caches):
    """`function` of the keys and of the values, layer by layer where they lie apart."""
    return tuple(
        jax.tree.map(lambda *leaves, last=parts[-1]: function(*leaves, last), *parts[:-1])
        for parts in zip(*caches, strict=True)
    )
