"""The classics of continual learning, on top of GRPO.

- `joint`: all tasks at once, the upper bound: every stage trains on the prompts of all.
- `replay`: a share of every batch is prompts of earlier tasks.
- `ewc`: a quadratic penalty on what mattered before (1612.00796; one running Fisher information for
  all earlier tasks, 1805.06370).
- `lwf`: learning without forgetting (1606.09282) for policies, a reconstruction: the previous
  policy's own responses to the task's prompts join each group as targets, which gives the gradient
  of KL(π_previous‖π_θ) over whole responses.
- `zero_shot`: nothing is learned, the lower bound.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool

from rdbcl_jax.batches import TrainBatch
from rdbcl_jax.config import RunConfig
from rdbcl_jax.methods.grpo import GRPO, policy_gradient, replacing
from rdbcl_jax.methods.method import Method, fewest
from rdbcl_jax.sections import (
    Count,
    InnerShare,
    Natural,
    NonNegative,
    Refused,
    Section,
    Share,
    section,
)


@section("replay")
@dataclasses.dataclass(frozen=True)
class ReplayOptions(Section):
    """Of `replay`, `portable_replay` and `pseudo_rehearsal` (questions, whatever `kept` says).

    Attributes:
      fraction: the share of a batch's prompts that comes from earlier tasks.
      per_task: records kept of each task.
      kept: of a record, "records": all of it; "questions": its text alone. Old questions are then
        asked about the new task's pictures, and the policy from before the task gives the answers
        that are rewarded (pseudo-rehearsal). Reward functions see none of the old columns.
      prompts: of the records kept, "all" are rehearsed, or those alone that are "mastered": the
        policy from before the task answers them right (after 2606.03087; the rule is ours).
      anchor: what a KL term applies to: all samples, or those of old prompts.
    """

    fraction: InnerShare = 0.25
    per_task: Natural = 256
    kept: Literal["records", "questions"] = "records"
    prompts: Literal["all", "mastered"] = "all"
    anchor: Literal["all", "old"] = "all"

    def __post_init__(self):
        super().__post_init__()
        if self.prompts == "mastered" and self.kept == "questions":
            raise Refused(
                "prompts",
                "is 'mastered', which gold answers tell, and with replay.kept=questions none are "
                "kept; expected 'all'",
            )

    def rehearsed(self, size: int) -> int:
        """How many of a batch's prompts come from earlier tasks, once there are some."""
        return min(max(round(self.fraction * size), 1), size - 1)


@section("ewc")
@dataclasses.dataclass(frozen=True)
class EWCOptions(Section):
    """Of `ewc`.

    Attributes:
      strength: of the quadratic penalty.
      sequences: on which the Fisher information is estimated.
      decay: the share of the old information that is kept after a task.
    """

    strength: NonNegative = 100.0
    sequences: Count = 256
    decay: Share = 1.0


@section("lwf")
@dataclasses.dataclass(frozen=True)
class LwFOptions(Section):
    """Of `lwf`.

    Attributes:
      weight: the advantage of the previous policy's responses.
    """

    weight: NonNegative = 1.0


def _grpo(config: RunConfig, **fields) -> Method:
    """GRPO, without a KL term unless `config.kl.beta` asks for one: the classic is the anchor."""
    return policy_gradient(config, GRPO(beta=0.0).chosen(config), **fields)


def joint(config: RunConfig) -> Method:
    return replacing(_grpo(config, data="joint"), GRPO().chosen(config))


def replay(config: RunConfig) -> Method:
    return rehearsing(config, _grpo(config))


def rehearsing(config: RunConfig, method: Method) -> Method:
    """The method on batches of which `ReplayOptions.fraction` is prompts of earlier tasks, whose
    first `per_task` records are kept.

    `anchor`: its KL term, where it has one, applies to "all" samples, or only to those of "old"
    prompts, which slows nothing that is new.
    """
    options = config.section(ReplayOptions)
    anchor = options.anchor

    def targets(batch, policy_logps, entropies):
        found = method.targets(batch, policy_logps, entropies)
        if anchor == "all":
            return found
        return found._replace(kl_coef=jnp.where(of_old_prompts(batch), found.kl_coef, 0.0))

    least = fewest(options.rehearsed, "replay.fraction leaves no prompt of earlier tasks")
    return dataclasses.replace(
        method.reading("replay").without("rollout.resample"),
        targets=targets,
        data="questions" if options.kept == "questions" else "replay",
        partly_anchored=True,
        fewest_prompts=least,
    )


def of_old_prompts(batch: TrainBatch) -> Bool[Array, "P 1"]:
    """The samples of earlier tasks' prompts."""
    return jnp.asarray(batch.replayed)[..., None]


def ewc(config: RunConfig) -> Method:
    method = _grpo(config, consolidation=config.section(EWCOptions).strength)
    return replacing(method, GRPO().chosen(config)).reading("ewc")


def lwf(config: RunConfig) -> Method:
    """Each group gets one response of the previous policy, with a fixed advantage."""
    method, weight = _grpo(config, previous_responses=1), config.section(LwFOptions).weight

    def targets(batch, policy_logps, entropies):
        own = method.targets(batch, policy_logps, entropies)
        targets = weight * batch.demonstrated.astype(jnp.float32)
        return own._replace(advantages=own.advantages + targets)

    return dataclasses.replace(method.reading("lwf"), targets=targets)


def zero_shot(config: RunConfig) -> Method:
    return dataclasses.replace(_grpo(config, responses="none"), reads=frozenset())
