"""Log-probs and entropies of given tokens from hidden states, without the logits in memory.

At B = 64, T = 1024 and V = 152k the logits alone are 40 GB in float32. Here the LM head is applied
to `chunk_size` tokens at a time, and again in the backward pass: the largest array is
[chunk_size, V], and what is kept between the passes is two numbers per token.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


def token_logprobs(
    hidden: Float[Array, "*B T D"],
    lm_head: Float[Array, "D V"],
    tokens: Int[Array, "*B T"],
    *,
    chunk_size: int,
    temperature: float = 1.0,
    return_entropy: bool = False,
) -> Float[Array, "*B T"] | tuple[Float[Array, "*B T"], Float[Array, "*B T"]]:
    """log softmax(hidden · lm_head / temperature) at `tokens`, and the distribution's entropy.

    Differentiable (reverse mode, once) in `hidden` and `lm_head`. The matmuls run in the inputs'
    dtype with float32 accumulation; everything else is float32. The backward pass makes the logits
    once more and adds to one float32 gradient of `lm_head` in place.

    A token whose cotangent is 0 (one that the loss masks) adds exactly 0 to every gradient, even if
    its hidden state is NaN.

    Each chunk takes tokens from all over the leading axes, so arrays that are sharded over them
    keep every device busy in every chunk (where `chunk_size` is a multiple of the devices). Of a
    head sharded over V only sums travel. One sharded over D (FSDP) is best gathered by the caller,
    `with_sharding_constraint(lm_head, P())`: compiled for TPU v5e, the gather and the sum of its
    gradient then happen once per call, and otherwise once per chunk.

    Args:
      hidden: last hidden states, each at the position that predicts its token.
      lm_head: output projection; a tied embedding transposed.
      tokens: ids in [0, V). An id outside gives −log Σ exp(logits), not an error.
      chunk_size: tokens per chunk, of all B · T. Larger is faster until it is a few hundred.
      temperature: positive; logits are divided by it. No gradient.
      return_entropy: also return −Σ p log p over the vocabulary, in nats.

    Returns:
      Log-probs [*B, T], or (log-probs, entropies); float32, nats.

    Raises:
      ValueError: shapes that do not fit, a chunk size below 1.
    """
    if hidden.shape[:-1] != tokens.shape or hidden.shape[-1:] != lm_head.shape[:1]:
        raise ValueError(
            f"hidden {list(hidden.shape)}, lm_head {list(lm_head.shape)} and tokens "
            f"{list(tokens.shape)} do not fit; expected [*B, T, D], [D, V] and [*B, T]"
        )
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1; got {chunk_size}")
    count = tokens.size
    chunks, size = _chunking(count, chunk_size)
    hidden_SxCxD = _to_chunks(hidden.reshape(count, -1), chunks, size)
    tokens_SxC = _to_chunks(tokens.reshape(count), chunks, size)
    inverse_temperature = 1 / jnp.asarray(temperature, jnp.float32)
    outputs = _chunked(hidden_SxCxD, lm_head, tokens_SxC, inverse_temperature, return_entropy)
    outputs = [x.reshape(-1)[:count].reshape(tokens.shape) for x in outputs]
    return tuple(outputs) if return_entropy else outputs[0]


def _chunking(count: int, chunk_size: int) -> tuple[int, int]:
    """Number and size of the chunks: as few as `chunk_size` allows, then as even as can be."""
    chunks = max(1, -(-count // chunk_size))
    even = -(-count // chunks)
    return chunks, min(chunk_size, -(-even // 8) * 8)


def _to_chunks(x: Array, chunks: int, size: int) -> Array:
    """[N, …] → [S, C, …], chunk c being x[:, c]: strided, so that sharding over N is over S."""
    padding = [(0, chunks * size - x.shape[0])] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, padding).reshape(size, chunks, *x.shape[1:])


def _logits(hidden_SxD, lm_head, inverse_temperature):
    logits = jnp.matmul(hidden_SxD, lm_head, preferred_element_type=jnp.float32)
    return logits * inverse_temperature


def _contracted(a, b, axis: int):
    dims = (((axis,), (axis,)), ((), ()))
    return lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _is_token(tokens_S, vocabulary: int):
    """[S, V] boolean; compared, not gathered, so that it fuses and V may be sharded."""
    return tokens_S[:, None] == lax.broadcasted_iota(tokens_S.dtype, (1, vocabulary), 1)


def _forward_chunk(hidden_SxD, lm_head, tokens_S, inverse_temperature, with_entropy):
    """(log-probs, entropies or zeros, log normalisers), [S] each."""
    logits = _logits(hidden_SxD, lm_head, inverse_temperature)
    top = logits.max(axis=-1, keepdims=True)
    weights = jnp.exp(logits - top)
    total = weights.sum(axis=-1)
    log_z = jnp.log(total) + top[:, 0]
    chosen = jnp.where(_is_token(tokens_S, logits.shape[-1]), logits, 0).sum(axis=-1)
    entropy = jnp.zeros_like(log_z)
    if with_entropy:
        entropy = jnp.log(total) - (weights * (logits - top)).sum(axis=-1) / total
    return chosen - log_z, entropy, log_z


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _chunked(hidden_SxCxD, lm_head, tokens_SxC, inverse_temperature, with_entropy):
    return _forward(hidden_SxCxD, lm_head, tokens_SxC, inverse_temperature, with_entropy)[0]


def _forward(hidden_SxCxD, lm_head, tokens_SxC, inverse_temperature, with_entropy):
    def body(_, c):
        hidden_SxD = lax.dynamic_index_in_dim(hidden_SxCxD, c, 1, keepdims=False)
        tokens_S = lax.dynamic_index_in_dim(tokens_SxC, c, 1, keepdims=False)
        return None, _forward_chunk(
            hidden_SxD, lm_head, tokens_S, inverse_temperature, with_entropy
        )

    _, outputs = lax.scan(body, None, jnp.arange(tokens_SxC.shape[1]))
    logps, entropy, log_z = (x.T for x in outputs)
    saved = (hidden_SxCxD, lm_head, tokens_SxC, inverse_temperature, log_z, entropy)
    return ([logps, entropy] if with_entropy else [logps]), saved


def _backward(with_entropy, saved, cotangents):
    hidden_SxCxD, lm_head, tokens_SxC, inverse_temperature, log_z_SxC, entropy_SxC = saved
    dlogps_SxC = cotangents[0]
    dentropy_SxC = cotangents[1] if with_entropy else jnp.zeros_like(dlogps_SxC)

    def body(carry, c):
        dhidden_SxCxD, dlm_head = carry
        at = partial(lax.dynamic_index_in_dim, index=c, axis=1, keepdims=False)
        dlogps, dentropy = at(dlogps_SxC), at(dentropy_SxC)
        counts = (dlogps != 0) | (dentropy != 0)
        hidden_SxD = jnp.where(counts[:, None], at(hidden_SxCxD), 0)
        logits = _logits(hidden_SxD, lm_head, inverse_temperature)
        logps = logits - at(log_z_SxC)[:, None]
        slope = -dlogps[:, None]
        if with_entropy:
            slope -= dentropy[:, None] * (logps + at(entropy_SxC)[:, None])
        is_token = _is_token(at(tokens_SxC), logits.shape[-1])
        dlogits = jnp.exp(logps) * slope + jnp.where(is_token, dlogps[:, None], 0)
        dlogits = jnp.where(counts[:, None], dlogits * inverse_temperature, 0)
        dlogits = dlogits.astype(jnp.result_type(hidden_SxD, lm_head))
        # contracted as they lie: of a transposed head XLA on CPU makes two copies
        dhidden = _contracted(dlogits, lm_head, 1)
        dlm_head += _contracted(hidden_SxD, dlogits, 0)
        dhidden_SxCxD = lax.dynamic_update_index_in_dim(
            dhidden_SxCxD, dhidden.astype(dhidden_SxCxD.dtype), c, 1
        )
        return (dhidden_SxCxD, dlm_head), None

    start = (jnp.zeros_like(hidden_SxCxD), jnp.zeros(lm_head.shape, jnp.float32))
    (dhidden_SxCxD, dlm_head), _ = lax.scan(body, start, jnp.arange(tokens_SxC.shape[1]))
    return dhidden_SxCxD, dlm_head.astype(lm_head.dtype), None, None


_chunked.defvjp(_forward, _backward)
