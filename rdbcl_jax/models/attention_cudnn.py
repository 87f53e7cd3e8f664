"""Attention by cuDNN's flash kernel, for NVIDIA GPUs: scores never reach memory.

It takes long sequences that attend to themselves, in 16 bits: prompts, and whole images. The kernel
gives no sums that could be merged with another block's to enough digits, so the rest is XLA's.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np


def serves(query, blocks) -> bool:
    """Whether `attend` can compute this, and should: 16-bit self-attention over 128 tokens or more;
    the kernel wants an even number of them."""
    *context, own = blocks
    length, _, dim = query.shape[-3:]
    is_self = not context and own.key.shape[:-2] == query.shape[:-2]
    is_16_bit = query.dtype in (jnp.bfloat16, jnp.float16)
    return is_self and is_16_bit and length >= 128 and length % 2 == 0 and dim in range(8, 129, 8)


def attend(query, block, *, implementation: Literal["xla", "cudnn"] = "cudnn"):
    """As `attention.attend` for one block that `serves` accepts; padding's outputs are 0.

    The kernel masks by lengths, so the real tokens of every row go to the front, in their order,
    and back to their places afterwards.

    Args:
      implementation: of `jax.nn.dot_product_attention`; "xla" is for tests.
    Raises:
      ValueError: there is no cuDNN.
    """
    length = query.shape[-3]
    mask = block.mask.reshape(-1, length)
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
            rows(block.key),
            rows(block.value),
            is_causal=block.causal,
            query_seq_lengths=lengths,
            key_value_seq_lengths=lengths,
            implementation=implementation,
        )
    except RuntimeError as error:
        raise ValueError(
            f'attention backend "cudnn" on platform {jax.default_backend()!r}: {error} It needs an '
            'NVIDIA GPU and jax[cuda13]; elsewhere choose "auto"'
        ) from error
    return zero_padding(move(out, jnp.argsort(order, axis=1))).reshape(query.shape)
