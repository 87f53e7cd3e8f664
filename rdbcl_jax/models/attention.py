"""Attention over one or several blocks of keys with one joint softmax.

A block is a set of keys that may be shared: the prompt's keys, computed once per prompt, serve
all of its rollouts. Each block is attended on its own under the joint maximum and the partial sums
are added, so no block is ever repeated G times in memory.

The backward pass makes the scores anew (arXiv:2205.14135, without its tiles): one number per query
and head is kept between the passes, where weights would be T × S.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_MASKED = -1e30  # finite: a row with no visible key stays finite, and weighs nothing when merged


BACKENDS = ("auto", "xla", "splash", "splash_interpret", "cudnn")


class Block(NamedTuple):
    """Keys and values that queries may attend to.

    `key` and `value` are [*lead, S, Hkv, Dh], `mask` (True = visible) is [*lead, S]. `lead` is the
    queries' leading shape, or a prefix of it: then the block is shared along the missing axes.
    `pairs`, broadcast to [*lead of the queries, T, S], says further which query sees which key.
    """

    key: Float[Array, "*lead S Hkv Dh"]
    value: Float[Array, "*lead S Hkv Dh"]
    mask: Bool[Array, "*lead S"]
    causal: bool = False  # query t sees keys 0..t of this block (then S = T)
    pairs: Bool[Array, "*lead T S"] | None = None  # None: any sees any; the kernels take no other

    def among_itself(self, pairs: Bool[Array, "*lead T T"] | None) -> Block:
        """For the queries of the same tokens, which see those before them, or by `pairs`."""
        return self._replace(causal=pairs is None, pairs=pairs)


def attend(
    query: Float[Array, "*lead T H Dh"],
    blocks: tuple[Block, ...],
    *,
    backend: str = "xla",
    mesh: jax.sharding.Mesh | None = None,
) -> Float[Array, "*lead T H Dh"]:
    """softmax(q·kᵀ/√Dh)·v over the union of `blocks`. Softmax in float32; H a multiple of Hkv.

    Args:
      backend: "xla"; "splash", the TPU kernel for the long sequences of prefill and training, and
        XLA for the rest (decoding, windows); "splash_interpret", the same without a TPU, for
        tests; "cudnn", the GPU kernel for the same sequences in 16 bits, and XLA for the rest;
        "auto", splash on TPU, cuDNN on NVIDIA GPUs that have it.
      mesh: where the arrays lie; XLA needs none.
    """
    backend = resolve(backend, mesh)
    if any(block.pairs is not None for block in blocks):
        backend = "xla"
    if backend == "cudnn":
        from rdbcl_jax.models import attention_cudnn

        if attention_cudnn.serves(query, blocks):
            return attention_cudnn.attend(query, blocks)
    elif backend != "xla":
        from rdbcl_jax.models import attention_splash

        if attention_splash.serves(query, blocks, mesh):
            interpret = backend == "splash_interpret"
            return attention_splash.attend(query, blocks, mesh=mesh, interpret=interpret)
    causal = tuple(block.causal for block in blocks)
    arrays = zip(*((b.key, b.value, b.mask, b.pairs) for b in blocks), strict=True)
    return _attend(causal, query, *arrays)


def resolve(backend: str, mesh: jax.sharding.Mesh | None) -> str:
    """The backend that "auto" stands for on the mesh's platform; any other name is itself.

    Raises ValueError for one that is not in BACKENDS.
    """
    if backend not in BACKENDS:
        raise ValueError(f"attention backend is {backend!r}, expected one of {BACKENDS}")
    if backend != "auto":
        return backend
    from rdbcl_jax.models import attention_cudnn

    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    if device.platform == "tpu":
        return "splash"
    return "cudnn" if attention_cudnn.takes(device) else "xla"


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(causal, query, keys, values, masks, pairs):
    return _forward(causal, query, keys, values, masks, pairs)[0]


def _forward(causal, query, keys, values, masks, pairs):
    """The output, and what the backward pass needs: the output again and log Σ exp(scores)."""
    scores = [
        jnp.where(_visible(query, k, m, c, p), _scores(_rows(query, k), k), _MASKED)
        for c, k, m, p in zip(causal, keys, masks, pairs, strict=True)
    ]
    tops = [_unrows(s.max(-1, keepdims=True), query) for s in scores]
    top = jnp.stack(tops).max(0)
    out: Any = 0.0
    total: Any = 0.0
    for s, value in zip(scores, values, strict=True):
        weights = jnp.exp(s - _rows(top, value))
        total += _unrows(weights.sum(-1, keepdims=True), query)
        out += _unrows(
            _dot("...ms,...sd->...md", weights.astype(value.dtype), _heads(value)), query
        )
    out = (out / total).astype(query.dtype)
    return out, (query, keys, values, masks, pairs, out, top + jnp.log(total))


def _backward(causal, saved, dout):
    query, keys, values, masks, pairs, out, log_z = saved
    scale = query.shape[-1] ** -0.5
    mean = (dout.astype(jnp.float32) * out).sum(-1, keepdims=True)  # of dweights, by the weights
    dquery: Any = 0.0  # then an array
    dkeys, dvalues = [], []
    for c, key, value, mask, p in zip(causal, keys, values, masks, pairs, strict=True):
        rows, drows = _rows(query, key), _rows(dout, key)
        weights = jnp.exp(_scores(rows, key) - _rows(log_z, key))
        weights = jnp.where(_visible(query, key, mask, c, p), weights, 0)
        dweights = _dot("...md,...sd->...ms", drows, _heads(value))
        dscores = (weights * (dweights - _rows(mean, key)) * scale).astype(key.dtype)
        dquery += _unrows(_dot("...ms,...sd->...md", dscores, _heads(key)), query)
        dkeys.append(_by_key(dscores, rows).astype(key.dtype))
        dvalues.append(_by_key(weights.astype(value.dtype), drows).astype(value.dtype))
    return dquery.astype(query.dtype), tuple(dkeys), tuple(dvalues), None, None


_attend.defvjp(_forward, _backward)


# Products run on [..., Hkv, M, Dh] queries and [..., Hkv, S, Dh] keys, M counting every query that
# reads a key: along T, the heads of a group, and the axes along which the block is shared.

_dot = partial(jnp.einsum, preferred_element_type=jnp.float32)


def _rows(x: Float[Array, "*lead T H N"], key) -> Float[Array, "*block Hkv M N"]:
    """`x`, which belongs to the queries, as rows beside the keys `key` [*block, S, Hkv, Dh]."""
    *_, heads, width = x.shape
    *block, _, kv_heads, _ = key.shape
    x = x.reshape(*block, -1, kv_heads, heads // kv_heads, width)
    return jnp.moveaxis(x, -3, -4).reshape(*block, kv_heads, -1, width)


def _unrows(x: Float[Array, "*block Hkv M N"], query) -> Float[Array, "*lead T H N"]:
    """The inverse of `_rows`."""
    *block, kv_heads, _, width = x.shape
    *lead, heads, _ = query.shape
    x = x.reshape(*block, kv_heads, -1, heads // kv_heads, width)
    return jnp.moveaxis(x, -4, -3).reshape(*lead, heads, width)


def _heads(key):
    return jnp.swapaxes(key, -2, -3)


def _scores(rows, key):
    return _dot("...md,...sd->...ms", rows, _heads(key)) * key.shape[-1] ** -0.5


def _by_key(weights, rows):
    """Σ over rows of weight × row, as keys lie: [..., S, Hkv, N].

    Written as rowsᵀ · weights behind a barrier, so that XLA turns over the small operand and the
    small result and not the weights.
    """
    summed = jax.lax.optimization_barrier(_dot("...md,...ms->...ds", rows, weights))
    return jnp.moveaxis(summed, -1, -3)


def _visible(query, key, mask, causal, pairs):
    """[*block, 1, 1 or M, S]"""
    visible = mask[..., None, None, :]
    steps, heads = query.shape[-3:-1]
    group = heads // key.shape[-2]
    if causal:
        lower = jnp.tril(jnp.ones((steps, steps), bool))
        visible &= jnp.repeat(lower, group, axis=0)
    if pairs is not None:
        *block, keys, _, _ = key.shape
        pairs = jnp.broadcast_to(pairs, (*query.shape[:-3], steps, keys))
        rows = jnp.repeat(pairs.reshape(*block, -1, keys), group, axis=-2)
        visible &= rows[..., None, :, :]
    return visible
