"""Progressive curriculum RL: what a prompt weighs by its difficulty, and rewards of length.

PCuRL of VL-Cogito (2507.22607, after its official code). Difficulty is the share p of a group's
responses that are right. The stages "easy", "medium" and "hard" follow each other.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rdbcl_jax.core.masked import masked_mean, to_float

Stage = Literal["easy", "medium", "hard"]
STAGES: tuple[Stage, ...] = ("easy", "medium", "hard")
PENALTY = 0.5  # the greatest, of length


def difficulty_weights(
    accuracy: Float[Array, "*P"], stage: Int[Array, ""] | int
) -> Float[Array, "*P"]:
    """What the advantages of a group are multiplied by, in [0, 1].

    "easy": 0 at p = 0, sin πp up to ½, 1 from there on. "medium": sin πp. "hard": ¼ at p = 0, 1 up
    to ½, sin πp from there on.

    Args:
      accuracy: p of each group, in [0, 1].
      stage: its place in `STAGES`.
    """
    p = to_float(accuracy)
    bell = jnp.where((p > 0) & (p < 1), jnp.sin(jnp.pi * p), 0.0)
    easy = jnp.where(p >= 0.5, 1.0, bell)
    hard = jnp.where(p == 0, 0.25, jnp.where(p <= 0.5, 1.0, bell))
    return jnp.stack([easy, bell, hard])[stage]


def length_reward(
    lengths: Int[Array, "*P G"],
    right: Bool[Array, "*P G"],
    *,
    target: float = 750.0,
    longest: float = 4096.0,
) -> Float[Array, "*P G"]:
    """A reward in [−½, 0] for wrong responses of another length than the right ones; 0 for those.

    With right responses in the group, T their mean length: −¼ (1 + cos(π L / T)), −½ from 2 T on.
    Without, half of that below T = `target`, 0 up to `longest`, −¼ above.

    Args:
      lengths: L, tokens.
      right: which responses are right.
      target, longest: tokens, positive.
    """
    lengths, right = to_float(lengths), jnp.asarray(right).astype(bool)
    mean = jnp.maximum(masked_mean(lengths, right, axis=-1)[..., None], 1.0)
    away = jnp.where(lengths < 2 * mean, _dip(lengths / mean), -PENALTY)
    short = jnp.where(lengths < target, _dip(lengths / target) / 2, 0.0)
    alone = jnp.where(lengths > longest, -PENALTY / 2, short)
    return jnp.where(right, 0.0, jnp.where(right.any(-1, keepdims=True), away, alone))


def _dip(ratio):
    """From −½ at 0 up to 0 at 1 and back at 2."""
    return -PENALTY / 2 * (1 + jnp.cos(jnp.pi * ratio))
