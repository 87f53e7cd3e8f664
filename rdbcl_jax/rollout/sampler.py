"""Sampling G responses to each prompt in one jitted call.

The prompt and its images run once; its keys and values are read by all G rollouts. Rows are the
rollouts that go on: once those that are left, of whatever prompts, fit into half of a device's
rows, they go on in half, and so on; the loop ends with the last rollout.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rdbcl_jax.batches import PromptBatch, Rollouts
from rdbcl_jax.models.interface import VLM, Params
from rdbcl_jax.models.kv_cache import (
    Cache,
    Prompts,
    empty_cache,
    newest_slots,
    read_by,
    read_by_all,
    set_aside,
    take_rows,
)
from rdbcl_jax.rollout.sampling import Sampling, draw
from rdbcl_jax.sharding import in_rows, row_devices

_FEW = 4  # rows; a step of them costs little more than one of two
_EARN = 16  # tokens of a response, for each width: what its program takes to compile


class _Written(NamedTuple):
    """What rollouts have said, [D, rows of each device, T]."""

    tokens: Int[Array, "D W T"]
    mask: Bool[Array, "D W T"]
    logps: Float[Array, "D W T"]


class _State(NamedTuple):
    """W rows of each of the D devices that hold rows of the batch."""

    step: Int[Array, ""]  # tokens drawn so far
    home: Int[Array, "D W"]  # each row's place among all rollouts of its device
    written: _Written
    alive: Bool[Array, "D W"]
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
    devices = row_devices(model.mesh, len(prompts.tokens))
    shape = devices, len(prompts.tokens) // devices * samples
    keys = jax.random.split(key, sampling.max_tokens)
    params = model.gathered(params)
    hidden, prompt_cache = model.prefill(params, prompts)
    head = model.lm_head(params)
    params, prompt_cache = model.for_decoding(params, prompt_cache)
    next_position = jnp.repeat(prompts.next_position, samples).reshape(shape)

    def logits_of(hidden):
        return jnp.matmul(hidden, head, preferred_element_type=jnp.float32)

    def add_token(state: _State, logits) -> _State:
        """Every rollout has random numbers of its own, whichever others go on beside it."""
        uniforms = jax.random.uniform(keys[state.step], (len(prompts.tokens), samples, 2))
        own = _of_rows(uniforms.reshape(*shape, 2), state.home)
        return _record(state, *draw(own, logits, sampling, model.mesh), sampling.stop_ids)

    def next_token(read: Prompts, state: _State) -> _State:
        at = state.step - 1  # slot of the newest token, not yet in the cache
        newest = jax.lax.dynamic_index_in_dim(state.written.tokens, at, 2, keepdims=False)
        position = _of_rows(next_position, state.home) + at
        rows = newest.reshape(-1), position.reshape(-1)
        hidden, cache = model.decode(params, *rows, read, state.cache, at)
        logits = logits_of(hidden).reshape(*newest.shape, -1)
        return add_token(state._replace(cache=cache), logits)

    first = jnp.repeat(logits_of(hidden[:, -1]), samples, axis=0)  # one for a prompt's rollouts
    cache = empty_cache(prompt_cache, math.prod(shape), max(sampling.max_tokens - 1, 1))
    state = add_token(_start(shape, sampling.max_tokens, cache), first.reshape(*shape, -1))
    written, ended = state.written, ~state.alive
    everyone = read = read_by_all(prompt_cache)
    several = widths(shape[1], sampling.max_tokens) if sampling.max_tokens > 1 else ()
    for width, narrower in itertools.pairwise((*several, 0)):
        if width < shape[1]:
            state = _take(state, jnp.argsort(~state.alive, axis=1)[:, :width])  # stable
            read = read_by(everyone, state.home, _seats(state.home, shape[1])[0])

        def goes_on(s, narrower=narrower):
            return (s.step < sampling.max_tokens) & (s.alive.sum(1).max() > narrower)

        state = _by_blocks(goes_on, functools.partial(next_token, read), state)
        written, ended = _put_back((written, ended), (state.written, ~state.alive), state.home)
    whole = len(prompts.tokens), samples
    tree = jax.tree.map(lambda a: a.reshape(*whole, *a.shape[2:]), (*written, ended))
    return in_rows(Rollouts(*tree), model.mesh)


def widths(rows: int, max_tokens: int) -> tuple[int, ...]:
    """With how many rows a device goes on: halves down to four, then one.

    So fewer than half of them are idle, but for the last few, of which a step costs nearly as much
    for one as for four: it reads all parameters. Every width is a program, so there is one for 16
    tokens at most: where responses are short some halves are passed over, or all.
    """
    halves = [rows]
    while halves[-1] > _FEW:
        halves.append(math.ceil(halves[-1] / 2))
    if halves[-1] > 1:
        halves.append(1)
    kept = min(len(halves), max(1, max_tokens // _EARN))
    return tuple(halves[i * len(halves) // kept] for i in range(kept))


def _start(shape, max_tokens, cache) -> _State:
    return _State(
        step=jnp.zeros((), jnp.int32),
        home=jnp.broadcast_to(jnp.arange(shape[1]), shape),
        written=_Written(
            tokens=jnp.zeros((*shape, max_tokens), jnp.int32),
            mask=jnp.zeros((*shape, max_tokens), bool),
            logps=jnp.zeros((*shape, max_tokens), jnp.float32),
        ),
        alive=jnp.ones(shape, bool),
        cache=cache,
    )


def _record(state: _State, token, logp, stop_ids) -> _State:
    def put(array, value):
        return jax.lax.dynamic_update_index_in_dim(array, value, state.step, 2)

    stops = jnp.isin(token, jnp.array(stop_ids, jnp.int32))
    new = _Written(
        tokens=jnp.where(state.alive, token, 0),
        mask=state.alive,
        logps=jnp.where(state.alive, logp, 0.0),
    )
    return state._replace(
        step=state.step + 1,
        written=jax.tree.map(put, state.written, new),
        alive=state.alive & ~stops,
    )


def _by_blocks(goes_on, body, state: _State) -> _State:
    """`body` while it `goes_on`; the newest block of the cache is set aside whenever it is full."""
    size = newest_slots(state.cache)

    def block(state):
        end = (state.step - 1) // size * size + size  # tokens in the cache then
        state = jax.lax.while_loop(lambda s: goes_on(s) & (s.step - 1 < end), body, state)
        return state._replace(cache=set_aside(state.cache, state.step - 1))

    if len(state.cache) == 1:
        return jax.lax.while_loop(goes_on, body, state)
    return jax.lax.while_loop(goes_on, block, state)


def _of_rows(array: Array, rows: Int[Array, "D W"]) -> Array:
    """Those rows of each device."""
    return jnp.take_along_axis(array, rows.reshape(*rows.shape, *[1] * (array.ndim - 2)), 1)


def _take(state: _State, rows: Int[Array, "D W"]) -> _State:
    home, written, alive = jax.tree.map(
        lambda a: _of_rows(a, rows), (state.home, state.written, state.alive)
    )
    return _State(state.step, home, written, alive, take_rows(state.cache, rows))


def _seats(home: Int[Array, "D W"], rollouts: int) -> tuple[Array, Array]:
    """For each rollout of a device the row that it is in, and whether it is in one, [D, n]."""
    same = home[:, None, :] == jnp.arange(rollouts)[:, None]
    return same.argmax(-1), same.any(-1)


def _put_back(all_rollouts, rows, home: Int[Array, "D W"]):
    """`all_rollouts`, [D, n, …], with what the rows, [D, W, …], have come to."""
    seat, seated = _seats(home, jax.tree.leaves(all_rollouts)[0].shape[1])

    def put(old, new):
        where = seated.reshape(*seated.shape, *[1] * (old.ndim - 2))
        return jnp.where(where, _of_rows(new, seat), old)

    return jax.tree.map(put, all_rollouts, rows)
