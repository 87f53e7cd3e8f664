"""Caches of keys and values, and attention to them as decoding needs it: one token a row.

A key has its slots last and a value its channels last: scores and outputs are then both products
with a matrix as it lies in memory, which CPUs do up to four times as fast as with a transpose.

Slots lie in blocks, and a block in which no row has a token is not read. Each block is attended on
its own, under its own maximum, and the partial sums are joined (as in arXiv:2205.14135). Of a row's
own blocks the last holds its newest tokens: it alone is written, and copied to its place when full
(an array that is written here and read there in one step would be copied in every step).

Rows are rollouts that go on: W on each of the D devices over which a batch is split, R = D · W in
all. A row never leaves its device.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rdbcl_jax.sharding import on_devices

# Blocks of slots, each (keys, values): [layers, R, Hkv, Dh, S] and [layers, R, Hkv, S, Dh], a stack
# or a tuple of layers, as the parameters are.
Cache = tuple[tuple[Any, Any], ...]
_ROWS, _SLOTS = -4, (-1, -2)  # axes; of slots those of keys and of values
_MOST = 4  # blocks, each a branch in the program of every layer
_LEAST, _LEAST_OF_PROMPTS = 64, 128  # slots of one
_MASKED = -1e30  # finite: a block with no visible key stays finite, and weighs nothing when joined


class KeyValues(NamedTuple):
    """Keys and values of every layer, and which are real.

    A stack, or a tuple of layers where the parameters are one (`VLM.for_decoding`).
    """

    key: Float[Array, "layers *lead Hkv Dh S"] | tuple[Array, ...]
    value: Float[Array, "layers *lead Hkv S Dh"] | tuple[Array, ...]
    mask: Bool[Array, "*lead S"]


def laid_out(key: Float[Array, "*lead S Hkv Dh"], value: Float[Array, "*lead S Hkv Dh"]):
    """A layer's keys and values in the order of caches."""
    return jnp.moveaxis(key, -3, -1), jnp.swapaxes(value, -2, -3)


# ------------------------------------------------------------------ blocks


