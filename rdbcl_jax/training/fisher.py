"""How much each parameter matters to what a policy does: the diagonal Fisher information of EWC."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from rdbcl_jax.batches import PromptBatch, Rollouts
from rdbcl_jax.data.records import Record
from rdbcl_jax.finite import check_finite
from rdbcl_jax.models import partition
from rdbcl_jax.models.interface import VLM
from rdbcl_jax.models.partition import Frozen, Trained
from rdbcl_jax.policy import Policy
from rdbcl_jax.rollout.generate import generate
from rdbcl_jax.rollout.sampling import Sampling
from rdbcl_jax.sharding import RowShard, put_batch
from rdbcl_jax.training.lengths import cut_to_longest
from rdbcl_jax.training.logprobs import response_logprobs


def estimate_fisher(
    policy: Policy,
    params: Trained,
    records: Sequence[Record],
    sampling: Sampling,
    key: Array,
    *,
    batch_size: int,
    chunk_size: int,
) -> Trained:
    """E[(∇ log π(y | x))²] per parameter, over one sampled response to each record; float32.

    A sequence is one observation (1612.00796 takes one class label): its log-prob is the sum over
    its tokens.

    Args:
      batch_size: records at once, at most, which divides over the mesh.
    """
    batch_size, total = at_once(len(records), batch_size, policy.rows), None
    for batch in generate(
        policy, policy.to_read(params), records, sampling, key, batch_size=batch_size
    ):
        squares = squared_gradients(
            policy.model,
            params,
            policy.frozen,
            batch.prompts,
            batch.rollouts,
            put_batch(batch.valid, policy.mesh),
            temperature=sampling.temperature,
            chunk_size=chunk_size,
        )
        total = squares if total is None else jax.tree.map(_sum, total, squares)
    found = jax.tree.map(lambda a: _share(a, len(records)), total)
    check_finite(found, "the Fisher information of the task is not used")
    return found


def at_once(records: int, batch_size: int, rows: RowShard) -> int:
    """How many of so many records a batch of `batch_size` at most holds: as few as divide over the
    mesh where they are fewer."""
    return min(batch_size, -(-records // rows.count) * rows.count)


@functools.partial(jax.jit, donate_argnums=0)
def _sum(total, part):
    return total + part


@functools.partial(jax.jit, donate_argnums=0)
def _share(total, count):
    return total / count


@functools.partial(jax.jit, static_argnames=("model", "temperature", "chunk_size"))
def squared_gradients(
    model: VLM,
    params: Trained,
    frozen: Frozen,
    prompts: PromptBatch,
    rollouts: Rollouts,
    valid: Bool[Array, "P"],
    *,
    temperature: float,
    chunk_size: int,
) -> Trained:
    """Σ over the responses to the P prompts that are `valid` of (∇ log π)², like `params`; one
    backward pass each."""

    def log_likelihood(params, prompts, rollouts):
        logps = response_logprobs(
            model,
            partition.join(params, frozen),
            prompts,
            rollouts.tokens,
            rollouts.mask,
            temperature=temperature,
            chunk_size=chunk_size,
        )
        return jnp.where(rollouts.mask, logps, 0.0).sum()

    gradient = functools.partial(jax.grad(log_likelihood), params)

    def add(total, row):
        prompts, rollouts = jax.tree.map(lambda a: a[None], row[:2])
        grads = cut_to_longest(gradient, rollouts.mask, prompts, rollouts)

        def plus(total, grad):  # a row that only fills the batch may be of any number
            return total + jnp.where(row[2], jnp.square(grad.astype(jnp.float32)), 0.0)

        return jax.tree.map(plus, total, grads), None

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    return jax.lax.scan(add, zeros, (prompts, rollouts, valid))[0]
