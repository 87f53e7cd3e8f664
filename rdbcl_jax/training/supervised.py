"""Supervised fine-tuning on a stream of demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rdbcl_jax.batches import TrainBatch
from rdbcl_jax.config import OptimizerConfig
from rdbcl_jax.data.pipeline import batches, indices
from rdbcl_jax.data.records import Record
from rdbcl_jax.finite import NotFinite
from rdbcl_jax.methods.sft import supervised
from rdbcl_jax.models.partition import Trained
from rdbcl_jax.policy import Policy
from rdbcl_jax.sharding import put_batch
from rdbcl_jax.training.optimizer import make_optimizer
from rdbcl_jax.training.state import make_init
from rdbcl_jax.training.update import UpdateConfig, make_update


def fine_tune(
    policy: Policy,
    params: Trained,
    demonstrations: Sequence[tuple[Record, str]],
    optimizer: OptimizerConfig,
    *,
    steps: int,
    batch_size: int,
    chunk_size: int,
    seed: int,
    threads: int = 2,
    max_skipped: int = 5,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Trained:
    """`steps` updates on batches of (record, response); returns the new parameters.

    `on_step` gets the loss of the step before, so that the device is never waited for.

    Raises:
      NotFinite: the loss or gradient of `max_skipped` steps in a row was not finite.
    """
    transformation = make_optimizer(optimizer, steps)
    config = UpdateConfig(chunk_size=chunk_size, entropy=False)
    init, shardings = make_init(params, transformation, policy.mesh)
    update = make_update(policy.model, transformation, supervised(), config, shardings)
    state = init(params)
    feed = batches(
        demonstrations,
        lambda items, ids: supervised_batch(policy, items),
        order=indices(len(demonstrations), batch_size, seed),
        shard=policy.rows,
        threads=threads,
    )
    before = None
    for step in range(steps):
        state, metrics, _ = update(state, policy.frozen, put_batch(next(feed), policy.mesh))
        if before is not None:
            _check(before, max_skipped)
            on_step(step, float(before["loss"]))
        before = metrics
    if before is not None:
        _check(before, max_skipped)
    return state.params


def _check(metrics: dict, max_skipped: int) -> None:
    """Raises NotFinite where too many updates in a row were left out."""
    if (skipped := int(metrics["skipped_in_a_row"])) >= max_skipped:
        raise NotFinite(
            f"supervised fine-tuning: {skipped} updates in a row were left out, since their loss "
            f"({metrics['loss']:g}) or gradient (of norm {metrics['grad_norm']:g}) was not finite; "
            "lower the learning rate"
        )


def supervised_batch(policy: Policy, items: Sequence[tuple[Record, str]]) -> TrainBatch:
    """One demonstration per prompt, as the update takes it; numpy arrays."""
    records, responses = zip(*items, strict=True)
    batch = policy.encoder.encode_supervised(records, responses)
    nothing, ones = np.zeros_like(batch.mask), np.ones(batch.mask.shape[:2], np.float32)
    return TrainBatch(
        prompts=batch.prompts,
        tokens=batch.tokens,
        mask=batch.mask,
        reasoning_mask=nothing,
        answer_mask=nothing,
        rewards=np.full_like(ones, np.nan),
        accuracies=ones,
        demonstrated=ones.astype(bool),
        prompt_values=np.zeros(len(ones), np.float32),
        step=np.zeros((), np.int32),
        sampler_logps=np.zeros(batch.mask.shape, np.float32),
    )
