"""Sampling G responses to each prompt in one jitted call.

The prompt and its images run once; its keys and values are read by all G rollouts. Responses keep
theirs in a cache that grows by a schedule. When half of every group has ended, the other half goes
on alone, and so on by halves; the loop ends with the last rollout.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rdbcl_jax.batches import PromptBatch, Rollouts
from rdbcl_jax.models.interface import VLM, Params
from rdbcl_jax.models.kv_cache import Cache, empty_cache, grow, pad_rows, take_rows
from rdbcl_jax.rollout.sampling import Sampling, draw
from rdbcl_jax.sharding import in_rows

_NO_CACHE: Cache = ((), ())
_OF_ROLLOUTS = ("rows", "tokens", "mask", "logps", "alive")  # fields of a state, and the cache
_FIRST_CACHE = 64  # tokens; doubled until the longest response fits


class _State(NamedTuple):
    """W of the G rollouts of each prompt: all, or those that go on."""

    step: Int[Array, ""]  # tokens drawn so far
    rows: Int[Array, "P W"]  # which of the G rollouts each is
    tokens: Int[Array, "P W T"]
    mask: Bool[Array, "P W T"]
    logps: Float[Array, "P W T"]
    alive: Bool[Array, "P W"]
    cache: Cache


@functools.partial(jax.jit, static_argnames=("model", "samples", "sampling"))
def sample(
    model: VLM,
    params: Params,
    prompts: PromptBatch,
    key: Array,
    *,
    samples: int,
    sampling: Sampling,
) -> Rollouts:
    """`samples` responses to each prompt. The same key gives the same responses."""
    shape = (len(prompts.tokens), samples)
    keys = jax.random.split(key, sampling.max_tokens)
    params = model.gathered(params)
    hidden, prompt_cache = model.prefill(params, prompts)
    head = model.lm_head(params)
    params, prompt_cache = model.for_decoding(params, prompt_cache)

    def logits_of(hidden):
        return jnp.matmul(hidden, head, preferred_element_type=jnp.float32)

    def add_token(state: _State, logits) -> _State:
        """Every rollout has random numbers of its own, whichever others go on beside it."""
        uniforms = jax.random.uniform(keys[state.step], (*shape, 2))
        own = jnp.take_along_axis(uniforms, state.rows[..., None], 1)
        return _record(state, *draw(own, logits, sampling, model.mesh), sampling.stop_ids)

    def body(state: _State) -> _State:
        at = state.step - 1  # slot of the newest token, not yet in the cache
        newest = jax.lax.dynamic_index_in_dim(state.tokens, at, 2, keepdims=False)
        position = prompts.next_position + at
        hidden, cache = model.decode(params, newest, position, prompt_cache, state.cache, at)
        return add_token(state._replace(cache=cache), logits_of(hidden))

    first = logits_of(hidden[:, -1:])  # one for all rollouts of a prompt
    state = add_token(
        _start(shape, empty_cache(prompt_cache, samples), sampling.max_tokens),
        jnp.broadcast_to(first, (*shape, first.shape[-1])),
    )
    for size in cache_schedule(sampling.max_tokens):
        # nothing attends to the last token, so `size` slots serve size + 1 tokens
        end = min(size + 1, sampling.max_tokens)
        state = _extend(body, state._replace(cache=grow(state.cache, size)), end)
    state = _take(state._replace(cache=_NO_CACHE), jnp.argsort(state.rows, axis=1))
    rollouts = Rollouts(state.tokens, state.mask, state.logps, ~state.alive)
    return in_rows(rollouts, model.mesh)


def cache_schedule(max_tokens: int) -> tuple[int, ...]:
    """Sizes of the response cache: doubled from 64, so a short batch never pays for the longest."""
    sizes = []
    size = _FIRST_CACHE
    while size < max_tokens - 1:
        sizes.append(size)
        size *= 2
    return (*sizes, max_tokens - 1) if max_tokens > 1 else ()


def _start(shape, cache, max_tokens) -> _State:
    return _State(
        step=jnp.zeros((), jnp.int32),
        rows=jnp.broadcast_to(jnp.arange(shape[1]), shape),
        tokens=jnp.zeros((*shape, max_tokens), jnp.int32),
        mask=jnp.zeros((*shape, max_tokens), bool),
        logps=jnp.zeros((*shape, max_tokens), jnp.float32),
        alive=jnp.ones(shape, bool),
        cache=cache,
    )


def _record(state: _State, token, logp, stop_ids) -> _State:
    def put(array, value):
        return jax.lax.dynamic_update_index_in_dim(array, value, state.step, 2)

    stops = jnp.isin(token, jnp.array(stop_ids, jnp.int32))
    return state._replace(
        step=state.step + 1,
        tokens=put(state.tokens, jnp.where(state.alive, token, 0)),
        mask=put(state.mask, state.alive),
        logps=put(state.logps, jnp.where(state.alive, logp, 0.0)),
        alive=state.alive & ~stops,
    )


def _extend(body, state: _State, end: int) -> _State:
    """Draws up to token `end`; once half of every group has ended, the rest in half the rows.

    Halves of groups, not of the batch, so that no prompt leaves its device.
    """
    width = state.rows.shape[1]
    half = width // 2

    def goes_on(s):
        return (s.step < end) & (s.alive.sum(1).max() > half)

    state = jax.lax.while_loop(goes_on, body, state)
    if half == 0:
        return state

    def in_half(state):
        order = jnp.argsort(~state.alive, axis=1)  # stable: those that go on come first
        rest = _extend(body, _take(state, order[:, :half]), end)
        ended = _take(state._replace(cache=_NO_CACHE), order[:, half:])
        joined = {
            name: jnp.concatenate([getattr(rest, name), getattr(ended, name)], 1)
            for name in _OF_ROLLOUTS
        }
        cache = pad_rows(rest.cache, width)  # nothing reads the rows of rollouts that have ended
        return state._replace(step=rest.step, cache=cache, **joined)

    return jax.lax.cond((state.step < end) & state.alive.any(), in_half, lambda s: s, state)


def _take(state: _State, rows) -> _State:
    """Some rollouts of each prompt."""

    def take(a):
        return jnp.take_along_axis(a, rows.reshape(*rows.shape, *[1] * (a.ndim - 2)), 1)

    taken = {name: take(getattr(state, name)) for name in _OF_ROLLOUTS}
    return state._replace(cache=take_rows(state.cache, rows), **taken)
