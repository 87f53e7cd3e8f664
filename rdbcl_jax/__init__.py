"""Continual reinforcement learning with verifiable rewards for vision-language models, in JAX.

The names below are the pure-function API: jax.numpy in, jax.numpy out. They jit, vmap and
differentiate, and importing them loads neither models nor data libraries.
"""

from rdbcl_jax.core.advantages import group_advantages, leave_one_out_advantages
from rdbcl_jax.core.continual_metrics import continual_metrics
from rdbcl_jax.core.kl import kl_bounded_fraction, kl_estimate
from rdbcl_jax.core.logprobs import token_logprobs
from rdbcl_jax.core.losses import LossTerms, mean_terms, policy_loss, policy_loss_terms
from rdbcl_jax.core.masked import (
    masked_max,
    masked_mean,
    masked_min,
    masked_rank,
    masked_sum_and_count,
    masked_variance,
    masked_zscore,
)
from rdbcl_jax.core.portability import (
    accuracy_kl_coefficients,
    invert_kl_coefficients,
    kl_coefficients,
    matched_constant_kl_coefficients,
    reasoning_portability,
    shuffle_kl_coefficients,
    verified_kl_coefficients,
)
from rdbcl_jax.version import __version__

__all__ = [
    "LossTerms",
    "__version__",
    "accuracy_kl_coefficients",
    "continual_metrics",
    "group_advantages",
    "invert_kl_coefficients",
    "kl_bounded_fraction",
    "kl_coefficients",
    "kl_estimate",
    "leave_one_out_advantages",
    "masked_max",
    "masked_mean",
    "masked_min",
    "masked_rank",
    "masked_sum_and_count",
    "masked_variance",
    "masked_zscore",
    "matched_constant_kl_coefficients",
    "mean_terms",
    "policy_loss",
    "policy_loss_terms",
    "reasoning_portability",
    "shuffle_kl_coefficients",
    "token_logprobs",
    "verified_kl_coefficients",
]
