"""Attention by cuDNN's flash kernel, for NVIDIA GPUs: scores never reach memory.

It takes long sequences in 16 bits: prompts and whole images, which attend to themselves, and
responses after their shared prompt, which are most of an update. The kernel gives no sums that
could be merged with another block's to enough digits, so each response gets the keys of its prompt
before its own, and queries of zeros beside them, whose outputs nobody reads: (L + T)² / 2 products
where T · (L + T / 2) are asked for, one layer's keys once per response, and no scores. The rest is
XLA's.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np


def serves(query, blocks) -> bool:
    """Whether `attend` can compute this, and should: 16-bit self-attention over 128 tokens or more,
    alone or after one shared context."""
    *context, own = blocks
    length, _, dim = query.shape[-3:]
    is_self = own.key.shape[:-2] == query.shape[:-2]
    is_shared = all(own.causal and b.key.ndim == query.ndim - 1 for b in context)
    is_16_bit = query.dtype in (jnp.bfloat16, jnp.float16)
    fits = is_16_bit and length >= 128 and dim in range(8, 129, 8)
    return is_self and is_shared and len(context) <= 1 and fits


def takes(device) -> bool:
    """Whether the kernel runs on a device: NVIDIA's, from compute capability 8.0 (A100) on."""
    major, _, minor = getattr(device, "compute_capability", "").partition(".")
    return major.isdigit() and minor.isdigit() and int(major) >= 8


def attend(query, blocks, *, implementation: Literal["xla", "cudnn"] = "cudnn"):
    """As `attention.attend` for blocks that `serves` accepts; padding's outputs are 0.

    Args:
      implementation: of `jax.nn.dot_product_attention`; "xla" is for tests.
    Raises:
      ValueError: there is no cuDNN.
    """
    *context, own = blocks
    axis, length, before = query.ndim - 3, query.shape[-3], 0
    arrays = [query, own.key, own.value, own.mask]
    if context:
        (prompt,), group = context, query.shape[axis - 1]
        before = prompt.key.shape[-3]
        nobody = jnp.zeros((*prompt.key.shape[:-2], *query.shape[-2:]), query.dtype)
        shared = [nobody, prompt.key, prompt.value, prompt.mask]
        each = [jnp.repeat(jnp.expand_dims(a, axis - 1), group, axis - 1) for a in shared]
        arrays = [jnp.concatenate(pair, axis) for pair in zip(each, arrays, strict=True)]
    if (before + length) % 2:  # the kernel wants an even number
        arrays = [jnp.pad(a, [(0, i == axis) for i in range(a.ndim)]) for a in arrays]
    query, key, value, mask = arrays
    out = _attend(query, key, value, mask, own.causal, implementation)
    return jax.lax.slice_in_dim(out, before, before + length, axis=axis)


def _attend(query, key, value, mask, causal, implementation):
    """A sequence on itself. The kernel masks by lengths, so the real tokens of every row go to the
    front, in their order, and back to their places afterwards."""
    length = query.shape[-3]
    mask = mask.reshape(-1, length)
    order = jnp.argsort(~mask, axis=1, stable=True)

    def move(array, order):
        return jnp.take_along_axis(array, order[..., None, None], axis=1)

    def zero_padding(array):  # which keeps out of the gradients whatever the kernel leaves there
        return jnp.where(mask[..., None, None], array, 0)

    def rows(array):
        return move(zero_padding(array.reshape(-1, *array.shape[-3:])), order)

    # an empty row sees one zero key, or it would have no softmax
    lengths = jnp.maximum(mask.sum(1, dtype=np.int32), 1)
    try:
        out = jax.nn.dot_product_attention(
            rows(query),
            rows(key),
            rows(value),
            is_causal=causal,
            query_seq_lengths=lengths,
            key_value_seq_lengths=lengths,
            implementation=implementation,
        )
    except RuntimeError as error:
        raise ValueError(
            f'attention backend "cudnn" on platform {jax.default_backend()!r}: {error} It needs an '
            'NVIDIA GPU and jax[cuda13]; elsewhere choose "xla"'
        ) from error
    return zero_padding(move(out, jnp.argsort(order, axis=1))).reshape(query.shape)
