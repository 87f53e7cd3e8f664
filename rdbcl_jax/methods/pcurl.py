"""PCuRL of VL-Cogito (2507.22607, after its official code): a curriculum in three stages.

The stages, a third of a task's steps each (ours: the paper trains three times on the same data),
weigh the advantages by difficulty; the last adds a reward of length and one against repetition.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from rdbcl_jax.config import RunConfig
from rdbcl_jax.core.curriculum import STAGES, difficulty_weights, length_reward
from rdbcl_jax.core.masked import masked_mean
from rdbcl_jax.methods.grpo import GRPO, constant, group_baseline, policy_gradient
from rdbcl_jax.methods.method import Draws, Method, Targets
from rdbcl_jax.rewards import shaping
from rdbcl_jax.rollout.scored import ScoredRollouts
from rdbcl_jax.sections import Count, NonNegative, Section, section

HARD = STAGES.index("hard")


@section("pcurl")
@dataclasses.dataclass(frozen=True)
class PCuRLOptions(Section):
    """Of `pcurl`, all of its last stage.

    Attributes:
      length, longest: tokens that a response should have, and may have, where no response of its
        group is right.
      repetition: weight of the reward against repetition.
      ngram: words of what is repeated.
    """

    length: Count = 750
    longest: Count = 4096
    repetition: NonNegative = 0.5
    ngram: Count = 20


def pcurl(config: RunConfig) -> Method:
    """GRPO with advantages weighed by difficulty, stage by stage."""
    own, chosen = config.section(PCuRLOptions), GRPO(beta=1e-3).chosen(config)
    advantages = group_baseline(chosen.advantage_scale)

    def targets(batch, policy_logps, entropies):
        stage = len(STAGES) * batch.task_step // batch.task_steps
        right = batch.accuracies > 0.5
        lengths = batch.given["length"]  # of those too that are masked, since they were cut
        by_length = length_reward(lengths, right, target=own.length, longest=own.longest)
        shaped = by_length + jnp.where(right, 0.0, batch.given["repetition"])
        shaped = jnp.where(stage == HARD, shaped, 0.0)
        weights = difficulty_weights(masked_mean(right, ~batch.demonstrated, axis=-1), stage)
        total = advantages(batch.rewards + shaped) * weights[:, None]
        return Targets(total, constant(chosen.beta, batch), {"shaping": shaped})

    def revise(scored: ScoredRollouts, draws: Draws) -> ScoredRollouts:
        shares = [distinct_ngrams(text, own.ngram) for text in scored.texts]
        repetition = own.repetition * (np.array(shares) - 1)
        given = {
            "repetition": repetition.reshape(scored.shape),
            "length": np.asarray(scored.own.mask).sum(-1),
        }
        return dataclasses.replace(scored, given=given)

    method = policy_gradient(config, chosen, revise=revise, given=("repetition", "length"))
    return dataclasses.replace(method.reading("pcurl"), targets=targets, scheduled=True)


def distinct_ngrams(text: str, n: int) -> float:
    """Distinct n-grams of words over all of them, in (0, 1]; 1 without any."""
    return shaping.distinct_share([text.split()], n, without=1.0)
