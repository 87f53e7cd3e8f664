"""RDB-CL (2605.18903): each sample's KL anchor scaled by its Reasoning Portability.

The formulas are a reconstruction, see `core.portability`.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from rdbcl_jax.core.portability import kl_coefficients, reasoning_portability
from rdbcl_jax.methods.grpo import policy_gradient
from rdbcl_jax.methods.method import KLCoefficients, Method

LEVELS = {
    "reasoning": lambda batch: batch.reasoning_mask,
    "answer": lambda batch: batch.answer_mask,
    "response": lambda batch: batch.reasoning_mask | batch.answer_mask,
}


def rdbcl(config: ConfigDict) -> Method:
    """GRPO whose KL coefficient is high where the previous policy's reasoning carries over."""
    return policy_gradient(config, portability_scaled(config.portability))


def portability_scaled(config: ConfigDict) -> KLCoefficients:
    """β of each sample from its RP; `config` is `config.portability`."""
    if config.level not in LEVELS:
        raise ValueError(f"portability.level is {config.level!r}, expected {sorted(LEVELS)}")

    def coefficients(batch, policy_logps):
        rp = reasoning_portability(
            policy_logps,
            batch.reference_logps,
            LEVELS[config.level](batch),
            kind=config.kind,
        )
        beta = kl_coefficients(
            rp,
            beta_min=config.beta_min,
            beta_max=config.beta_max,
            mapping=config.mapping,
            temperature=config.temperature,
        )
        return beta, {"rp": rp}

    return coefficients
