"""A policy's responses to a list of records, batch by batch: whole ones, or from a beginning on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool
from numpy import ndarray

from rdbcl_jax.batches import PromptBatch, Rollouts
from rdbcl_jax.data.pipeline import Shard, eval_batches
from rdbcl_jax.data.records import Record
from rdbcl_jax.models.interface import Params
from rdbcl_jax.policy import Policy
from rdbcl_jax.rollout.sampler import sample
from rdbcl_jax.rollout.sampling import Sampling
from rdbcl_jax.sharding import local_rows, put_batch


class Answered(NamedTuple):
    """A batch of P records and G responses to each."""

    host_prompts: PromptBatch  # this process's
    prompts: PromptBatch  # the same on the device, all processes' rows
    rollouts: Rollouts  # [P, G, …], on the device
    valid: Bool[ndarray, "P"]  # of this process's rows; False only fills the last batch


def answers(
    policy: Policy,
    params: Params,
    records: Sequence[Any],
    sampling: Sampling,
    key: Array,
    *,
    batch_size: int,
    samples: int = 1,
    encode: Callable[[list[Any], ndarray], PromptBatch] | None = None,
) -> Iterator[Answered]:
    """Responses to every record once, in order. Each batch is handed out while it is computed.

    Args:
      params: all parameters (`Policy.whole`).
      encode: of records and their indices; by default the policy's own encoder.
    """
    shard = Shard(jax.process_index(), jax.process_count())
    batches = eval_batches(records, encode or policy.encoder.encode, batch_size, shard)
    for number, (host_prompts, valid) in enumerate(batches):
        prompts = put_batch(host_prompts, policy.mesh)
        draw = jax.random.fold_in(key, number)
        rollouts = sample(policy.model, params, prompts, draw, samples=samples, sampling=sampling)
        yield Answered(host_prompts, prompts, rollouts, valid)


def continued(
    policy: Policy,
    params: Params,
    records: Sequence[Record],
    prefixes: Sequence[str],
    sampling: Sampling,
    key: Array,
    *,
    batch_size: int,
) -> list[str]:
    """One whole response per record: its prefix, and what the policy says after it."""
    encoder = copy.copy(policy.encoder)  # with room for the beginning of a response
    encoder.lengths = tuple(length + sampling.max_tokens for length in encoder.lengths)

    def encode(items, ids):
        return encoder.encode(items, ids, [prefixes[i] for i in ids])

    texts: list[str] = []
    for batch in answers(
        policy, params, records, sampling, key, batch_size=batch_size, encode=encode
    ):
        arrays = (batch.rollouts.tokens, batch.rollouts.mask)
        tokens, mask = (local_rows(a)[batch.valid, 0] for a in arrays)
        texts += policy.texts(tokens, mask)
    return [p + policy.joint + t if p else t for p, t in zip(prefixes, texts, strict=True)]
