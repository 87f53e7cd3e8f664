"""Sampling G responses to each prompt in one jitted call.

The prompt and its images run once; its keys are read by all G rollouts. Responses keep keys of
their own in a cache that grows by a schedule, and the loop ends as soon as every rollout has.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rdbcl_jax.batches import PromptBatch, Rollouts
from rdbcl_jax.models.qwen_vl.model import KeyValues, Params, QwenVL
from rdbcl_jax.rollout.sampling import Sampling, draw

_FIRST_CACHE = 64  # tokens; doubled until the longest response fits


class _State(NamedTuple):
    step: Int[Array, ""]  # tokens drawn so far
    tokens: Int[Array, "P G T"]
    mask: Bool[Array, "P G T"]
    logps: Float[Array, "P G T"]
    alive: Bool[Array, "P G"]
    cache_key: Array  # [layers, P, G, S, Hkv, Dh]
    cache_value: Array


@functools.partial(jax.jit, static_argnames=("model", "samples", "sampling"))
def sample(
    model: QwenVL,
    params: Params,
    prompts: PromptBatch,
    key: Array,
    *,
    samples: int,
    sampling: Sampling,
) -> Rollouts:
    """`samples` responses to each prompt. The same key gives the same responses."""
    keys = jax.random.split(key, sampling.max_tokens)
    hidden, prompt_cache = model.prefill(params, prompts)
    head = model.lm_head(params)
    state = _first_token(model, head, hidden[:, -1], prompt_cache, keys[0], samples, sampling)

    def body(state: _State) -> _State:
        at = state.step - 1  # slot of the newest token, not yet in the cache
        newest = jax.lax.dynamic_index_in_dim(state.tokens, at, 2, keepdims=False)
        cached = jnp.arange(state.cache_key.shape[3]) < at
        cached = jnp.broadcast_to(cached, (*newest.shape, len(cached)))
        caches = (prompt_cache, KeyValues(state.cache_key, state.cache_value, cached))
        hidden, new = model.decode(params, newest, prompts.next_position + at, caches)
        key_cache, value_cache = (
            jax.lax.dynamic_update_index_in_dim(cache, x[:, :, :, None], at, 3)
            for cache, x in zip((state.cache_key, state.cache_value), new, strict=True)
        )
        token, logp = draw(keys[state.step], _logits(hidden, head), sampling)
        return _record(state, token, logp, sampling)._replace(
            cache_key=key_cache, cache_value=value_cache
        )

    for size in cache_schedule(sampling.max_tokens):
        state = _grow(state, size)
        # the newest token's own keys are not cached, so `size` slots serve size + 1 tokens
        end = min(size + 1, sampling.max_tokens)
        state = jax.lax.while_loop(lambda s, end=end: (s.step < end) & s.alive.any(), body, state)
    return Rollouts(state.tokens, state.mask, state.logps, ~state.alive)


def cache_schedule(max_tokens: int) -> tuple[int, ...]:
    """Sizes of the response cache: doubled from 64, so a short batch never pays for the longest."""
    sizes = []
    size = _FIRST_CACHE
    while size < max_tokens - 1:
        sizes.append(size)
        size *= 2
    return (*sizes, max_tokens - 1) if max_tokens > 1 else ()


def _first_token(model, head, hidden, prompt_cache, key, samples, sampling) -> _State:
    """The first token of every rollout comes from the prompt's last hidden state."""
    shape = (len(hidden), samples)
    layers, _, _, *per_token = prompt_cache.key.shape
    empty = jnp.zeros((layers, *shape, 0, *per_token), prompt_cache.key.dtype)
    state = _State(
        step=jnp.zeros((), jnp.int32),
        tokens=jnp.zeros((*shape, sampling.max_tokens), jnp.int32),
        mask=jnp.zeros((*shape, sampling.max_tokens), bool),
        logps=jnp.zeros((*shape, sampling.max_tokens), jnp.float32),
        alive=jnp.ones(shape, bool),
        cache_key=empty,
        cache_value=empty,
    )
    logits = _logits(hidden, head)[:, None]
    token, logp = draw(key, jnp.broadcast_to(logits, (*shape, logits.shape[-1])), sampling)
    return _record(state, token, logp, sampling)


def _record(state: _State, token, logp, sampling) -> _State:
    def put(array, value):
        return jax.lax.dynamic_update_index_in_dim(array, value, state.step, 2)

    stops = jnp.isin(token, jnp.array(sampling.stop_ids, jnp.int32))
    return state._replace(
        step=state.step + 1,
        tokens=put(state.tokens, jnp.where(state.alive, token, 0)),
        mask=put(state.mask, state.alive),
        logps=put(state.logps, jnp.where(state.alive, logp, 0.0)),
        alive=state.alive & ~stops,
    )


def _grow(state: _State, size: int) -> _State:
    grow = [(0, 0)] * 6
    grow[3] = (0, size - state.cache_key.shape[3])
    return state._replace(
        cache_key=jnp.pad(state.cache_key, grow), cache_value=jnp.pad(state.cache_value, grow)
    )


def _logits(hidden, head):
    return jnp.matmul(hidden, head, preferred_element_type=jnp.float32)
