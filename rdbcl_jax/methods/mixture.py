"""Mixtures of SFT and RL, after the Synergy Dilemma (2507.07562): `demonstrations.mixture`.

Some of a batch's prompts are taught: their first response becomes the demonstration, which alone
has an advantage; the others explore, as in GRPO. Which and how many is the mixture. Its schedules
are not public: a reconstruction.

(SFT, then RL: a run of `sft`, and one of `grpo` with `model.path=WORKDIR@K`. Merging of weights:
`training.merge`, with any method.)
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from rdbcl_jax.config import RunConfig
from rdbcl_jax.methods.demonstrations import DemonstrationOptions, demonstration
from rdbcl_jax.methods.grpo import GRPO, constant, group_baseline, policy_gradient
from rdbcl_jax.methods.method import ANY, Draws, Method, Targets, fewest
from rdbcl_jax.methods.revisions import taught
from rdbcl_jax.rollout.scored import ScoredRollouts


def sft_rl(config: RunConfig) -> Method:
    """GRPO on some prompts of a batch and SFT on the others, each prompt of the same weight."""
    own, chosen = config.section(DemonstrationOptions), GRPO().chosen(config)
    explore, teach = group_baseline(chosen.advantage_scale), demonstration(own)

    def revise(scored: ScoredRollouts, draws: Draws) -> ScoredRollouts:
        shard = draws.policy.rows
        size = len(scored.records) * shard.groups  # of all processes
        count = taught_share(own, draws.task_step, draws.task_steps) * size
        # at random: a prompt sampler may put the prompts of the highest scores first
        chosen = draws.rng.permutation(size)[: round(count)]
        rows = np.flatnonzero(np.isin(shard.rows(size), chosen))
        return taught(scored, rows, teach, draws.policy)

    def targets(batch, policy_logps, entropies):
        group = batch.rewards.shape[-1]
        given = batch.demonstrated.any(-1, keepdims=True)
        learned = jnp.where(given, group * batch.demonstrated, explore(batch.rewards))
        return Targets(learned, jnp.where(given, 0.0, constant(chosen.beta, batch)))

    method = policy_gradient(config, chosen, revise=revise, demonstration=teach)
    scheduled = own.mixture == "progressive"
    least = ANY
    if own.mixture == "mixed" and own.share:
        least = fewest(lambda n: round(own.share * n), "demonstrations.share teaches none")
    return dataclasses.replace(
        method.reading("demonstrations"),
        targets=targets,
        scheduled=scheduled,
        partly_anchored=True,
        fewest_prompts=least,
    )


def taught_share(options: DemonstrationOptions, step: int, steps: int) -> float:
    """The share of a batch's prompts that is taught in a step of a task, from 0.

    "mixed": `share`, always. "interleaved": all in the first of every `period` steps, else none.
    "progressive": from all in the first step down to none after the last, along a line.
    """
    if options.mixture == "interleaved":
        return float(step % options.period == 0)
    return 1 - step / steps if options.mixture == "progressive" else options.share
