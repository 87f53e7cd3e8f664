"""Reinforce-Ada (2510.04996, after its official code): rounds of responses where they are needed.

Prompts get further rounds of responses until enough of theirs are right, or right and wrong; of
each prompt's pool a group of fixed size is learned from, half of it right where that can be. The
baseline is the mean reward of the whole pool.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from rdbcl_jax.config import RunConfig
from rdbcl_jax.methods.grpo import GRPO, with_given_advantages
from rdbcl_jax.methods.method import Draws, Method
from rdbcl_jax.methods.revisions import anywhere, beside, with_samples
from rdbcl_jax.rollout.scored import ScoredRollouts
from rdbcl_jax.sections import Count, Section, section


@section("reinforce_ada")
@dataclasses.dataclass(frozen=True)
class ReinforceAdaOptions(Section):
    """Of `reinforce_ada`.

    Attributes:
      until: a prompt is done with half of `keep` right and as many wrong ("balance"), or with one
        right response ("pos").
      rounds: most rounds of `rollout.samples` responses for a prompt.
      keep: responses of a prompt that are learned from.
    """

    until: Literal["balance", "pos"] = "balance"
    rounds: Count = 4
    keep: Count = 4


def reinforce_ada(config: RunConfig) -> Method:
    """r − p̂ with the pool's mean p̂, not divided by a standard deviation; upper clip 0.28; no KL."""
    own = config.section(ReinforceAdaOptions)
    chosen = GRPO(beta=0.0, clip_high=0.28, advantage_scale="none").chosen(config)
    if own.keep % 2 or own.keep > config.rollout.samples:
        raise ValueError(
            f"config.reinforce_ada.keep is {own.keep}, expected an even number of responses, at "
            f"most the {config.rollout.samples} of rollout.samples"
        )
    enough = (own.keep // 2, own.keep // 2) if own.until == "balance" else (1, 0)

    def revise(scored: ScoredRollouts, draws: Draws) -> ScoredRollouts:
        pool, drawn = scored, np.ones(scored.shape, bool)
        for _ in range(own.rounds - 1):
            active = ~done(pool.right, drawn, *enough)
            if not anywhere(active, draws.policy):
                break
            more, rows = draws.again(scored, active)
            pool = beside(pool, more, rows)
            drawn = np.hstack([drawn, np.repeat(active[:, None], more.shape[1], 1)])
        picks = balanced(pool.right, drawn, own.keep)
        advantages = above_mean(pool.scores.total.reshape(pool.shape), drawn)
        kept = np.take_along_axis(advantages, picks, 1)
        return with_samples(pool, picks, draws.policy, {"advantage": kept})

    method = with_given_advantages(config, chosen, revise)
    return dataclasses.replace(method.reading("reinforce_ada"), fewest_samples=own.keep)


def done(
    right: Bool[np.ndarray, "P G"], drawn: Bool[np.ndarray, "P G"], rights: int, wrongs: int
) -> Bool[np.ndarray, "P"]:
    """Prompts with so many right and so many wrong responses among those that were drawn."""
    return ((right & drawn).sum(1) >= rights) & ((~right & drawn).sum(1) >= wrongs)


def balanced(
    right: Bool[np.ndarray, "P G"], drawn: Bool[np.ndarray, "P G"], keep: int
) -> Int[np.ndarray, "P keep"]:
    """Of each prompt's drawn responses so many, the first ones: half of them right and half wrong,
    or more of the one where there are too few of the other."""
    picks = []
    for row, there in zip(right, drawn, strict=True):
        rights, wrongs = np.flatnonzero(row & there), np.flatnonzero(~row & there)
        count = min(len(rights), max(keep // 2, keep - len(wrongs)))
        picks.append(np.concatenate([rights[:count], wrongs[: keep - count]]))
    return np.array(picks)


def above_mean(
    rewards: Float[np.ndarray, "P G"], drawn: Bool[np.ndarray, "P G"]
) -> Float[np.ndarray, "P G"]:
    """Rewards less the mean of those that were drawn; exactly 0 where all of them are equal, and
    where a reward does not apply (NaN)."""
    rewards = rewards.astype(np.float32)  # in which advantages are taken
    applies = drawn & ~np.isnan(rewards)
    known = np.where(applies, rewards, 0.0)
    mean = known.sum(1) / np.maximum(applies.sum(1), 1)
    highest = np.where(applies, rewards, -np.inf).max(1)
    differ = highest > np.where(applies, rewards, np.inf).min(1)
    return np.where(applies & differ[:, None], known - mean[:, None], 0.0)
