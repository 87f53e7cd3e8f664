"""Of an update that was left out since a number is not finite: which number, of which record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from rdbcl_jax.batches import TrainBatch
from rdbcl_jax.models.partition import Trained
from rdbcl_jax.rollout.scored import ScoredRollouts
from rdbcl_jax.sharding import local_rows
from rdbcl_jax.training.learner import Learner


def what_was_not_finite(
    learner: Learner,
    params: Trained,
    scored: ScoredRollouts,
    batch: TrainBatch,
    device: tuple[dict, dict],
) -> str:
    """What was not finite first in a step's update, in the order in which things are computed, and
    of which record: `the log-probs of record 'a' under the policy (NaN)`.

    Args:
      params: those that the update started from.
      scored, batch: what it learned from.
      device: its metrics and per-sample values.
    """
    metrics, samples = jax.device_get(device[0]), device[1]
    for name, values in _quantities(learner, params, batch, samples):
        rows = values.reshape(len(values), -1)
        if (bad := ~np.isfinite(rows)).any():
            row = int(bad.any(1).argmax())
            value = rows[row][bad[row]][0]
            return f"{name} of record {scored.records[row].id!r} ({_shown(value)})"
    for name in ("loss", "grad_norm"):
        if not np.isfinite(metrics[name]):
            first, last = scored.records[0].id, scored.records[-1].id
            named = {"loss": "the loss", "grad_norm": "the gradient's norm"}[name]
            return f"{named} of records {first!r} to {last!r} ({_shown(metrics[name])})"
    return "nothing that this process holds"


def _quantities(
    learner: Learner, params: Trained, batch: Any, samples: dict
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, values that lead with the rows of this process); 0 where a value is not used."""
    # first, in all processes at once: one that finds something in its own rows asks no further
    policy = local_rows(learner.logprobs(params, batch.prompts, batch))
    rewards = local_rows(batch.rewards)
    yield "the reward", np.where(np.isnan(rewards), 0.0, rewards)  # NaN: does not apply
    mask = local_rows(batch.mask)
    yield "the sampler's log-probs", np.where(mask, local_rows(batch.sampler_logps), 0.0)
    yield "the policy's log-probs", np.where(mask, policy, 0.0)
    for name in ("old", "previous", "reference"):
        logps = getattr(batch, f"{name}_logps")
        if logps is not None:
            yield f"the {name} policy's log-probs", np.where(mask, local_rows(logps), 0.0)
    for name, values in samples.items():
        yield f"the sample's {name}", local_rows(values)


def _shown(value: float) -> str:
    return "NaN" if np.isnan(value) else str(value)
