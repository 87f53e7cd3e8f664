"""Per-token estimators of the KL divergence between the policy and a frozen reference.

With d = log π_ref(y_t) − log π_θ(y_t), for a token y_t that the policy sampled
(J. Schulman, "Approximating KL divergence", 2020):

| kind         | value             | mean over samples | gradient of the mean, as a loss term |
|--------------|-------------------|-------------------|--------------------------------------|
| `k1`         | −d                | KL(π_θ‖π_ref)     | 0: useless as a loss                 |
| `k2`         | d² / 2            | biased            | that of KL(π_θ‖π_ref)                |
| `k3`         | exp(d) − d − 1    | KL(π_θ‖π_ref)     | that of KL(π_ref‖π_θ)                |
| `k3_bounded` | k3, linear beyond | below k3          | that of k3, slope at most 9          |

The third column's expectations and the fourth's gradients are checked by exact enumeration in
the tests.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from rdbcl_jax.core.masked import masked_mean, to_float

KLKind = Literal["k1", "k2", "k3", "k3_bounded"]
KLSchedule = Literal["constant", "grpo_d", "rise"]

GRPO_D_TURN = 0.3
"""The share of a task's steps after which GRPO-D's coefficient rises."""

K3_CUTOFF = math.log(10.0)
"""Nats. Beyond it `k3_bounded` is a straight line: the reference is 10 times as sure."""


def kl_estimate(
    logps: Float[Array, "*B T"], reference_logps: Float[Array, "*B T"], kind: KLKind = "k3"
) -> Float[Array, "*B T"]:
    """Estimate of KL(π_θ‖π_ref) at each sampled token, in nats; float32.

    `k3_bounded` (ours) is k3 for d ≤ log 10, continued by its tangent above, so value and slope are
    continuous, and its slope in `logps` stays in [−9, 1): a token that drifted far is pulled back
    with bounded, never vanishing force. (k3 itself has slope 1 − exp(d), −7e10 at 25 nats; clamping
    k3 at 10, as some trainers do, has slope exactly 0 beyond 2.61 nats.)

    Args:
      logps: log π_θ of the sampled tokens, ≤ 0; carries the gradient.
      reference_logps: log π_ref of the same tokens.
      kind: see the table of this module.

    Raises:
      ValueError: unknown kind.
    """
    d = to_float(reference_logps) - to_float(logps)
    if kind == "k1":
        return -d
    if kind == "k2":
        return jnp.square(d) / 2
    if kind == "k3":
        return jnp.expm1(d) - d
    if kind == "k3_bounded":
        near = jnp.minimum(d, K3_CUTOFF)  # an overflow of exp never enters the gradient
        return jnp.expm1(near) - near + math.expm1(K3_CUTOFF) * (d - near)
    raise ValueError(f"unknown KL kind {kind!r}; expected one of {get_args(KLKind)}")


def kl_schedule(
    progress: float | Float[Array, "*S"], kind: KLSchedule, floor: float = 0.0
) -> Float[Array, "*S"]:
    """What the KL coefficient is multiplied by over a task, in [floor, 1].

    `grpo_d` (GRPO-D, OThink-MR1, 2503.16081): from the middle of the range down to `floor` at 0.3
    of the steps, then up to 1 at their end, each along a line. `rise`: from `floor` up to 1 along a
    line, as that paper's prose has it. `constant`: 1.

    Args:
      progress: share of the task's steps that are made, in [0, 1].
      floor: the least coefficient over the greatest, in [0, 1].

    Raises:
      ValueError: unknown kind.
    """
    progress = to_float(jnp.asarray(progress))
    if kind == "constant":
        return jnp.ones_like(progress)
    if kind == "rise":
        return floor + (1 - floor) * progress
    if kind == "grpo_d":
        middle = (1 + floor) / 2
        falling = middle - (middle - floor) * progress / GRPO_D_TURN
        rising = floor + (1 - floor) * (progress - GRPO_D_TURN) / (1 - GRPO_D_TURN)
        return jnp.where(progress < GRPO_D_TURN, falling, rising)
    raise ValueError(f"unknown KL schedule {kind!r}; expected one of {get_args(KLSchedule)}")


def kl_bounded_fraction(
    logps: Float[Array, "*B T"], reference_logps: Float[Array, "*B T"], mask: Array
) -> Float[Array, ""]:
    """Fraction of the valid tokens on which `k3_bounded` differs from k3; in [0, 1].

    Args:
      logps, reference_logps: as for `kl_estimate`.
      mask: [*B, T], nonzero where valid. Without a valid token the fraction is 0.
    """
    return masked_mean(is_bounded(logps, reference_logps), mask)


def is_bounded(
    logps: Float[Array, "*B T"], reference_logps: Float[Array, "*B T"]
) -> Float[Array, "*B T"]:
    """1 where log π_ref − log π_θ lies beyond the cut-off of `k3_bounded`, else 0."""
    d = to_float(reference_logps) - to_float(logps)
    return (d > K3_CUTOFF).astype(d.dtype)
