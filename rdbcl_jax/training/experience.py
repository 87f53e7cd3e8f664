"""What a method makes of a step's scored rollouts before an update learns from them.

Groups that say nothing are replaced, demonstrations put in. All host arrays hold this process's
rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from rdbcl_jax.batches import Rollouts
from rdbcl_jax.data.prompts import SupervisedBatch
from rdbcl_jax.data.records import Record
from rdbcl_jax.policy import Policy
from rdbcl_jax.rewards.scoring import Scores
from rdbcl_jax.rollout.scored import Responses, ScoredRollouts
from rdbcl_jax.sharding import put_batch


def demonstrated(batch: SupervisedBatch, policy: Policy) -> Responses:
    """Demonstrations in place of sampled responses."""
    rollouts = Rollouts(
        tokens=batch.tokens,
        mask=batch.mask,
        logps=np.zeros(batch.mask.shape, np.float32),
        finished=np.ones(batch.mask.shape[:2], bool),
    )
    prompts, on_device = put_batch((batch.prompts, rollouts), policy.mesh)
    return Responses(batch.prompts, prompts, on_device, demonstrated=True)


def replenished(scored: ScoredRollouts, more: ScoredRollouts, policy: Policy) -> ScoredRollouts:
    """The first's uninformative groups replaced by the second's informative ones, as many as
    there are (dynamic sampling, 2503.14476). Each process fills its own rows."""
    kept = np.flatnonzero(scored.informative)
    new = np.flatnonzero(more.informative)[: len(scored.records) - len(kept)]
    rest = np.flatnonzero(~scored.informative)[: len(scored.records) - len(kept) - len(new)]
    group = scored.shape[1]

    def pick(mine, others):
        return np.concatenate([mine[kept], others[new], mine[rest]])

    def rows(values, others):  # of P·G
        values, others = (np.asarray(v, object).reshape(-1, group) for v in (values, others))
        return pick(values, others).reshape(-1)

    host = jax.tree.map(pick, scored.host, more.host)
    records = list(pick(*(np.array([*j.records, None], object)[:-1] for j in (scored, more))))
    ids = pick(*(np.asarray(j.responses.host_prompts.record_ids) for j in (scored, more)))
    prompts = policy.encoder.encode(records, ids)  # anew: the two batches may differ in shape
    on_device, rollouts = put_batch((prompts, host), policy.mesh)
    nothing = [None] * len(scored.texts)
    scores = Scores(
        total=rows(scored.scores.total, more.scores.total).astype(float),
        components={
            name: rows(values, more.scores.components[name]).astype(float)
            for name, values in scored.scores.components.items()
        },
        accuracy=rows(scored.scores.accuracy, more.scores.accuracy).astype(float),
        parsed=rows(scored.scores.parsed, more.scores.parsed).astype(bool),
        problems=tuple(rows(scored.scores.problems, more.scores.problems)),
        metrics=scored.scores.metrics,
        extra={
            name: rows(*(s.scores.extra.get(name, nothing) for s in (scored, more))).tolist()
            for name in {**scored.scores.extra, **more.scores.extra}
        },
    )
    responses = Responses(prompts, on_device, rollouts)
    texts = rows(scored.texts, more.texts).tolist()
    return ScoredRollouts(responses, records, texts, scores, host, scored.memorised)


def memorised(
    scored: ScoredRollouts, demonstration: Callable[[Record], str | None], policy: Policy
) -> ScoredRollouts:
    """Where no response of a group is right, its first becomes the demonstration (2506.23061)."""
    right = np.asarray(scored.scores.accuracy).reshape(scored.shape) > 0.5
    wrong = [(p, demonstration(scored.records[p])) for p in np.flatnonzero(~right.any(1))]
    found = {p: text for p, text in wrong if text is not None}
    if rows := list(found):
        chosen, texts = [scored.records[p] for p in rows], list(found.values())
        tokens, mask = policy.encoder.encode_responses(texts, chosen)
        host = jax.tree.map(np.array, scored.host)  # a copy
        host.tokens[rows, 0], host.mask[rows, 0] = tokens, mask
        host.logps[rows, 0], host.finished[rows, 0] = 0.0, True
        replaced = scored.memorised.copy()
        replaced[rows, 0] = True
        scored = dataclasses.replace(scored, host=host, memorised=replaced)
    # on every process alike, whether it has such a group or not
    rollouts = put_batch(scored.host, policy.mesh)
    responses = dataclasses.replace(scored.responses, rollouts=rollouts, others=None)
    return dataclasses.replace(scored, responses=responses)
