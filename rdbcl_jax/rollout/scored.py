"""Scored rollouts: responses with their rewards, on the host. All host arrays hold this process's
rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from rdbcl_jax.batches import PromptBatch, Rollouts
from rdbcl_jax.data.records import Record
from rdbcl_jax.models.partition import Trained
from rdbcl_jax.policy import Policy
from rdbcl_jax.rewards.scoring import Scores
from rdbcl_jax.rollout.generate import generate
from rdbcl_jax.rollout.sampling import Sampling
from rdbcl_jax.sharding import local_rows, rows_of_leader

# (records, texts, completion_ids=…), one each
ScoreFunction = Callable[..., Scores]


@dataclasses.dataclass(frozen=True)
class Responses:
    """Prompts and the responses to them, as drawn."""

    host_prompts: PromptBatch
    prompts: PromptBatch  # the same on the device, all processes' rows
    rollouts: Rollouts  # [P, G, …], on the device
    others: Rollouts | None = None  # of the previous policy, [P, g, …]: demonstrations, not scored
    demonstrated: bool = False  # are the rollouts demonstrations, rather than the policy's?

    @property
    def all(self) -> Rollouts:
        """Rollouts and others side by side, [P, G + g, …], on the device."""
        if self.others is None:
            return self.rollouts
        return jax.tree.map(_beside, self.rollouts, self.others)

    @property
    def sampled(self) -> int:
        """How many the policy itself sampled, of all processes."""
        prompts, each = self.rollouts.tokens.shape[:2]
        return 0 if self.demonstrated else prompts * each


def _beside(rollouts: jax.Array, others: jax.Array) -> jax.Array:
    joined = jnp.concatenate([rollouts, others], axis=1)
    return jax.lax.with_sharding_constraint(joined, rollouts.sharding)


@dataclasses.dataclass(frozen=True)
class ScoredRollouts:
    """Responses with their rewards, on the host.

    Attributes:
      records: P of them.
      texts: of the P·G rollouts, prompt by prompt.
      scores: of the texts.
      host: the rollouts (with the others, if any) as numpy arrays, [P, G + g, …].
      memorised: rollouts that a demonstration has replaced; `texts` and `scores` are still those
        of the policy's own response.
      given: by name, what a revision found out of each rollout for the method's targets.
    """

    responses: Responses
    records: list[Record]
    texts: list[str]
    scores: Scores
    host: Rollouts
    memorised: Bool[np.ndarray, "P G"]
    given: dict[str, Float[np.ndarray, "P G"]] = dataclasses.field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """(P, G) of this process, without the others."""
        return self.memorised.shape

    @property
    def own(self) -> Rollouts:
        """The rollouts alone, as numpy arrays [P, G, …]."""
        return jax.tree.map(lambda a: a[:, : self.shape[1]], self.host)

    @property
    def right(self) -> Bool[np.ndarray, "P G"]:
        """Rollouts whose answer is right, or more than half right where that is graded."""
        return np.asarray(self.scores.accuracy).reshape(self.shape) > 0.5

    @property
    def informative(self) -> Bool[np.ndarray, "P"]:
        """Groups whose rewards differ, as far as they apply: the others have no advantage. In
        float32, in which advantages are taken."""
        rewards = self.scores.total.reshape(self.shape).astype(np.float32)
        applies = ~np.isnan(rewards)
        highest = np.where(applies, rewards, -np.inf).max(1)
        return highest > np.where(applies, rewards, np.inf).min(1)

    def columns(self, policy: Policy) -> dict[str, Any]:
        """The train batch's arrays that come from the host, [P, G + g, …]."""
        reasoning, answer = policy.spans.find(self.host.tokens, self.host.mask)
        (rows, group), width = self.shape, self.host.tokens.shape[1]

        def widen(values, fill):
            padded = np.full((rows, width), fill, np.float32)
            padded[:, :group] = np.asarray(values).reshape(rows, group)
            return padded

        demonstrated = np.ones((rows, width), bool)
        if not self.responses.demonstrated:
            demonstrated[:, :group] = self.memorised
        return {
            "reasoning_mask": reasoning,
            "answer_mask": answer,
            "rewards": widen(self.scores.total, np.nan),
            "accuracies": widen(self.scores.accuracy, np.nan),
            "demonstrated": demonstrated,
            "given": {name: widen(values, 0) for name, values in self.given.items()},
        }


def score_rollouts(
    responses: Responses, records: Sequence[Record], policy: Policy, score: ScoreFunction
) -> ScoredRollouts:
    """Texts and rewards of all rollouts; waits for the device."""
    mine = [records[i] for i in responses.host_prompts.record_ids]
    host = jax.tree.map(local_rows, responses.all)
    own = jax.tree.map(local_rows, responses.rollouts)
    rows, group, length = own.tokens.shape
    tokens, mask = own.tokens.reshape(-1, length), own.mask.reshape(-1, length)
    texts = policy.texts(tokens, mask)
    ids = [row[said] for row, said in zip(tokens, mask, strict=True)]
    owners = [record for record in mine for _ in range(group)]
    scores = _of_leader(score(owners, texts, completion_ids=ids), policy)
    return ScoredRollouts(responses, mine, texts, scores, host, np.zeros((rows, group), bool))


def _of_leader(scores: Scores, policy: Policy) -> Scores:
    """The scores that all processes go on with which hold these rows."""
    columns = [scores.total, scores.accuracy, scores.parsed, *scores.components.values()]
    table = np.stack(columns, axis=1, dtype=np.float64)
    total, accuracy, parsed, *components = rows_of_leader(table, policy.rows).T
    return dataclasses.replace(
        scores,
        total=total,
        accuracy=accuracy,
        parsed=parsed.astype(bool),
        components=dict(zip(scores.components, components, strict=True)),
    )


def generate_scored(
    policy: Policy,
    params: Trained,
    records: Sequence[Record],
    score: ScoreFunction,
    sampling: Sampling,
    rng: Array,
    *,
    batch_size: int,
    samples: int = 1,
) -> Iterator[tuple[ScoredRollouts, Bool[np.ndarray, "P"]]]:
    """Scored responses to every record, this process's part of each batch, and which rows count;
    the others only fill the last batch. `params`: those that learn."""
    for batch in generate(
        policy,
        policy.to_read(params),
        records,
        sampling,
        rng,
        batch_size=batch_size,
        samples=samples,
    ):
        responses = Responses(batch.host_prompts, batch.prompts, batch.rollouts)
        yield score_rollouts(responses, records, policy, score), batch.valid
