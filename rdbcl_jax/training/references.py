"""Log-probs under the frozen policies that a method reads, and the one fact that saves a pass.

Until a task's first update the policy from before it *is* the policy. A frozen policy that is the
one from before the task then needs no pass of its own: in its place stand the log-probs of the
policy, so that KL is exactly 0 and the ratio RP exactly 1. A batch carries the fact as an array
beside the log-probs (`reference_is_policy`, `previous_is_policy`), so that one compiled update
serves a task's first step and all others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from rdbcl_jax.batches import TrainBatch
from rdbcl_jax.methods.method import Method
from rdbcl_jax.models.partition import Trained
from rdbcl_jax.rollout.scored import Responses


def frozen_logprobs(
    logprobs: Callable[..., Array],
    method: Method,
    responses: Responses,
    *,
    previous: Trained,
    reference: Trained,
    untouched: bool,
) -> dict[str, Any]:
    """The train batch's fields of frozen policies, None where the method reads none.

    Args:
      logprobs: (parameters, prompts, responses) → [P, G, T].
      previous: the policy from before the task.
      reference: the policy of the KL term; where it is the same object it is run once.
      untouched: no update has been made yet in the task: the policy is still the previous one. (A
        first step whose rewards say nothing makes none.)
    """
    found = responses.all
    seen: dict[int, Any] = {}

    def logps(params, wanted: bool):
        if not wanted:
            return None
        if untouched and params is previous:
            return found.logps  # only its shape is read: `with_policy` puts the policy's there
        if id(params) not in seen:
            seen[id(params)] = logprobs(params, responses.prompts, found)
        return seen[id(params)]

    return {
        "previous_logps": logps(previous, method.previous),
        "previous_is_policy": jnp.asarray(untouched),
        "reference_logps": logps(reference, method.reference is not None),
        "reference_is_policy": jnp.asarray(untouched and reference is previous),
    }


def with_policy(batch: TrainBatch, policy_logps: Float[Array, "P G T"]) -> TrainBatch:
    """The batch with the policy's log-probs wherever a frozen policy is the policy."""

    def resolve(logps, is_policy):
        return None if logps is None else jnp.where(is_policy, policy_logps, logps)

    return dataclasses.replace(
        batch,
        reference_logps=resolve(batch.reference_logps, batch.reference_is_policy),
        previous_logps=resolve(batch.previous_logps, batch.previous_is_policy),
    )


def after_first_update(batch: TrainBatch) -> TrainBatch:
    """The batch for the next update on the same responses: the policy has left the frozen ones that
    it was, and those are now the policy that sampled."""
    never = jnp.asarray(False)
    return dataclasses.replace(
        with_policy(batch, batch.old_logps), reference_is_policy=never, previous_is_policy=never
    )
