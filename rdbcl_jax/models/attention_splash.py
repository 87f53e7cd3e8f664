"""Attention by the splash kernel of JAX's Pallas library, for TPU: scores never reach memory.

It takes what training and prefill ask for: a sequence that attends to itself, and G responses that
attend to their shared prompt and causally to themselves. The latter is one kernel call whose static
mask skips what a response may not see; no key is repeated.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import Mesh, PartitionSpec

from rdbcl_jax.sharding import ROWS, row_parts

_BLOCK = 512  # queries × keys held in fast memory at a time; a multiple of the 128 lanes


def attend(query, blocks, *, mesh: Mesh | None = None, interpret: bool = False):
    """As `attention.attend`, for the blocks that `serves` accepts.

    Args:
      mesh: rows are split over data × fsdp, heads over tensor; None: one device.
      interpret: run the kernel as plain JAX, on any platform and slowly.
    """
    local = functools.partial(_attend_local, interpret=interpret)
    if mesh is None:
        return local(query, blocks)

    heads = "tensor" if blocks[0].key.shape[-2] % mesh.shape["tensor"] == 0 else None

    def spec(array, is_mask=False):
        rest = (None,) * (array.ndim - 1) if is_mask else (*(None,) * (array.ndim - 3), heads, None)
        return PartitionSpec(ROWS, *rest)

    specs = tuple(
        block._replace(key=spec(block.key), value=spec(block.value), mask=spec(block.mask, True))
        for block in blocks
    )
    arrays = [(b.key, b.value, b.mask) for b in blocks]

    def on_device(query, arrays):
        return local(
            query, tuple(type(b)(*a, b.causal) for a, b in zip(arrays, blocks, strict=True))
        )

    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(spec(query), [(s.key, s.value, s.mask) for s in specs]),
        out_specs=spec(query),
        check_vma=False,
    )(query, arrays)


def serves(query, blocks, mesh: Mesh | None = None) -> bool:
    """Whether `attend` can compute this, and should: self-attention over 128 tokens or more, alone
    or after one shared context, in rows that divide over the mesh."""
    *context, own = blocks
    is_self = own.key.shape[:-2] == query.shape[:-2] and query.shape[-3] >= 128
    is_shared = all(own.causal and b.key.ndim == query.ndim - 1 for b in context)
    parts = 1 if mesh is None else row_parts(mesh.shape)
    return is_self and is_shared and len(context) <= 1 and len(query) % parts == 0


def _attend_local(query, blocks, interpret):
    *context, own = blocks
    *lead, steps, _, _ = query.shape
    mask: SharedPrefixMask | SelfMask
    if context:
        lead, groups = lead[:-1], lead[-1]
        mask = SharedPrefixMask(context[0].key.shape[-3], groups, steps)
    else:
        mask = SelfMask(steps, own.causal)

    def one_sequence(parts, ndim):  # each [*lead, …, *its last `ndim` axes] -> [rows, all, …]
        rows = int(np.prod(lead))
        return jnp.concatenate(
            [p.reshape(rows, -1, *p.shape[p.ndim - ndim :]) for p in parts], axis=1
        )

    query_rows = one_sequence([query], 2)
    key = one_sequence([b.key for b in blocks], 2)
    value = one_sequence([b.value for b in blocks], 2)
    key_real = one_sequence([b.mask for b in blocks], 0)
    # padding sees padding only, which is never read; after a context every row sees its prompt
    query_real = jnp.ones(query_rows.shape[:2], bool) if context else key_real
    out = _kernel_call(query_rows, key, value, query_real, key_real, mask, interpret)
    return out.reshape(query.shape)


def _kernel_call(query, key, value, query_real, key_real, mask, interpret):
    """[N, T, H, D] queries over [N, S, Hkv, D] keys; lengths are padded to whole blocks."""
    q_length, kv_length = query.shape[1], key.shape[1]
    q_block, kv_block = _block(q_length), _block(kv_length)
    padded = masks.MultiHeadMask(
        [_Padded(mask, _up(q_length, q_block), _up(kv_length, kv_block))] * query.shape[2]
    )
    kernel = kernels.make_splash_mha(
        padded,
        block_sizes=kernels.BlockSizes(
            block_q=q_block,
            block_kv=kv_block,
            block_kv_compute=kv_block,
            block_q_dkv=q_block,
            block_kv_dkv=kv_block,
            block_kv_dkv_compute=kv_block,
            block_q_dq=q_block,
            block_kv_dq=kv_block,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )

    def fit(array, length):
        pad = [(0, 0)] * array.ndim
        pad[1] = (0, length - array.shape[1])
        return jnp.pad(array, pad)

    q_size, kv_size = padded.shape[1:]
    query = fit(query * query.shape[-1] ** -0.5, q_size).astype(query.dtype)
    key, value = fit(key, kv_size), fit(value, kv_size)
    segments = kernels.SegmentIds(
        fit(query_real.astype(jnp.int32), q_size), fit(key_real.astype(jnp.int32), kv_size)
    )
    heads_first = (jnp.swapaxes(a, 1, 2) for a in (query, key, value))
    out = jax.vmap(kernel)(*heads_first, segments)
    return jnp.swapaxes(out, 1, 2)[:, :q_length]


def _up(length: int, block: int) -> int:
    return -(-length // block) * block


def _block(length: int) -> int:
    return min(_BLOCK, _up(length, 128))


# ---------------------------------------------------------------- masks, evaluated block by block


@dataclasses.dataclass(frozen=True)
class SelfMask:
    """A sequence on itself."""

    length: int
    causal: bool

    def __call__(self, q, k):
        return (k <= q) if self.causal else (k >= 0) & (q >= 0)


@dataclasses.dataclass(frozen=True)
class SharedPrefixMask:
    """`groups` responses of `steps` tokens each, on their common prefix and then on themselves."""

    prefix: int
    groups: int
    steps: int

    def __call__(self, q, k):
        own = k - self.prefix
        return (own < 0) | ((own // self.steps == q // self.steps) & (own <= q))


@dataclasses.dataclass(frozen=True)
class _Padded(masks.Mask):
    """A rule on positions as splash's mask; what padding sees is left to the segments."""

    rule: SelfMask | SharedPrefixMask
    q_length: int
    kv_length: int

    @property
    def shape(self):
        return self.q_length, self.kv_length

    def __getitem__(self, index):
        q, k = (np.arange(n)[s] for n, s in zip(self.shape, index, strict=True))
        return np.broadcast_to(self.rule(q[:, None], k[None]), (len(q), len(k)))
