"""Drawing from logits whose vocabulary is split over the mesh's `tensor` axis: sums travel, and the
128 logits of one block, never V of them.

Same draws as `sampling.draw` from whole logits, up to the rounding of sums.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from rdbcl_jax.sharding import ROWS

if TYPE_CHECKING:
    from rdbcl_jax.rollout.sampling import Sampling

BLOCK = 128  # ids
_AXIS = "tensor"


def serves(vocabulary: int, sampling: Sampling, mesh: Mesh) -> bool:
    """Whether `draw` can: a vocabulary that is split, and no top-p, which orders all of it."""
    parts = mesh.shape[_AXIS]
    return parts > 1 and vocabulary % parts == 0 and sampling.top_p == 1


def draw(
    uniforms: Float[Array, "P G 2"], logits: Float[Array, "P G V"], sampling: Sampling, mesh: Mesh
) -> tuple[Int[Array, "P G"], Float[Array, "P G"]]:
    """As `sampling.draw`, where `serves` says so. P is split over data × fsdp."""
    local = functools.partial(_draw, sampling=sampling, vocabulary=logits.shape[-1])
    specs = P(ROWS, None, None), P(ROWS, None, _AXIS)
    return jax.shard_map(
        local, mesh=mesh, in_specs=specs, out_specs=P(ROWS, None), check_vma=False
    )(uniforms, logits)


def _draw(uniforms, logits, *, sampling: Sampling, vocabulary: int):
    """Of this device's part of the logits."""
    size = logits.shape[-1]
    first = lax.axis_index(_AXIS) * size
    ids = first + jnp.arange(size)
    logits = logits.astype(jnp.float32) / sampling.temperature
    allowed = _restrict(logits, first, sampling, vocabulary)
    if sampling.greedy:
        likeliest = allowed == _max(allowed)[..., None]
        # the last where none is, since the logits are NaN: some id that there is
        token = lax.pmin(jnp.where(likeliest, ids, vocabulary - 1).min(-1), _AXIS)
    else:
        token = _categorical(uniforms, allowed, first, vocabulary)
    chosen = _sum(jnp.where(ids == token[..., None], logits, 0.0).sum(-1))
    top = _max(logits)
    total = _sum(jnp.exp(logits - top[..., None]).sum(-1))
    return token.astype(jnp.int32), chosen - (jnp.log(total) + top)


def _categorical(uniforms, logits, first, vocabulary):
    """Blocks are those of the whole vocabulary; one may lie on two devices, which add to it."""
    logits -= _max(logits)[..., None]
    lead, size = logits.shape[:-1], logits.shape[-1]
    count, own = -(-vocabulary // BLOCK), -(-(size + BLOCK - 1) // BLOCK)
    block, offset = first // BLOCK, first % BLOCK

    def placed(values, length, fill, at):
        room = jnp.full((*lead, length), fill, values.dtype)
        return lax.dynamic_update_slice_in_dim(room, values, at, -1)

    blocks = placed(logits, own * BLOCK, -jnp.inf, offset).reshape(*lead, own, BLOCK)
    sums = placed(jnp.exp(blocks).sum(-1), count + own, 0.0, block)[..., :count]
    drawn = pick(uniforms[..., 0], _sum(sums))
    here = jnp.clip(drawn - block, 0, own - 1)
    inside = jnp.take_along_axis(blocks, here[..., None, None], -2)[..., 0, :]
    weights = jnp.where((drawn - block == here)[..., None], jnp.exp(inside), 0.0)
    return drawn * BLOCK + pick(uniforms[..., 1], _sum(weights))


def pick(uniform: Float[Array, "*B"], weights: Float[Array, "*B N"]) -> Int[Array, "*B"]:
    """The first index at which the running sum of weights passes uniform × the whole sum."""
    sums = jnp.where(weights > 0, jnp.cumsum(weights, -1), 0.0)
    return jnp.argmax(sums > uniform[..., None] * sums.max(-1, keepdims=True), -1)


def _restrict(logits, first, sampling: Sampling, vocabulary: int):
    size = logits.shape[-1]
    if sampling.forbidden_ids:
        forbidden = np.isin(np.arange(vocabulary), sampling.forbidden_ids)
        here = lax.dynamic_slice_in_dim(jnp.asarray(forbidden), first, size)
        logits = jnp.where(here, -jnp.inf, logits)
    if 0 < sampling.top_k < vocabulary:
        best = lax.top_k(logits, min(sampling.top_k, size))[0]
        best = lax.all_gather(best, _AXIS, axis=best.ndim - 1, tiled=True)
        smallest_kept = lax.top_k(best, sampling.top_k)[0][..., -1:]
        logits = jnp.where(logits >= smallest_kept, logits, -jnp.inf)
    return logits


def _sum(x):
    return lax.psum(x, _AXIS)


def _max(x):
    return lax.pmax(x.max(-1), _AXIS)
