"""Shuffle-R1 (2508.05612, after its official code): pairs of contrast, the stronger more often.

Of each group the responses are paired, the i-th best with the i-th worst; the first half of the
pairs is kept. Then passes over the kept pairs of the batch draw them in proportion to |A₁| + |A₂|.
Here a pair's advantages are multiplied by how often it was drawn, which in one update without a KL
term is the same as a batch that holds it so often. (A KL term counts each pair that was kept once,
however often it was drawn.) Advantages are those of the whole group, and not taken anew.

Pairs without contrast are never drawn; a batch without any has no signal, and no update is made.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from rdbcl_jax.config import RunConfig
from rdbcl_jax.core.advantages import group_advantages
from rdbcl_jax.methods.grpo import GRPO, with_given_advantages
from rdbcl_jax.methods.method import Draws, Method
from rdbcl_jax.methods.revisions import with_samples
from rdbcl_jax.rollout.scored import ScoredRollouts
from rdbcl_jax.sections import Natural, Section, section
from rdbcl_jax.sharding import all_hosts_rows


@section("shuffle_r1")
@dataclasses.dataclass(frozen=True)
class ShuffleR1Options(Section):
    """Of `shuffle_r1`.

    Attributes:
      passes: over the kept pairs, each of which draws 1 / passes of them; 0: each pair once.
    """

    passes: Natural = 8


def shuffle_r1(config: RunConfig) -> Method:
    """GRPO on half of the responses, those of the greatest contrast; no KL."""
    own, chosen = config.section(ShuffleR1Options), GRPO(beta=0.0).chosen(config)
    if config.rollout.samples % 4:
        raise ValueError(
            f"config.rollout.samples is {config.rollout.samples}, expected a multiple of 4: "
            "shuffle_r1 keeps half of the pairs of responses"
        )

    def revise(scored: ScoredRollouts, draws: Draws) -> ScoredRollouts:
        rewards = scored.scores.total.reshape(scored.shape)
        advantages = np.asarray(group_advantages(jnp.asarray(rewards)))
        picks = contrasting(advantages)
        kept = np.take_along_axis(advantages, picks, 1)
        counts = np.ones_like(kept)
        if own.passes:
            rows = draws.policy.rows
            contrast = all_hosts_rows(np.abs(kept).reshape(len(kept), -1, 2).sum(-1), rows)
            drawn = draw_pairs(contrast, draws.rng, own.passes)[rows.rows(len(contrast))]
            counts = np.repeat(drawn, 2, axis=1)
        return with_samples(scored, picks, draws.policy, {"advantage": kept * counts})

    method = with_given_advantages(config, chosen, revise)
    return dataclasses.replace(method.reading("shuffle_r1"), fewest_samples=4)


def contrasting(advantages: Float[np.ndarray, "P G"]) -> Int[np.ndarray, "P G/2"]:
    """Of each group the best, the worst, the second best, the second worst, … up to half of it."""
    order = np.argsort(-advantages, axis=1, kind="stable")
    best, worst = order, order[:, ::-1]
    quarter = advantages.shape[1] // 4
    return np.stack([best[:, :quarter], worst[:, :quarter]], -1).reshape(len(order), -1)


def draw_pairs(
    contrast: Float[np.ndarray, "P N"], rng: np.random.Generator, passes: int
) -> Int[np.ndarray, "P N"]:
    """How often each pair is drawn. Each pass draws without replacement, in proportion to the
    contrast, and at most those that have some."""
    weights = contrast.reshape(-1).astype(np.float64)
    counts = np.zeros(len(weights), int)
    size = min(max(len(weights) // passes, 1), int((weights > 0).sum()))
    for _ in range(passes if size else 0):
        counts[rng.choice(len(weights), size, replace=False, p=weights / weights.sum())] += 1
    return counts.reshape(contrast.shape)
