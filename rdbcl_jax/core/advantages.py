"""Advantages from the rewards of a group: G responses to the same prompt.

A NaN reward means "does not apply": it is left out of its group's statistics and its own
advantage is 0. A group that says nothing (one response, or all rewards equal) gets exactly 0.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

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
VARIANCE_FLOOR = 1e-6  # of `whiten`


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


def normalise(advantages: Float[Array, "*B"], *, eps: float = 1e-4) -> Float[Array, "*B"]:
    """(A − mean) / (std + eps) over the whole array, with the sample standard deviation (TRL's).

    Args:
      advantages: NaN where one does not apply. Equal ones become exactly 0.
      eps: added to the standard deviation.
    """
    flat = to_float(advantages).reshape(-1)
    return group_advantages(flat, eps=eps).reshape(jnp.shape(advantages))


def whiten(advantages: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """(A − mean) / √max(variance, 1e-6) over the whole array, the global batch (2512.18215).

    Args:
      advantages: NaN where one does not apply. Equal ones become exactly 0.
    """
    advantages = to_float(advantages)
    applies = ~jnp.isnan(advantages)
    share = jnp.where(applies.any(), applies.mean(), 1.0)
    kept = jnp.where(applies, advantages, select(advantages, applies).mean() / share)  # at the mean
    variance = jnp.maximum(kept.var() / share, VARIANCE_FLOOR)
    whitened = (kept - kept.mean()) / jnp.sqrt(variance)
    differ = masked_max(advantages, applies) > masked_min(advantages, applies)
    return select(whitened, applies & differ)


def entropy_shaped(
    advantages: Float[Array, "*B"],
    logps: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    scale: float = 0.4,
    share: float = 0.5,
    entropies: Float[Array, "*B T"] | None = None,
) -> Float[Array, "*B T"]:
    """Advantages per token, raised where the policy was unsure: A + min(scale · H_t, share · |A|).

    MSSR's entropy shaping (2512.18215, official code). H_t is −p log p of the *sampled* token, in
    [0, 1/e] nats, as that code has it; or the entropy over the vocabulary, where given. No
    gradient; 0 behind the mask.

    Args:
      advantages: one per sequence, already whitened.
      logps: log-probs of the sampled tokens.
      scale, share: ≥ 0. With share < 1 no token's advantage changes its sign.
      entropies: those of each token's whole distribution, nats.
    """
    if entropies is None:
        logps = select(logps, mask)
        entropies = -jnp.exp(logps) * logps
    advantages = to_float(advantages)[..., None]
    bonus = jnp.minimum(scale * select(entropies, mask), share * jnp.abs(advantages))
    return jax.lax.stop_gradient(select(advantages + bonus, mask))


def high_entropy_advantages(
    advantages: Float[Array, "*B"] | Float[Array, "*B T"],
    entropies: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    share: float,
) -> Float[Array, "*B T"]:
    """Advantages per token, of the share of all tokens with the highest entropy; 0 elsewhere.

    2506.01939; the threshold is a quantile over the whole array, as in TRL. The KL term is not
    masked by this.

    Args:
      advantages: one per sequence or one per token.
      entropies: of each token's distribution.
      share: in (0, 1]; 0.2 in the paper.
    """
    mask = jnp.asarray(mask).astype(bool)
    entropies = jax.lax.stop_gradient(to_float(entropies))
    known = jnp.where(mask, entropies, jnp.nan)
    kept = mask & (entropies >= jnp.nanquantile(known, 1 - share))
    advantages = to_float(advantages)
    advantages = advantages if advantages.ndim == mask.ndim else advantages[..., None]
    return select(jnp.broadcast_to(advantages, mask.shape), kept)


def memorise_or_explore(
    rewards: Float[Array, "*P G"],
    accuracies: Float[Array, "*P G"],
    given: Bool[Array, "*P G"],
    *,
    eps: float = 1e-4,
) -> Float[Array, "*P G"]:
    """DyME's advantages (2506.23061, official code); c = responses of a group that are right.

    c = 0, memorise: 1 for the demonstration, 0 for the others. 0 < c < G, explore: group-normalised
    rewards. c = G, nothing left to learn: 0.

    Args:
      rewards: one group per row; NaN where a reward does not apply.
      accuracies: > 0.5 where right.
      given: the demonstrations, which took the place of sampled responses.
      eps: added to the standard deviation, in units of reward.
    """
    right = (to_float(accuracies) > 0.5).sum(-1, keepdims=True)
    explored = group_advantages(rewards, eps=eps)
    chosen = jnp.where(right == rewards.shape[-1], 0.0, explored)
    return jnp.where(right == 0, jnp.asarray(given).astype(chosen.dtype), chosen)


def retention_reward(
    policy_logps: Float[Array, "*B T"],
    previous_logps: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    weight: float = 0.5,
    sharpness: float = 20.0,
) -> Float[Array, "*B"]:
    """RaPO's reward for staying near the previous policy (2605.09640), in [0, weight].

    weight · exp(−sharpness · max(0, mean over tokens of log π_old − log π_previous)); it is added
    to the reward before the group's advantages. No gradient.

    Args:
      policy_logps: log π_old of the sampled tokens, nats.
      previous_logps: the same under the policy from before the task.
      weight: the largest reward, ≥ 0.
      sharpness: ≥ 0, per nat of drift.
    """
    drift = masked_mean(select(policy_logps, mask) - select(previous_logps, mask), mask, axis=-1)
    return jax.lax.stop_gradient(weight * jnp.exp(-sharpness * jnp.maximum(drift, 0.0)))


def _groups(rewards):
    """Rewards with 0 for NaN, where they apply [P, G], which groups say something [P, 1]."""
    rewards = to_float(rewards)
    applies = ~jnp.isnan(rewards)
    rewards = select(rewards, applies)
    spread = masked_max(rewards, applies, axis=-1) - masked_min(rewards, applies, axis=-1)
    return rewards, applies, (spread > 0)[..., None]
