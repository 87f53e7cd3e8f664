"""RaPO: a reward for staying near the previous policy, beside a KL to the base (2605.09640).

The first task, which has none before it, has no such reward. `rapo.ctan` adds the paper's second
half, the normalisation of advantages across tasks; its momentum is not public, so that is a
reconstruction.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from rdbcl_jax.config import RunConfig
from rdbcl_jax.core.advantages import group_advantages, retention_reward
from rdbcl_jax.core.masked import masked_mean
from rdbcl_jax.methods.grpo import GRPO, clipped, constant, group_baseline
from rdbcl_jax.methods.method import Method, Targets, Tracker
from rdbcl_jax.sections import Decay, NonNegative, Section, section

EPS = 1e-4  # added to a standard deviation, in units of reward


@section("rapo")
@dataclasses.dataclass(frozen=True)
class RaPOOptions(Section):
    """Of `rapo`, see `core.advantages.retention_reward`.

    Attributes:
      weight: of the retention reward, beside the task's.
      sharpness: how fast it falls with the distance to the previous policy.
      ctan: divide the centred rewards by a moving average, over the steps of all tasks, of the
        standard deviation of the task's reward in the groups where it differs, and not by their
        own.
      momentum: of that average.
    """

    weight: NonNegative = 0.5
    sharpness: NonNegative = 20.0
    ctan: bool = False
    momentum: Decay = 0.9


def rapo(config: RunConfig) -> Method:
    """GRPO on reward + retention reward."""
    own, chosen = config.section(RaPOOptions), GRPO(reference="base").chosen(config)
    baseline = group_baseline(chosen.advantage_scale)
    if own.ctan and config.loss.advantage_scale:
        raise ValueError(
            f"config.loss.advantage_scale is {config.loss.advantage_scale!r}, and config.rapo.ctan "
            "divides by its own average; expected None, or no ctan"
        )

    def advantages(total, std):
        if not own.ctan:
            return baseline(total)
        across = group_advantages(total, scale="none") / (std + EPS)
        return jnp.where(jnp.isnan(std), baseline(total), across)

    def targets(batch, policy_logps, entropies):
        retention = retention_reward(
            policy_logps,
            batch.previous_logps,
            batch.mask,
            weight=own.weight,
            sharpness=own.sharpness,
        )
        # of one that is masked whole, since it was cut, nothing is known: the mean of the others
        known = batch.mask.any(-1)
        mean = masked_mean(retention, known, axis=-1)[:, None]
        retention = jnp.where(known, retention, mean)
        retention = jnp.where(batch.step == batch.task_step, 0.0, retention)  # of the first task
        found = advantages(batch.rewards + retention, batch.prompt_values[:, None])
        return Targets(found, constant(chosen.beta, batch), {"retention": retention})

    method = clipped(
        config,
        chosen,
        targets,
        group=True,
        policy=True,
        previous=True,
        tracker=moving_std(own.momentum) if own.ctan else None,
    )
    return method.reading("rapo", "loss.advantage_scale")


def moving_std(momentum: float) -> Tracker:
    """The moving average of the mean standard deviation of the prompts' rewards, of the prompts
    that have one; NaN before the first of them, until which groups are divided by their own."""

    def observe(std, prompts, rewards, kl):
        known = [rewards[(prompts == p) & ~np.isnan(rewards)] for p in np.unique(prompts)]
        found = [group.std(ddof=1) for group in known if len(group) and np.ptp(group) > 0]
        if not found:
            return std
        now = np.mean(found)
        moved = now if np.isnan(std) else momentum * std + (1 - momentum) * now
        return np.asarray(moved, np.float32)

    return Tracker(
        start=lambda success: np.full((), np.nan, np.float32),
        baselines=lambda std, prompts: np.full(len(prompts), std, np.float32),
        observe=observe,
        carried=True,
    )
