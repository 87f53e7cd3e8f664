"""Log-probs of responses under any parameters: the forward pass that all of learning shares."""

from __future__ import annotations

import functools

import jax
from jaxtyping import Array, Bool, Int

from rdbcl_jax.batches import PromptBatch
from rdbcl_jax.core.logprobs import token_logprobs
from rdbcl_jax.models.interface import VLM, Params
from rdbcl_jax.sharding import in_rows


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
    jax.jit, static_argnames=("model", "temperature", "chunk_size", "return_entropy")
)
def compiled_logprobs(model: VLM, *args, **options):
    """`response_logprobs` as a program of its own, of the rows of a batch."""
    return in_rows(response_logprobs(model, *args, **options), model.mesh)
