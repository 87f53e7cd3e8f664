"""Log-probs of responses under any parameters: the forward pass that all of learning shares."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from rdbcl_jax.batches import PromptBatch
from rdbcl_jax.core.logprobs import token_logprobs
from rdbcl_jax.models.interface import VLM, Params
from rdbcl_jax.sharding import in_rows
from rdbcl_jax.training.lengths import Parts, cut_to_longest


def response_logprobs(
    model: VLM,
    params: Params,
    prompts: PromptBatch,
    tokens: Int[Array, "P G T"],
    mask: Bool[Array, "P G T"],
    *,
    temperature: float,
    chunk_size: int,
    return_entropy: bool = False,
):
    """Log-prob (and entropy) of each response token, [P, G, T] float32; the image is included."""
    hidden = model.response_hidden(params, prompts, tokens, mask)
    return token_logprobs(
        hidden,
        model.lm_head(params),
        tokens,
        chunk_size=chunk_size,
        temperature=temperature,
        return_entropy=return_entropy,
    )


@functools.partial(
    jax.jit, static_argnames=("model", "temperature", "chunk_size", "return_entropy", "parts")
)
def compiled_logprobs(
    model: VLM,
    params: Params,
    prompts: PromptBatch,
    tokens: Int[Array, "P G T"],
    mask: Bool[Array, "P G T"],
    *,
    parts: int = 1,
    **options: Any,
):
    """`response_logprobs` as a program of its own, of the rows of a batch; 0 behind the longest
    response, or soon after it.

    Args:
      parts: that are run one after the other, short responses first.
    """

    rows, most = (prompts, tokens, mask), mask.shape[-1]

    def short(prompts, tokens, mask):
        found = response_logprobs(model, params, prompts, tokens, mask, **options)
        return jax.tree.map(lambda a: _padded(a, to=most), found)

    def passed(rows):
        return cut_to_longest(short, rows[-1], *rows)

    if parts == 1:
        found = passed(rows)
    else:
        apart = Parts.of(mask, parts, model.mesh)
        found = apart.joined(jax.lax.map(passed, apart.split(rows)))
    return in_rows(found, model.mesh)


def _padded(a: Array, to: int) -> Array:
    return jnp.pad(a, [*[(0, 0)] * (a.ndim - 1), (0, to - a.shape[-1])])
