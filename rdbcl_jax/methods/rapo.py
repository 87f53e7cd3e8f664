"""RaPO: a reward for staying near the previous policy, beside a KL to the base (2605.09640).

Its normalisation of advantages across tasks (CTAN) is left out.
"""

from __future__ import annotations

import dataclasses

from rdbcl_jax.config import RunConfig
from rdbcl_jax.core.advantages import retention_reward
from rdbcl_jax.methods.grpo import GRPO, constant, group_baseline, loss
from rdbcl_jax.methods.method import Method, Targets
from rdbcl_jax.sections import NonNegative, Section, section


@section("rapo")
@dataclasses.dataclass(frozen=True)
class RaPOOptions(Section):
    """Of `rapo`, see `core.advantages.retention_reward`.

    Attributes:
      weight: of the retention reward, beside the task's.
      sharpness: how fast it falls with the distance to the previous policy.
    """

    weight: NonNegative = 0.5
    sharpness: NonNegative = 20.0


def rapo(config: RunConfig) -> Method:
    """GRPO on reward + retention reward."""
    own, chosen = config.section(RaPOOptions), GRPO(reference="base").chosen(config)
    advantages = group_baseline(chosen.advantage_scale)

    def targets(batch, policy_logps, entropies):
        retention = retention_reward(
            policy_logps,
            batch.previous_logps,
            batch.mask,
            weight=own.weight,
            sharpness=own.sharpness,
        )
        total = batch.rewards + retention
        return Targets(advantages(total), constant(chosen.beta, batch), {"retention": retention})

    return Method(
        name=config.method,
        targets=targets,
        loss=loss(config, chosen),
        reference=chosen.reference if chosen.beta else None,
        group=True,
        policy=True,
        previous=True,
    )
