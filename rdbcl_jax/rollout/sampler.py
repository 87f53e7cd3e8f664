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
from rdbcl_jax.models.qwen_vl.model import Params, QwenVL
from rdbcl_jax.rollout.sampling import Sampling, draw

_FIRST_CACHE = 64  # tokens; doubled until the longest response fits


class _State(NamedTuple):
    step: Int[Array, ""]  # tokens drawn so far
    tokens: Int[Array, "P G T"]
    mask: Bool[Array, "P G T"]
    logps: Float[Array, "P G T"]
    alive: Bool[Array, "P G"]
    cache: tuple  # keys and values, a stack [layers, P, G, Hkv, S, Dh] or a tuple of layers each


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
    params, prompt_cache = model.for_decoding(params, prompt_cache)
    state = _first_token(head, hidden[:, -1], prompt_cache, keys[0], samples, sampling)

    def body(state: _State) -> _State:
        at = state.step - 1  # slot of the newest token, not yet in the cache
        newest = jax.lax.dynamic_index_in_dim(state.tokens, at, 2, keepdims=False)
        position = prompts.next_position + at
        hidden, cache = model.decode(params, newest, position, prompt_cache, state.cache, at)
        token, logp = draw(keys[state.step], _logits(hidden, head), sampling)
        return _record(state, token, logp, sampling)._replace(cache=cache)

    for size in cache_schedule(sampling.max_tokens):
        state = _grow(state, size)
        # the last token's keys are never needed, so `size` slots serve size + 1 tokens
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


def _first_token(head, hidden, prompt_cache, key, samples, sampling) -> _State:
    """The first token of every rollout comes from the prompt's last hidden state."""
    shape = (len(hidden), samples)

    def empty(prompt_keys):  # [(layers,) P, Hkv, L, Dh] -> [(layers,) P, G, Hkv, 0, Dh]
        *lead, kv_heads, _, dim = prompt_keys.shape
        return jnp.zeros((*lead, samples, kv_heads, 0, dim), prompt_keys.dtype)

    state = _State(
        step=jnp.zeros((), jnp.int32),
        tokens=jnp.zeros((*shape, sampling.max_tokens), jnp.int32),
        mask=jnp.zeros((*shape, sampling.max_tokens), bool),
        logps=jnp.zeros((*shape, sampling.max_tokens), jnp.float32),
        alive=jnp.ones(shape, bool),
        cache=jax.tree.map(empty, (prompt_cache.key, prompt_cache.value)),
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
    def grow(a):
        return jnp.pad(a, [(0, 0)] * (a.ndim - 2) + [(0, size - a.shape[-2]), (0, 0)])

    return state._replace(cache=jax.tree.map(grow, state.cache))


def _logits(hidden, head):
    return jnp.matmul(hidden, head, preferred_element_type=jnp.float32)
