"""GRPO with one constant KL coefficient: the baseline that RDB-CL is compared with."""

from __future__ import annotations

import functools

import jax.numpy as jnp
from ml_collections import ConfigDict

from rdbcl_jax.core.advantages import group_advantages
from rdbcl_jax.core.losses import policy_loss_terms
from rdbcl_jax.methods.method import KLCoefficients, Method


def grpo(config: ConfigDict) -> Method:
    """Group-normalised advantages, clipped surrogate, β · KL with the same β for every sample."""
    return policy_gradient(config, constant(config.kl.beta) if config.kl.beta else None)


def policy_gradient(config: ConfigDict, kl_coefficients: KLCoefficients | None) -> Method:
    """The part that the GRPO family shares; `config.loss` holds the loss's options."""
    loss = config.loss
    return Method(
        name=config.method,
        advantages=functools.partial(group_advantages, scale=loss.advantage_scale),
        kl_coefficients=kl_coefficients,
        loss=functools.partial(
            policy_loss_terms,
            kl_kind=config.kl.kind,
            clip_low=loss.clip_low,
            clip_high=loss.clip_high,
            dual_clip=loss.dual_clip or None,
            ratio_level=loss.ratio_level,
            aggregation=loss.aggregation,
            max_length=config.rollout.max_tokens,
        ),
    )


def constant(beta: float) -> KLCoefficients:
    def kl_coefficients(batch, policy_logps):
        return jnp.full(batch.advantages.shape, beta, jnp.float32), {}

    return kl_coefficients
