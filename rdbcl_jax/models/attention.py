"""Attention over one or several blocks of keys with one joint softmax.

A block is a set of keys that may be shared: the prompt's keys, computed once per prompt, serve
all of its rollouts. Each block is attended on its own and the partial results are merged, so no
block is ever repeated G times in memory.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_MASKED = -1e30  # finite: a row with no visible key stays finite, and weighs nothing when merged


BACKENDS = ("auto", "xla", "splash", "splash_interpret", "cudnn")


class Block(NamedTuple):
    """Keys and values that queries may attend to.

    `key` and `value` are [*lead, S, Hkv, Dh], `mask` (True = visible) is [*lead, S]. `lead` is the
    queries' leading shape, or a prefix of it: then the block is shared along the missing axes.
    """

    key: Float[Array, "*lead S Hkv Dh"]
    value: Float[Array, "*lead S Hkv Dh"]
    mask: Bool[Array, "*lead S"]
    causal: bool = False  # query t sees keys 0..t of this block (then S = T)


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
        tests; "cudnn", the GPU kernel for prompts and images in 16 bits, and XLA for the rest (not
        yet measured, so never chosen by "auto"); "auto", splash on TPU.
      mesh: where the arrays lie; XLA needs none.
    """
    backend = resolve(backend, mesh)
    if backend == "cudnn":
        from rdbcl_jax.models import cudnn

        if cudnn.serves(query, blocks):
            return cudnn.attend(query, *blocks)
    elif backend != "xla":
        from rdbcl_jax.models import splash

        if splash.serves(query, blocks, mesh):
            interpret = backend == "splash_interpret"
            return splash.attend(query, blocks, mesh=mesh, interpret=interpret)
    parts = [_attend_block(query, block) for block in blocks]
    top = jnp.max(jnp.stack([m for _, m, _ in parts]), axis=0)
    weighted = sum(out * jnp.exp(m - top)[..., None] for out, m, _ in parts)
    total = sum(s * jnp.exp(m - top) for _, m, s in parts)
    return (weighted / total[..., None]).astype(query.dtype)


def resolve(backend: str, mesh: jax.sharding.Mesh | None) -> str:
    """The backend that "auto" stands for on the mesh's platform; any other name is itself.

    Raises ValueError for one that is not in BACKENDS.
    """
    if backend not in BACKENDS:
        raise ValueError(f"attention backend is {backend!r}, expected one of {BACKENDS}")
    if backend != "auto":
        return backend
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    return "splash" if platform == "tpu" else "xla"


def _attend_block(query, block):
    """Unnormalised output [*lead, T, H, Dh], maximum and sum of exponentials [*lead, T, H]."""
    *lead, t, heads, dim = query.shape
    shared_axes = query.ndim - block.key.ndim
    if shared_axes:  # fold the axes along which the block is shared into the query axis
        query = query.reshape(*lead[: len(lead) - shared_axes], -1, heads, dim)
    kv_heads = block.key.shape[-2]
    grouped = query.reshape(*query.shape[:-2], kv_heads, heads // kv_heads, dim)
    scores = jnp.einsum(
        "...tkrd,...skd->...krts", grouped, block.key, preferred_element_type=jnp.float32
    )
    visible = block.mask[..., None, None, None, :]
    if block.causal:
        visible = visible & jnp.tril(jnp.ones((t, t), bool))
    scores = jnp.where(visible, scores * dim**-0.5, _MASKED)
    top = jax.lax.stop_gradient(scores.max(-1))
    weights = jnp.exp(scores - top[..., None])
    out = jnp.einsum(
        "...krts,...skd->...tkrd",
        weights.astype(block.value.dtype),
        block.value,
        preferred_element_type=jnp.float32,
    )

    def per_query(x):  # [..., Hkv, R, T] -> [*lead, T, H]
        return jnp.moveaxis(x, -1, -3).reshape(*lead, t, heads)

    return out.reshape(*lead, t, heads, dim), per_query(top), per_query(weights.sum(-1))
