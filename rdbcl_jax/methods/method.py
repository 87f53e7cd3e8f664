"""The contract of a method: what it makes of responses and rewards; all else is the engine's.

A method is a description. Its formulas are composed of `core` functions; its other fields ask the
engine for what the formulas need. It owns no arrays: a tracker's state and what a method keeps
between tasks live in the engine's checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

from jaxtyping import Array, Float, Int

from rdbcl_jax.batches import TrainBatch
from rdbcl_jax.config import Reference
from rdbcl_jax.core.losses import LossTerms, policy_loss_terms
from rdbcl_jax.data.records import Record


class Targets(NamedTuple):
    """What a method wants of each sample. No gradient flows through any of it."""

    advantages: Float[Array, "P G"] | Float[Array, "P G T"]
    kl_coef: float | Float[Array, "P G"] = 0.0
    values: dict[str, Float[Array, "P G"]] = {}  # noqa: RUF012 (worth logging, such as RP)


# (batch, log-probs of the policy that sampled, its entropies where `Method.entropies`) -> Targets.
# Runs inside the jitted update, over the whole batch.
TargetFunction = Callable[
    [TrainBatch, Float[Array, "P G T"], Float[Array, "P G T"] | None], Targets
]


class Tracker(NamedTuple):
    """A memory of each prompt of a task, as pure functions on a pytree of arrays.

    Attributes:
      start: success of each prompt under the policy from before the task, [N] in [0, 1] (½ where
        unknown) → state.
      baselines: (state, prompts [P]) → [P], the update's `prompt_values`.
      observe: (state, prompts [n], rewards [n], mean KL to the reference in the previous update,
        or None) → state. Called once per batch, with the rows of all processes.
    """

    start: Callable[[Float[Array, "N"]], object]
    baselines: Callable[[object, Int[Array, "P"]], Float[Array, "P"]]
    observe: Callable[[object, Int[Array, "n"], Float[Array, "n"], float | None], object]


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to learn a task.

    Attributes:
      name: as in `config.method`.
      targets: advantages and KL coefficients of a batch.
      loss: sums and counts of the loss, with `core.losses.policy_loss_terms`' signature.
      responses: "sampled" by the policy; "demonstrations": `demonstration` of each record, and
        nothing is sampled; "none": nothing is learned.
      reference: the frozen policy of the KL term; None: no KL term, and it is never run.
        "previous": from before the task. "base": from before the first. "ema": the moving
        average of the policies at the tasks' boundaries.
      policy: the targets read the log-probs of the policy that sampled. (Under gradient
        accumulation they cost a pass of their own.)
      previous: the targets read the log-probs of the policy from before the task; implies `policy`.
      entropies: the targets read the policy's entropies; implies `policy`.
      demonstration: the reference response of a record.
      group: advantages compare the responses of a prompt, so one alone would say nothing.
      memorise: put the demonstration in place of the first response of an all-wrong group.
      previous_responses: how many responses per prompt of the policy from before the task join the
        group, as demonstrations.
      pretask: the pre-task statistic of each prompt, from one response of the policy from before
        the task, as `prompt_values`: the "confidence" of its reasoning, or its "success", with
        which a tracker starts.
      tracker: a memory of each prompt within a task.
      resample: up to this many more batches are drawn to replace groups whose rewards are all
        equal (dynamic sampling); 0: off.
      data: a task's own prompts; those of all tasks ("joint"); or its own and some of the tasks
        before it ("replay").
      consolidation: strength of the quadratic penalty on what mattered to earlier tasks (EWC).
    """

    name: str
    targets: TargetFunction
    loss: Callable[..., LossTerms] = policy_loss_terms
    responses: Literal["sampled", "demonstrations", "none"] = "sampled"
    reference: Reference | None = None
    policy: bool = False
    previous: bool = False
    entropies: bool = False
    demonstration: Callable[[Record], str | None] | None = None
    group: bool = False
    memorise: bool = False
    previous_responses: int = 0
    pretask: Literal["", "confidence", "success"] = ""
    tracker: Tracker | None = None
    resample: int = 0
    data: Literal["task", "joint", "replay"] = "task"
    consolidation: float = 0.0