def block_size(slots: int, least: int = _LEAST) -> int:
    """Slots of a block, of at most four: a multiple of `least`, or all where that is less."""
    return min(-(-slots // (_MOST * least)) * least, slots)


def empty_cache(prompt: KeyValues, rows: int, slots: int) -> Cache:
    """A cache for `slots` tokens of each of `rows` rows."""
    size = block_size(slots)

    def empty(a, axis):
        whole = [*a.shape[: a.ndim + _ROWS], rows, *a.shape[-3:]]
        whole[axis] = size
        return jnp.zeros(whole, a.dtype)

    block = _map(empty, (prompt.key, prompt.value), _SLOTS)
    return (block,) * -(-slots // size)


def numbers(cache: Cache, at: Int[Array, ""]) -> Int[Array, "S"]:
    """Which token each slot holds, when number `at` is the newest."""
    size = newest_slots(cache)
    aside = jnp.arange(size * (len(cache) - 1))
    return jnp.concatenate([aside, at // size * size + jnp.arange(size)])


def newest_slots(cache: Cache) -> int:
    """Slots of the block that is written."""
    return jax.tree.leaves(cache[-1])[0].shape[_SLOTS[0]]


def write(cache: Cache, new: tuple[Array, Array], at: Int[Array, ""], *layer) -> Cache:
    """The cache with the keys and values of token `at`, [R, Hkv, ...]; of a stack, `layer`'s."""

    def put(old, token, axis):
        place = [*layer, *[0] * (old.ndim - len(layer))]
        place[axis] = at % old.shape[axis]
        token = token.reshape((1,) * len(layer) + token.shape)
        return jax.lax.dynamic_update_slice(old, token, place)

    return (*cache[:-1], _map(put, cache[-1], new, _SLOTS))


def set_aside(cache: Cache, count: Int[Array, ""]) -> Cache:
    """The cache of `count` tokens, the newest block copied to its place where it is full."""
    *shelf, newest = cache
    size = newest_slots(cache)

    def put(index, block):
        full = count == (index + 1) * size
        return jax.tree.map(functools.partial(jnp.where, full), newest, block)

    return (*(put(index, block) for index, block in enumerate(shelf)), newest)


def take_rows(cache: Cache, rows: Int[Array, "D W"]) -> Cache:
    """Of the rows that each device holds those numbers."""
    return jax.tree.map(functools.partial(on_devices, rows=rows, axis=_ROWS), cache)


def of_layer(cache: Cache, index: int) -> Cache:
    """One layer's blocks, where layers lie apart."""
    return tuple((key[index], value[index]) for key, value in cache)


def of_layers(caches: Sequence[Cache]) -> Cache:
    """The inverse of `of_layer`, for all layers."""
    blocks = (zip(*layers, strict=True) for layers in zip(*caches, strict=True))
    return tuple((tuple(keys), tuple(values)) for keys, values in blocks)


def _spans(cache: Cache) -> Iterator[tuple[int, int, tuple[Any, Any]]]:
    """Each block with its first slot and the one after its last."""
    end = 0
    for block in cache:
        start, end = end, end + jax.tree.leaves(block[0])[0].shape[_SLOTS[0]]
        yield start, end, block


def _map(function, *caches):
    """`function` of the keys and of the values, layer by layer where they lie apart."""
    return tuple(
        jax.tree.map(lambda *leaves, last=parts[-1]: function(*leaves, last), *parts[:-1])
        for parts in zip(*caches, strict=True)
    )


# ------------------------------------------------------------------ prompts


class Prompts(NamedTuple):
    """What W rows of each device read of their prompts.

    Attributes:
      blocks: of N prompts, as a cache of N rows.
      mask: [N, L], which slots are real.
      filled: for each block but the last, since they are padded on the left, whether any is.
      home: each row's place among all rollouts of its device's prompts; None: the rows are these
        rollouts, in order.
      seat: for each of these places the row that is there; any row where none is.
    """

    blocks: Cache
    mask: Bool[Array, "N L"]
    filled: tuple[Bool[Array, ""], ...]
    home: Int[Array, "D W"] | None = None
    seat: Int[Array, "D n"] | None = None


def read_by_all(prompt: KeyValues) -> Prompts:
    """Prompts as all their rollouts read them, in order."""
    length = prompt.mask.shape[-1]
    size = block_size(length, _LEAST_OF_PROMPTS)

    def block(start):
        def part(a, axis):
            return jax.lax.slice_in_dim(a, start, min(start + size, length), axis=axis)

        return _map(part, (prompt.key, prompt.value), _SLOTS)

    blocks = tuple(block(start) for start in range(0, length, size))
    return Prompts(blocks, prompt.mask, _filled(blocks, prompt.mask))


def read_by(prompts: Prompts, home: Int[Array, "D W"], seat: Int[Array, "D n"]) -> Prompts:
    """The same as those rollouts read them which go on: `home` and `seat` as in `Prompts`.

    Where they are at most twice as many as the prompts, each gets its prompt beside it; more read
    them where they lie, at the places of all rollouts, and then no prompt is held more than once.
    """
    count = len(prompts.mask)
    if home.size > 2 * count:
        return prompts._replace(home=home, seat=seat)
    own = home // (seat.size // count)
    blocks, mask = take_rows(prompts.blocks, own), on_devices(prompts.mask, own)
    return Prompts(blocks, mask, _filled(blocks, mask))


def _filled(blocks: Cache, mask) -> tuple[Bool[Array, ""], ...]:
    return tuple(mask[..., start:end].any() for start, end, _ in list(_spans(blocks))[:-1])


# ------------------------------------------------------------------ attention


def attend(
    query: Float[Array, "R H Dh"],
    prompts: Prompts,
    cache: Cache,
    shown: Bool[Array, "N L"],
    visible: Bool[Array, "S"],
    at: Int[Array, ""],
    *layer,
) -> Float[Array, "R H Dh"]:
    """softmax(q·kᵀ/√Dh)·v over a row's prompt and its own slots 0 … `at`; softmax in float32.

    Args:
      shown: which slots of the prompts are seen, of those that are real.
      visible: which of the rows' own, of those up to `at`.
      layer: which of a stack; none where the caches are one layer's.
    """
    count, heads, width = query.shape
    kv_heads = jax.tree.leaves(cache)[0].shape[-3]
    rows = query.reshape(count, kv_heads, heads // kv_heads, width)
    visible = jnp.broadcast_to(visible, (count, len(visible)))
    ends = [end for _, end, _ in _spans(cache)]
    filled = [at >= end for end in ends[:-1]]
    theirs = _partials(prompts.filled, _seated(rows, prompts), prompts.blocks, shown, layer)
    own = _partials(filled, rows, cache, visible, layer)
    joined = _joined([_unseated(_joined(theirs), rows, prompts), *own])
    return (joined.out / joined.total).reshape(query.shape).astype(query.dtype)


class _Partial(NamedTuple):
    """Attention to some of the slots, not yet divided."""

    out: Float[Array, "*lead Hkv M Dh"]  # Σ weight · value
    total: Float[Array, "*lead Hkv M 1"]  # Σ weight
    top: Float[Array, "*lead Hkv M 1"]  # the score whose weight is 1


def _partials(filled, rows, blocks, visible, layer) -> list[_Partial]:
    """Of each block; only the last is surely `filled`, others are not read where they are not."""

    def read(rows, key, value, mask):
        key, value = (a[layer[0]] if layer else a for a in (key, value))
        scores = _dot("...md,...ds->...ms", rows, key) * rows.shape[-1] ** -0.5
        scores = jnp.where(mask[..., None, None, :], scores, _MASKED)
        top = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - top)
        out = _dot("...ms,...sd->...md", weights.astype(value.dtype), value)
        return _Partial(out, weights.sum(-1, keepdims=True), top)

    def nothing(rows, *_):
        out = jnp.zeros(rows.shape, jnp.float32)
        return _Partial(out, out[..., :1], jnp.full_like(out[..., :1], _MASKED))

    *first, last = [(rows, *block, visible[..., start:end]) for start, end, block in _spans(blocks)]
    several = zip(filled, first, strict=True)
    return [*(jax.lax.cond(where, read, nothing, *block) for where, block in several), read(*last)]


def _joined(partials: Sequence[_Partial]) -> _Partial:
    if len(partials) == 1:
        return partials[0]
    top = functools.reduce(jnp.maximum, [p.top for p in partials])
    scales = [jnp.exp(p.top - top) for p in partials]
    out: Any = sum(p.out * scale for p, scale in zip(partials, scales, strict=True))
    total: Any = sum(p.total * scale for p, scale in zip(partials, scales, strict=True))
    return _Partial(out, total, top)


def _seated(rows, prompts: Prompts):
    """Rows [R, Hkv, M, Dh] beside their prompts: [N, Hkv, (R / N) · M, Dh]."""
    if prompts.seat is not None:
        rows = on_devices(rows, prompts.seat)
    grid = rows.reshape(len(prompts.mask), -1, *rows.shape[1:])
    grid = jnp.moveaxis(grid, 1, 2)
    return grid.reshape(*grid.shape[:2], -1, grid.shape[-1])


def _unseated(partial: _Partial, rows, prompts: Prompts) -> _Partial:
    """The inverse of `_seated`, of what has been made of `rows`."""

    def back(grid):
        apart = grid.reshape(*grid.shape[:2], -1, rows.shape[2], grid.shape[-1])
        out = jnp.moveaxis(apart, 2, 1).reshape(-1, *rows.shape[1:3], grid.shape[-1])
        return out if prompts.home is None else on_devices(out, prompts.home)

    return jax.tree.map(back, partial)


_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
