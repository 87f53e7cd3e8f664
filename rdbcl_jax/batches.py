"""The three shapes that data has on its way through a step: PromptBatch → Rollouts → TrainBatch.

Axis names used everywhere: P prompts, G rollouts per prompt, B = P·G, L prompt length,
T response length. Every array leads with P, so one sharding rule serves them all.
Masks travel as masks: nothing is ever inferred from a token id.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import typing
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

ArrayLike = Array | np.ndarray


@typing.dataclass_transform(frozen_default=True)
def pytree(cls):
    """A frozen dataclass of arrays that JAX traverses."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@pytree
class PromptBatch:
    """Prompts, left-padded: the last column is each prompt's last token."""

    tokens: Int[ArrayLike, "P L"]
    mask: Bool[ArrayLike, "P L"]
    next_position: Int[ArrayLike, "P"]  # position of the first response token
    record_ids: Int[ArrayLike, "P"]  # index into the task's records
    model_inputs: typing.Any = ()  # the model family's own; every leaf leads with P


@pytree
class Rollouts:
    """G sampled responses per prompt. `mask` covers the end token, nothing after it."""

    tokens: Int[ArrayLike, "P G T"]
    mask: Bool[ArrayLike, "P G T"]
    logps: Float[ArrayLike, "P G T"]  # the sampler's, at the sampling temperature; 0 where masked
    finished: Bool[ArrayLike, "P G"]  # ended by itself, not cut at T


@pytree
class TrainBatch:
    """Everything one update needs. Per-sample arrays are [P, G, …]: a group stays together."""

    prompts: PromptBatch
    tokens: Int[ArrayLike, "P G T"]
    mask: Bool[ArrayLike, "P G T"]
    reasoning_mask: Bool[ArrayLike, "P G T"]
    answer_mask: Bool[ArrayLike, "P G T"]
    rewards: Float[ArrayLike, "P G"]  # NaN: does not apply, as for a demonstration
    accuracies: Float[ArrayLike, "P G"]  # 1 where the answer was right; graded, in between
    demonstrated: Bool[ArrayLike, "P G"]  # responses that the policy did not sample
    prompt_values: Float[ArrayLike, "P"]  # what the method knows of each prompt: see Method
    step: Int[ArrayLike, ""]  # of the whole run: seeds what a method draws itself
    sampler_logps: Float[ArrayLike, "P G T"]  # 0 for demonstrations
    old_logps: Float[ArrayLike, "P G T"] | None = None  # None: exactly one update, old = current
    old_entropies: Float[ArrayLike, "P G T"] | None = None
    reference_logps: Float[ArrayLike, "P G T"] | None = None  # None: the method has no KL term
    reference_is_policy: Bool[ArrayLike, ""] | bool = False  # True until the first update of a task
    previous_logps: Float[ArrayLike, "P G T"] | None = None  # None: the method reads none
    previous_is_policy: Bool[ArrayLike, ""] | bool = False
    replayed: Bool[ArrayLike, "P"] | bool = False  # prompts of an earlier task
    task_step: Int[ArrayLike, ""] | int = 0  # of the task, from 0
    task_steps: Int[ArrayLike, ""] | int = 1  # how many the task has
    given: dict[str, Float[ArrayLike, "P G"]] = dataclasses.field(default_factory=dict)
    # by name, what `Method.revise` hands to the targets of each response

    @property
    def progress(self) -> Float[ArrayLike, ""]:
        """The share of the task's steps that are made once this one is, in (0, 1]."""
        return (jnp.asarray(self.task_step, jnp.float32) + 1) / self.task_steps


_measured: contextvars.ContextVar[dict[str, int] | None] = contextvars.ContextVar(
    "measured", default=None
)


@contextlib.contextmanager
def measured() -> Iterator[dict[str, int]]:
    """Collects the sizes that `fitting_size` is asked for within, the largest of each name."""
    sizes: dict[str, int] = {}
    token = _measured.set(sizes)
    try:
        yield sizes
    finally:
        _measured.reset(token)


def fitting_size(
    name: str, sizes: Sequence[int], allowed: Sequence[int], records: Sequence[str]
) -> int:
    """The smallest allowed size that holds all `sizes`, one per record; where `allowed` is empty,
    the largest of them.

    Args:
      name: what the list of allowed sizes is called, for the error.
    Raises:
      ValueError: a record that does not fit, by name.
    """
    largest = int(np.argmax(sizes))
    if (seen := _measured.get()) is not None:
        seen[name] = max(seen.get(name, 0), int(sizes[largest]))
    fitting = [size for size in allowed if size >= sizes[largest]]
    if allowed and not fitting:
        raise ValueError(
            f"record {records[largest]!r} needs {sizes[largest]} of {name}, at most "
            f"{max(allowed)} allowed; enlarge data.{name} (a run that goes on may, too) or filter: "
            "leave the record out, as data.on_bad_record=skip does"
        )
    return min(fitting) if allowed else sizes[largest]
