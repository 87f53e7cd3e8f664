"""How one token is drawn from logits."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rdbcl_jax.config import RolloutConfig
from rdbcl_jax.policy import Policy
from rdbcl_jax.rollout import shards
from rdbcl_jax.rollout.shards import BLOCK, pick


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Static options of the sampler.

    Attributes:
      max_tokens: T, the longest response, end token included.
      temperature: > 0; divides the logits, in drawing and in the log-probs returned.
      top_k: keep the k likeliest tokens; 0 keeps all.
      top_p: keep the smallest set of tokens with this total probability; 1 keeps all.
      greedy: take the likeliest token (temperature still scales the returned log-probs).
      stop_ids: tokens that end a response.
      forbidden_ids: tokens never drawn: images' placeholders and padding, since a response that
        holds them cannot be read again.
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


def sampling_of(policy: Policy, rollout: RolloutConfig, *, greedy: bool = False) -> Sampling:
    """A run's sampling options for its policy. Ids of images, of padding and of no token at all are
    forbidden: a response that held them could not be read again."""
    config, stops = policy.model.config, policy.stop_ids
    beyond = range(len(policy.tokenizer), config.vocab_size)
    forbidden = {*config.forbidden_token_ids, policy.tokenizer.pad_token_id, *beyond}
    return Sampling(
        max_tokens=rollout.max_tokens,
        temperature=rollout.temperature,
        top_k=0 if greedy else rollout.top_k,
        top_p=1.0 if greedy else rollout.top_p,
        greedy=greedy,
        stop_ids=stops,
        forbidden_ids=tuple(sorted(i for i in forbidden - set(stops) if i is not None and i >= 0)),
    )


def draw(
    uniforms: Float[Array, "*B 2"],
    logits: Float[Array, "*B V"],
    sampling: Sampling,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[Int[Array, "*B"], Float[Array, "*B"]]:
    """A token per row, and its log-prob at the sampling temperature.

    `uniforms` in [0, 1) decide: a row's token depends on its own numbers only.

    The log-prob is that of the full softmax, before top-k, top-p and forbidden ids: the same
    quantity that the trainer computes, so that the two can be compared.

    With a `mesh`, *B is [P, G] and V is split over `tensor`, if that divides it; logits are not
    gathered then, but for top-p.
    """
    if mesh is not None and shards.serves(logits.shape[-1], sampling, mesh):
        return shards.draw(uniforms, logits, sampling, mesh)
    logits = logits.astype(jnp.float32) / sampling.temperature
    allowed = _restrict(logits, sampling)
    token = jnp.argmax(allowed, -1) if sampling.greedy else _categorical(uniforms, allowed)
    chosen = jnp.take_along_axis(logits, token[..., None], -1)[..., 0]
    return token.astype(jnp.int32), chosen - jax.nn.logsumexp(logits, -1)


def _categorical(uniforms: Float[Array, "*B 2"], logits: Float[Array, "*B V"]) -> Int[Array, "*B"]:
    """A token by the inverse of the distribution function: a block of 128 ids, then an id in it.

    Two uniform numbers a row, where Gumbel noise takes V. An id of logit −inf is never drawn.
    """
    missing = -logits.shape[-1] % BLOCK
    logits = jnp.pad(
        logits, [(0, 0)] * (logits.ndim - 1) + [(0, missing)], constant_values=-jnp.inf
    )
    logits -= logits.max(-1, keepdims=True)
    blocks = logits.reshape(*logits.shape[:-1], -1, BLOCK)
    block = pick(uniforms[..., 0], jnp.exp(blocks).sum(-1))
    inside = jnp.take_along_axis(blocks, block[..., None, None], -2)[..., 0, :]
    return block * BLOCK + pick(uniforms[..., 1], jnp.exp(inside))


def _restrict(logits, sampling):
    if sampling.forbidden_ids:
        forbidden = np.isin(np.arange(logits.shape[-1]), sampling.forbidden_ids)
        logits = jnp.where(forbidden, -jnp.inf, logits)
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
