"""Supervised fine-tuning: the likelihood of given responses, through the same update."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rdbcl_jax.core.losses import LossTerms
from rdbcl_jax.core.masked import masked_sum_and_count, select
from rdbcl_jax.methods.method import Method


def sft(config: ConfigDict | None = None) -> Method:
    """Every given response counts alike; no KL term."""
    return Method(name="sft", advantages=jnp.ones_like, loss=negative_log_likelihood)


def negative_log_likelihood(logps, old_logps, advantages, mask, **unused) -> LossTerms:
    """−log π of the given tokens, mean over all tokens; nats per token."""
    total, count = masked_sum_and_count(-select(logps, mask), mask)
    pair = jax.lax.stop_gradient((total, count))
    return LossTerms(total, count, {"loss": pair, "nll": pair})
