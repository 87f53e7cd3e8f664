"""A policy's responses to a list of records, batch by batch: the one way to ask for them.

Evaluation, pre-task statistics, collected rollouts, Fisher information and the laboratory all call
`generate`, or `generate_texts` where the texts are all that they need.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Array, Bool, Int

from rdbcl_jax.batches import PromptBatch, Rollouts
from rdbcl_jax.data.pipeline import EvalBatch, eval_batches
from rdbcl_jax.data.prompts import PromptEncoder
from rdbcl_jax.data.records import Record
from rdbcl_jax.models.interface import Params
from rdbcl_jax.policy import Policy
from rdbcl_jax.rollout.sampler import sample
from rdbcl_jax.rollout.sampling import Sampling
from rdbcl_jax.sharding import local_rows, put_batch


@dataclasses.dataclass(frozen=True)
class Generated:
    """G responses to each record of a batch.

    Attributes:
      host_prompts: this process's rows, as numpy arrays.
      prompts: the rows of all processes, on the device.
      rollouts: [P, G, …] with log-probs, on the device.
      valid: which of this process's rows count; the others only fill the last batch.
    """

    host_prompts: PromptBatch
    prompts: PromptBatch
    rollouts: Rollouts
    valid: Bool[np.ndarray, "P"]

    @property
    def record_ids(self) -> Int[np.ndarray, "P"]:
        """For each of this process's rows, the index of its record in the list that was given."""
        return np.asarray(self.host_prompts.record_ids)

    def host_rollouts(self) -> Rollouts:
        """This process's rows as numpy arrays; waits for the device."""
        return jax.tree.map(local_rows, self.rollouts)


def generate(
    policy: Policy,
    params: Params,
    records: Sequence[Record],
    sampling: Sampling,
    rng: Array,
    *,
    batch_size: int,
    samples: int = 1,
    prefixes: Sequence[str] | None = None,
) -> Iterator[Generated]:
    """`samples` responses to every record once, in order; see `responses_to`.

    Args:
      params: all parameters (`Policy.whole`).
      rng: of all batches; each folds its number in. Greedy sampling draws nothing from it.
      batch_size: records of all processes; the last batch is filled up with its last record.
      prefixes: per record, the beginning of a response, which the policy continues. The rollouts
        hold what follows it.
    """
    encoder = policy.encoder if prefixes is None else _with_room(policy.encoder, sampling)

    def encode(items, ids):
        return encoder.encode(items, ids, prefixes and [prefixes[i] for i in ids])

    batches = eval_batches(records, encode, batch_size, policy.rows)
    return responses_to(batches, policy, params, sampling, rng, samples=samples)


def responses_to(
    batches: Iterable[EvalBatch],
    policy: Policy,
    params: Params,
    sampling: Sampling,
    rng: Array,
    *,
    samples: int = 1,
) -> Iterator[Generated]:
    """`samples` responses to every prompt of batches that hold this process's rows.

    A batch is handed out once the next one has been sent to the device, which is then busy while
    the caller reads.

    Args:
      params, rng: as of `generate`.
    """
    before = None
    for number, (host_prompts, valid) in enumerate(batches):
        prompts = put_batch(host_prompts, policy.mesh)
        own = jax.random.fold_in(rng, number)
        rollouts = sample(policy.model, params, prompts, own, samples=samples, sampling=sampling)
        if before:
            yield before
        before = Generated(host_prompts, prompts, rollouts, valid)
    if before:
        yield before


def generate_texts(
    policy: Policy,
    params: Params,
    records: Sequence[Record],
    sampling: Sampling,
    rng: Array,
    *,
    batch_size: int,
    prefixes: Sequence[str],
) -> list[str]:
    """One whole response per record, in one process: its prefix and the policy's continuation. See
    `generate` for the arguments."""
    texts: list[str] = []
    for batch in generate(
        policy, params, records, sampling, rng, batch_size=batch_size, prefixes=prefixes
    ):
        rollouts = batch.host_rollouts()
        own = [prefixes[i] for i in batch.record_ids[batch.valid]]
        rows = rollouts.tokens[batch.valid, 0], rollouts.mask[batch.valid, 0]
        texts += policy.whole_texts(own, *rows)
    return texts


def _with_room(encoder: PromptEncoder, sampling: Sampling) -> PromptEncoder:
    """The encoder whose prompts may also hold the beginning of a response."""
    roomy = copy.copy(encoder)
    roomy.lengths = tuple(length + sampling.max_tokens for length in encoder.lengths)
    return roomy
