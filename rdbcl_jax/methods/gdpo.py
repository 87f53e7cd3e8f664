"""GDPO (2601.05242, as TRL 1.16 has it): each reward normalised in its group before the sum.

Rewards of different spreads then count by their weights, and not by their spreads.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from rdbcl_jax.config import RunConfig
from rdbcl_jax.core.advantages import group_advantages, normalise
from rdbcl_jax.methods.grpo import GRPO, clipped, constant
from rdbcl_jax.methods.method import Draws, Method, Targets
from rdbcl_jax.rollout.scored import ScoredRollouts


def gdpo(config: RunConfig) -> Method:
    """Σ weight · group-normalised reward, normalised over the batch."""
    chosen, rewards = GRPO().chosen(config), config.rewards

    def revise(scored: ScoredRollouts, draws: Draws) -> ScoredRollouts:
        tables = [rewards.task_weights.get(r.task, rewards.weights) for r in scored.records]
        total = np.zeros(scored.shape, np.float32)
        for name, values in scored.scores.components.items():
            weights = np.array([table.get(name, 0.0) for table in tables], np.float32)
            own = group_advantages(jnp.asarray(values).reshape(scored.shape))
            total += weights[:, None] * np.asarray(own)
        total[np.isnan(scored.scores.total).reshape(scored.shape)] = np.nan
        return dataclasses.replace(scored, given={"summed": total})

    def targets(batch, policy_logps, entropies):
        return Targets(normalise(batch.given["summed"]), constant(chosen.beta, batch))

    return clipped(config, chosen, targets, group=True, revise=revise, given=("summed",))
