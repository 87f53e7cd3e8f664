"""Advantages from the rewards of a group: G responses to the same prompt.

A NaN reward means "does not apply": it is left out of its group's statistics and its own
advantage is 0. A group that says nothing (one response, or all rewards equal) gets exactly 0.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from rdbcl_jax.core.masked import (
    masked_max,
    masked_mean,
    masked_min,
    masked_sum_and_count,
    masked_variance,
    select,
    to_float,
)

Scale = Literal["std", "none"]


def group_advantages(
    rewards: Float[Array, "*P G"], *, scale: Scale = "std", eps: float = 1e-4, ddof: int = 1
) -> Float[Array, "*P G"]:
    """Reward minus its group's mean, over the group's standard deviation.

    `std` is GRPO (2402.03300, eq. in §4.1.2), in TRL's form (r − mean) / (std + eps); `none`
    leaves the difference unscaled, Dr. GRPO (2503.20783).

    Args:
        rewards: one group per row; NaN where a reward does not apply.
        scale: `std` or `none`.
        eps: added to the standard deviation, in units of reward.
        ddof: 1 for the sample standard deviation (TRL), 0 for the population's.

    Raises:
        ValueError: unknown scale.
    """
    rewards, applies, informative = _groups(rewards)
    centred = rewards - masked_mean(rewards, applies, axis=-1)[..., None]
    if scale == "std":
        variance = masked_variance(rewards, applies, axis=-1, ddof=ddof)[..., None]
        centred = centred / (jnp.sqrt(jnp.where(informative, variance, 1.0)) + eps)
    elif scale != "none":
        raise ValueError(f"unknown scale {scale!r}; expected one of {get_args(Scale)}")
    return select(centred, applies & informative)


def leave_one_out_advantages(rewards: Float[Array, "*P G"]) -> Float[Array, "*P G"]:
    """Reward minus the mean of the *other* rewards of its group (RLOO, 2402.14740).

    Args:
        rewards: one group per row; NaN where a reward does not apply.
    """
    rewards, applies, informative = _groups(rewards)
    total, count = masked_sum_and_count(rewards, applies, axis=-1)
    others = (total[..., None] - rewards) / jnp.maximum(count - 1, 1)[..., None]
    return select(rewards - others, applies & informative)


def _groups(rewards):
    """Rewards with 0 for NaN, where they apply [P, G], which groups say something [P, 1]."""
    rewards = to_float(rewards)
    applies = ~jnp.isnan(rewards)
    rewards = select(rewards, applies)
    spread = masked_max(rewards, applies, axis=-1) - masked_min(rewards, applies, axis=-1)
    return rewards, applies, (spread > 0)[..., None]
