"""RDB-CL (2605.18903): each sample's KL anchor scaled by its Reasoning Portability.

The formulas are a reconstruction, see `core.portability`. `config.portability` chooses kind, level
and mapping of RP, and the controls that a claim about it needs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rdbcl_jax.batches import TrainBatch
from rdbcl_jax.core.kl import kl_estimate
from rdbcl_jax.core.masked import masked_mean
from rdbcl_jax.core.portability import (
    accuracy_kl_coefficients,
    invert_kl_coefficients,
    kl_coefficients,
    matched_constant_kl_coefficients,
    reasoning_portability,
    shuffle_kl_coefficients,
    verified_kl_coefficients,
)
from rdbcl_jax.methods.grpo import group_baseline, loss, options
from rdbcl_jax.methods.method import Method, Targets

LEVELS = {
    "reasoning": lambda batch: batch.reasoning_mask,
    "answer": lambda batch: batch.answer_mask,
    "response": lambda batch: batch.reasoning_mask | batch.answer_mask,
}
CONTROLS = ("none", "matched", "strength", "shuffled", "inverted", "accuracy")


def rdbcl(config: ConfigDict) -> Method:
    """GRPO whose KL coefficient is high where the previous policy's reasoning carries over."""
    portability, chosen = config.portability, options(config)
    if portability.level not in LEVELS:
        raise ValueError(f"portability.level is {portability.level!r}, expected {sorted(LEVELS)}")
    if portability.control not in CONTROLS:
        raise ValueError(f"portability.control is {portability.control!r}, expected {CONTROLS}")
    advantages = group_baseline(chosen["advantage_scale"])

    def targets(batch, policy_logps, entropies):
        rp = sample_portability(batch, policy_logps, portability)
        beta = coefficients(rp, batch, portability)
        if portability.control == "strength":
            kl = kl_estimate(policy_logps, batch.reference_logps, config.kl.kind)
            kl = masked_mean(kl, batch.mask, axis=-1)
            beta = matched_constant_kl_coefficients(beta, kl=kl)
        return Targets(advantages(batch.rewards), beta, {"rp": rp})

    static = portability.kind == "static"
    return Method(
        name=config.method,
        targets=targets,
        loss=loss(config, chosen),
        reference=chosen["reference"],
        policy=not static or portability.control == "strength",
        previous=not static,
        survey="confidence" if static else "",
    )


def sample_portability(batch: TrainBatch, policy_logps, config: ConfigDict):
    """RP of each sample, [P, G]; `static` is one number per prompt, measured before the task."""
    if config.kind == "static":
        return jnp.broadcast_to(batch.prompt_values[:, None], batch.rewards.shape)
    span = LEVELS[config.level](batch)
    return reasoning_portability(policy_logps, batch.previous_logps, span, kind=config.kind)


def coefficients(rp, batch: TrainBatch, config: ConfigDict):
    """β of each sample, [P, G], and what a control makes of it."""
    limits = {"beta_min": config.beta_min, "beta_max": config.beta_max}
    if config.control == "accuracy":
        p = masked_mean(batch.accuracies, ~batch.given, axis=-1)[:, None]
        return accuracy_kl_coefficients(jnp.broadcast_to(p, rp.shape), **limits)
    beta = kl_coefficients(rp, **limits, mapping=config.mapping, temperature=config.temperature)
    if config.verified:
        beta = verified_kl_coefficients(beta, batch.accuracies, beta_min=config.beta_min)
    if config.control == "matched":
        return matched_constant_kl_coefficients(beta)
    if config.control == "inverted":
        return invert_kl_coefficients(beta, **limits)
    if config.control == "shuffled":
        return shuffle_kl_coefficients(jax.random.key(batch.step), beta)
    return beta
