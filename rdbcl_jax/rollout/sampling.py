"""How one token is drawn from logits."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Static options of the sampler.

    Attributes:
      max_tokens: T, longest response, the end token included.
      temperature: > 0; divides the logits, also of the log-probs that are returned.
      top_k: keep the k likeliest tokens; 0 keeps all.
      top_p: keep the smallest set of tokens with this total probability; 1 keeps all.
      greedy: take the likeliest token (temperature still scales the returned log-probs).
      stop_ids: tokens that end a response.
      forbidden_ids: tokens never drawn: pictures' placeholders and padding, since a response that
        holds them cannot be scored again.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    greedy: bool = False
    stop_ids: tuple[int, ...] = ()
    forbidden_ids: tuple[int, ...] = ()

    def __post_init__(self):
        if self.max_tokens < 1 or self.temperature <= 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"need max_tokens >= 1, temperature > 0 and 0 < top_p <= 1; got {self}. "
                "For the likeliest token set greedy=True, not temperature=0"
            )
        if set(self.stop_ids) & set(self.forbidden_ids):
            raise ValueError(f"a stop token is forbidden, so no response could end: {self}")


def draw(
    key: Array, logits: Float[Array, "*B V"], sampling: Sampling
) -> tuple[Int[Array, "*B"], Float[Array, "*B"]]:
    """A token per row, and its log-prob at the sampling temperature.

    The log-prob is that of the full softmax, before top-k, top-p and forbidden ids: the same
    quantity that the trainer computes, so that the two can be compared.
    """
    logits = logits.astype(jnp.float32) / sampling.temperature
    logps = jax.nn.log_softmax(logits)
    allowed = _restrict(logits, sampling)
    token = jnp.argmax(allowed, -1) if sampling.greedy else jax.random.categorical(key, allowed)
    return token.astype(jnp.int32), jnp.take_along_axis(logps, token[..., None], -1)[..., 0]


def _restrict(logits, sampling):
    if sampling.forbidden_ids:
        logits = logits.at[..., jnp.array(sampling.forbidden_ids)].set(-jnp.inf)
    if 0 < sampling.top_k < logits.shape[-1]:
        smallest_kept = jax.lax.top_k(logits, sampling.top_k)[0][..., -1:]
        logits = jnp.where(logits >= smallest_kept, logits, -jnp.inf)
    if sampling.top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        probs = jax.nn.softmax(ordered)
        kept = jnp.cumsum(probs, -1) - probs < sampling.top_p  # always keeps the first
        smallest_kept = jnp.min(jnp.where(kept, ordered, jnp.inf), -1, keepdims=True)
        logits = jnp.where(logits >= smallest_kept, logits, -jnp.inf)
    return logits
