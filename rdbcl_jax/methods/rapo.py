"""RaPO: a reward for staying near the previous policy, beside a KL to the base (2605.09640)."""

from __future__ import annotations

from ml_collections import ConfigDict

from rdbcl_jax.core.advantages import retention_reward
from rdbcl_jax.methods.grpo import constant, group_baseline, loss, options
from rdbcl_jax.methods.method import Method, Targets


def rapo(config: ConfigDict) -> Method:
    """GRPO on reward + retention reward; `config.rapo` holds its weight and sharpness."""
    own, chosen = config.rapo, options(config, reference="base")
    advantages, beta = group_baseline(chosen["advantage_scale"]), chosen["beta"]

    def targets(batch, policy_logps, entropies):
        retention = retention_reward(
            policy_logps,
            batch.previous_logps,
            batch.mask,
            weight=own.weight,
            sharpness=own.sharpness,
        )
        total = batch.rewards + retention
        return Targets(advantages(total), constant(beta, batch), {"retention": retention})

    return Method(
        name=config.method,
        targets=targets,
        loss=loss(config, chosen),
        reference=chosen["reference"] if beta else None,
        policy=True,
        previous=True,
    )
