"""The responses of one step, from the device to what an update learns from.

A step's responses are drawn on the device, judged on the host, and, where the method wants it,
changed there: groups that say nothing replaced, or demonstrations put in. All host arrays hold
this process's rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from rdbcl_jax.batches import PromptBatch, Rollouts
from rdbcl_jax.data.prompts import SupervisedBatch
from rdbcl_jax.data.records import Record
from rdbcl_jax.policy import Policy
from rdbcl_jax.rewards.scoring import Scores
from rdbcl_jax.sharding import local_rows, put_batch

ScoreFunction = Callable[[Sequence[Record], Sequence[str]], Scores]


@dataclasses.dataclass(frozen=True)
class Responses:
    """Prompts and the responses to them, as drawn."""

    host_prompts: PromptBatch
    prompts: PromptBatch  # the same on the device, all processes' rows
    rollouts: Rollouts  # [P, G, …], on the device
    others: Rollouts | None = None  # of the previous policy, [P, g, …]: given, and not judged
    given: bool = False  # are the rollouts demonstrations, rather than the policy's?

    @property
    def all(self) -> Rollouts:
        """Rollouts and others side by side, [P, G + g, …], on the device."""
        if self.others is None:
            return self.rollouts
        return jax.tree.map(
            lambda a, b: jnp.concatenate([a, b], axis=1), self.rollouts, self.others
        )


@dataclasses.dataclass(frozen=True)
class Judged:
    """Responses with their rewards, on the host.

    Attributes:
      records: P of them.
      texts: of the P·G rollouts, prompt by prompt.
      scores: of the texts.
      host: the rollouts (with the others, if any) as numpy arrays, [P, G + g, …].
      memorised: rollouts that a demonstration has replaced; `texts` and `scores` are still those
        of what the policy said.
    """

    responses: Responses
    records: list[Record]
    texts: list[str]
    scores: Scores
    host: Rollouts
    memorised: Bool[np.ndarray, "P G"]

    @property
    def shape(self) -> tuple[int, int]:
        """(P, G) of this process, without the others."""
        return self.memorised.shape

    @property
    def own(self) -> Rollouts:
        """The rollouts alone, as numpy arrays [P, G, …]."""
        return jax.tree.map(lambda a: a[:, : self.shape[1]], self.host)

    @property
    def informative(self) -> Bool[np.ndarray, "P"]:
        """Groups whose rewards differ: the others have no advantage."""
        rewards = self.scores.total.reshape(self.shape)
        return np.nanmax(rewards, 1) > np.nanmin(rewards, 1)

    def columns(self, policy: Policy) -> dict[str, np.ndarray]:
        """The train batch's arrays that come from the host, [P, G + g, …]."""
        reasoning, answer = policy.spans.find(self.host.tokens, self.host.mask)
        (rows, group), width = self.shape, self.host.tokens.shape[1]

        def widen(values, fill):
            padded = np.full((rows, width), fill, np.float32)
            padded[:, :group] = np.asarray(values).reshape(rows, group)
            return padded

        given = np.ones((rows, width), bool)
        if not self.responses.given:
            given[:, :group] = self.memorised
        return {
            "reasoning_mask": reasoning,
            "answer_mask": answer,
            "rewards": widen(self.scores.total, np.nan),
            "accuracies": widen(self.scores.accuracy, np.nan),
            "given": given,
        }


def demonstrated(batch: SupervisedBatch, policy: Policy) -> Responses:
    """Given responses in the place of sampled ones."""
    rollouts = Rollouts(
        tokens=batch.tokens,
        mask=batch.mask,
        logps=np.zeros(batch.mask.shape, np.float32),
        finished=np.ones(batch.mask.shape[:2], bool),
    )
    prompts, on_device = put_batch((batch.prompts, rollouts), policy.mesh)
    return Responses(batch.prompts, prompts, on_device, given=True)


def judge(
    responses: Responses, records: Sequence[Record], policy: Policy, score: ScoreFunction
) -> Judged:
    """Texts and rewards of all rollouts; waits for the device."""
    mine = [records[i] for i in responses.host_prompts.record_ids]
    host = jax.tree.map(local_rows, responses.all)
    own = jax.tree.map(local_rows, responses.rollouts)
    rows, group, length = own.tokens.shape
    texts = policy.texts(own.tokens.reshape(-1, length), own.mask.reshape(-1, length))
    scores = score([record for record in mine for _ in range(group)], texts)
    return Judged(responses, mine, texts, scores, host, np.zeros((rows, group), bool))


def replenished(judged: Judged, more: Judged, policy: Policy) -> Judged:
    """The first's uninformative groups replaced by the second's informative ones, as many as
    there are (dynamic sampling, 2503.14476). Each process fills its own rows."""
    kept = np.flatnonzero(judged.informative)
    new = np.flatnonzero(more.informative)[: len(judged.records) - len(kept)]
    rest = np.flatnonzero(~judged.informative)[: len(judged.records) - len(kept) - len(new)]
    group = judged.shape[1]

    def pick(mine, others):
        return np.concatenate([mine[kept], others[new], mine[rest]])

    def rows(values, others):  # of P·G
        values, others = (np.asarray(v, object).reshape(-1, group) for v in (values, others))
        return pick(values, others).reshape(-1)

    host = jax.tree.map(pick, judged.host, more.host)
    records = list(pick(*(np.array([*j.records, None], object)[:-1] for j in (judged, more))))
    ids = pick(*(np.asarray(j.responses.host_prompts.record_ids) for j in (judged, more)))
    prompts = policy.encoder.encode(records, ids)  # anew: the two batches may differ in shape
    on_device, rollouts = put_batch((prompts, host), policy.mesh)
    scores = Scores(
        total=rows(judged.scores.total, more.scores.total).astype(float),
        components={
            name: rows(values, more.scores.components[name]).astype(float)
            for name, values in judged.scores.components.items()
        },
        accuracy=rows(judged.scores.accuracy, more.scores.accuracy).astype(float),
        parsed=rows(judged.scores.parsed, more.scores.parsed).astype(bool),
        problems=tuple(rows(judged.scores.problems, more.scores.problems)),
    )
    responses = Responses(prompts, on_device, rollouts)
    texts = rows(judged.texts, more.texts).tolist()
    return Judged(responses, records, texts, scores, host, judged.memorised)


def memorised(
    judged: Judged, demonstration: Callable[[Record], str | None], policy: Policy
) -> Judged:
    """Where no response of a group is right, its first becomes the demonstration (2506.23061)."""
    right = np.asarray(judged.scores.accuracy).reshape(judged.shape) > 0.5
    rows = [
        p for p in np.flatnonzero(~right.any(1)) if demonstration(judged.records[p]) is not None
    ]
    if rows:
        chosen = [judged.records[p] for p in rows]
        texts = [demonstration(record) for record in chosen]
        tokens, mask = policy.encoder.encode_responses(texts, chosen)
        host = jax.tree.map(np.array, judged.host)  # a copy
        host.tokens[rows, 0], host.mask[rows, 0] = tokens, mask
        host.logps[rows, 0], host.finished[rows, 0] = 0.0, True
        replaced = judged.memorised.copy()
        replaced[rows, 0] = True
        judged = dataclasses.replace(judged, host=host, memorised=replaced)
    # on every process alike: whether one has such a group or none
    rollouts = put_batch(judged.host, policy.mesh)
    responses = dataclasses.replace(judged.responses, rollouts=rollouts, others=None)
    return dataclasses.replace(judged, responses=responses)
