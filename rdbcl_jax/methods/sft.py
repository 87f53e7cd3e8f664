"""Learning from demonstrations alone: SFT, and SFT on an RFT-trained policy's own rollouts.

Both are arms of 2506.23508: SFT learns fast and forgets; on correct rollouts of a policy that RL
has trained on the task it learns fast and keeps.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from rdbcl_jax.config import RunConfig
from rdbcl_jax.core.losses import LossTerms
from rdbcl_jax.core.masked import masked_sum_and_count, select
from rdbcl_jax.methods.demonstrations import DEMONSTRATED, DemonstrationOptions, demonstration
from rdbcl_jax.methods.method import Method, Targets


def sft(config: RunConfig) -> Method:
    """The likelihood of every record's demonstration; no KL term."""
    options = config.section(DemonstrationOptions)
    return supervised(config.method, demonstration(options)).reading(*DEMONSTRATED)


def rft_sft(config: RunConfig) -> Method:
    """SFT whose demonstrations are the collected rollouts."""
    options = dataclasses.replace(config.section(DemonstrationOptions), target="rollouts")
    return supervised(config.method, demonstration(options)).reading("demonstrations.rollouts")


def supervised(name: str = "sft", demonstration=None) -> Method:
    return Method(
        name=name,
        targets=all_alike,
        loss=negative_log_likelihood,
        responses="demonstrations",
        demonstration=demonstration,
    )


def all_alike(batch, policy_logps, entropies) -> Targets:
    return Targets(jnp.ones(batch.rewards.shape))


def negative_log_likelihood(logps, old_logps, advantages, mask, **unused) -> LossTerms:
    """−log π of the demonstrations' tokens, mean over all tokens; nats per token."""
    total, count = masked_sum_and_count(-select(logps, mask), mask)
    pair = jax.lax.stop_gradient((total, count))
    return LossTerms(total, count, {"loss": pair, "nll": pair})
