"""Ours: rehearsal without old pictures or answers, an anchor, and weights averaged at boundaries.

A share of each batch is old questions about the new task's pictures, rewarded by the answers of the
policy from before the task (pseudo-rehearsal, after Robins 1995); the KL term keeps what is said to
them; and of that policy's weights a fifth stays. Each alone gains little; together they gained most
of all that was tried without old records (docs/studies/without_old_data.md).
"""

from __future__ import annotations

import dataclasses

from rdbcl_jax.config import RunConfig
from rdbcl_jax.methods.classic import ReplayOptions, rehearsing
from rdbcl_jax.methods.grpo import GRPO, policy_gradient
from rdbcl_jax.methods.method import Method

BETA, MERGE = 0.3, 0.2  # where the config says nothing else


def pseudo_rehearsal(config: RunConfig) -> Method:
    """`replay` as with `replay.kept=questions`, β 0.3 and `training.merge=0.2`.

    Raises:
      ValueError: `replay.prompts=mastered`, which old answers would have to tell.
    """
    if config.section(ReplayOptions).prompts == "mastered":
        raise ValueError(
            "config.replay.prompts is 'mastered', which gold answers tell, and pseudo_rehearsal "
            "keeps none; expected 'all'"
        )
    anchored = policy_gradient(config, GRPO(beta=BETA).chosen(config))
    return dataclasses.replace(rehearsing(config, anchored), data="questions", merge=MERGE)
