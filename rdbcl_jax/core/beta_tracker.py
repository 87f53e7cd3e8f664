"""MSSR's baseline for each prompt: a forgetting Beta distribution of its success (2512.18215).

With one rollout per prompt there is no group to compare with; each prompt's own past is.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rdbcl_jax.batches import pytree
from rdbcl_jax.core.masked import to_float

RHO_MIN, RHO_MAX = 0.875, 0.96


@pytree
class BetaTracker:
    """Pseudo-counts of success and failure of each of N prompts."""

    alpha: Float[Array, "N"]
    beta: Float[Array, "N"]


def start(success: Float[Array, "N"], rho_min: float = RHO_MIN) -> BetaTracker:
    """A tracker as if it had seen N0 = 1 / (1 − ρ_min) outcomes of each prompt (8 by default).

    Args:
      success: each prompt's rate, in [0, 1], by one rollout of the first policy; 0.5 where unseen.
      rho_min: in [0, 1).
    """
    success = to_float(success)
    count = 1 / (1 - rho_min)
    return BetaTracker(count * success, count * (1 - success))


def baselines(tracker: BetaTracker, prompts: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """Expected success of the prompts, α / (α + β)."""
    alpha, beta = tracker.alpha[prompts], tracker.beta[prompts]
    return alpha / (alpha + beta)


def observe(
    tracker: BetaTracker,
    prompts: Int[Array, "B"],
    outcomes: Float[Array, "B"],
    rho: float | Float[Array, ""],
) -> BetaTracker:
    """α ← ρα + o and β ← ρβ + 1 − o for the prompts seen; the others stay.

    A prompt that a batch holds n times forgets once and counts its n outcomes.

    Args:
      outcomes: 1 success, 0 failure.
      rho: the part of the past that is kept, in (0, 1].
    """
    zero = jnp.zeros(tracker.alpha.shape)
    seen = zero.at[prompts].add(1.0)
    right = zero.at[prompts].add(to_float(outcomes))
    kept = jnp.where(seen > 0, rho, 1.0)
    return BetaTracker(kept * tracker.alpha + right, kept * tracker.beta + seen - right)


def forgetting(
    kl: float | Float[Array, ""],
    target: float = 0.01,
    rho_min: float = RHO_MIN,
    rho_max: float = RHO_MAX,
) -> Float[Array, ""]:
    """ρ from the mean KL to the first policy over the last steps, as the official code has it.

    ρ_min above `target`, ρ_min + (KL / target)(ρ_max − ρ_min) up to it: a policy that moves fast
    outdates what was seen of it.

    Args:
      kl: nats per token, ≥ 0.
      target: the same, positive.
    """
    kl = jnp.asarray(kl, jnp.float32)
    return jnp.where(kl > target, rho_min, rho_min + kl / target * (rho_max - rho_min))
