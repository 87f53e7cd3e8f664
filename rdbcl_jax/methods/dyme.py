"""DyME: memorise where the policy knows nothing, explore where it knows something (2506.23061).

Give the thinking reward its place in `config.rewards.functions`, for instance
`{"thinking": "rdbcl_jax.rewards.thinking:hint_f1"}` with weight 1; any function will do as the
checker. `config.demonstrations.refiner` writes the reasoning of reference responses.
"""

from __future__ import annotations

import dataclasses

from rdbcl_jax.config import RunConfig
from rdbcl_jax.core.advantages import memorise_or_explore
from rdbcl_jax.methods.demonstrations import DEMONSTRATED, DemonstrationOptions, demonstration
from rdbcl_jax.methods.grpo import GRPO, clipped, constant, group_baseline
from rdbcl_jax.methods.method import Method, Targets
from rdbcl_jax.methods.revisions import memorising
from rdbcl_jax.sections import Refused, Section, section


@section("dyme")
@dataclasses.dataclass(frozen=True)
class DyMEOptions(Section):
    """Of `dyme`: which of its halves are on.

    Attributes:
      memorise: groups that are all wrong learn the reference response.
      explore: the other groups learn as GRPO's do.
    """

    memorise: bool = True
    explore: bool = True

    def __post_init__(self):
        super().__post_init__()
        if not (self.memorise or self.explore):
            raise Refused("explore", "is False beside memorise=False, and nothing would be learned")


def dyme(config: RunConfig) -> Method:
    """GRPO without KL, except that groups that are all wrong learn the reference response."""
    own, chosen = config.section(DyMEOptions), GRPO(beta=0.0).chosen(config)
    explore = group_baseline(chosen.advantage_scale)
    taught = demonstration(config.section(DemonstrationOptions)) if own.memorise else None

    def targets(batch, policy_logps, entropies):
        if own.memorise:
            advantages = memorise_or_explore(batch.rewards, batch.accuracies, batch.demonstrated)
        else:
            advantages = explore(batch.rewards)
        if not own.explore:
            advantages = advantages * batch.demonstrated
        return Targets(advantages, constant(chosen.beta, batch))

    method = clipped(
        config,
        chosen,
        targets,
        group=own.explore,
        demonstration=taught,
        revise=memorising(taught) if taught else None,
    )
    return method.reading("dyme", *(DEMONSTRATED if taught else ()))
