"""What becomes of a step's scored rollouts before an update learns from them: `Method.revise`.

Groups that say nothing are replaced, demonstrations put in. All host arrays hold this process's
rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from rdbcl_jax.data.records import Record
from rdbcl_jax.methods.method import Draws, Revision
from rdbcl_jax.policy import Policy
from rdbcl_jax.rewards.scoring import Scores
from rdbcl_jax.rollout.scored import Responses, ScoredRollouts
from rdbcl_jax.sharding import all_hosts_sum, put_batch


def resampling(batches: int) -> Revision:
    """Up to so many more batches are drawn to replace groups whose rewards are all equal."""

    def revise(scored: ScoredRollouts, draws: Draws) -> ScoredRollouts:
        for _ in range(batches):
            if not anywhere(~scored.informative, draws.policy):
                break
            scored = replenished(scored, draws.next_batch(), draws.policy)
        return scored

    return revise


def memorising(demonstration: Callable[[Record], str | None]) -> Revision:
    """Where no response of a group is right, its first becomes the demonstration (2506.23061)."""

    def revise(scored: ScoredRollouts, draws: Draws) -> ScoredRollouts:
        return taught(scored, np.flatnonzero(~scored.right.any(1)), demonstration, draws.policy)

    return revise


# ------------------------------------------------------------------ what they are made of


def replenished(scored: ScoredRollouts, more: ScoredRollouts, policy: Policy) -> ScoredRollouts:
    """The first's uninformative groups replaced by the second's informative ones, as many as
    there are (dynamic sampling, 2503.14476). Each process fills its own rows."""
    rows, group = scored.shape
    kept = np.flatnonzero(scored.informative)
    new = np.flatnonzero(more.informative)[: rows - len(kept)]
    rest = np.flatnonzero(~scored.informative)[: rows - len(kept) - len(new)]
    chosen = np.concatenate([kept, rows + new, rest])  # of both, side by side

    def pick(mine, others):
        return np.concatenate([mine, others])[chosen]

    host = jax.tree.map(pick, scored.host, more.host)
    both = [*scored.records, *more.records]
    records = [both[p] for p in chosen]
    ids = pick(*(np.asarray(j.responses.host_prompts.record_ids) for j in (scored, more)))
    prompts = policy.encoder.encode(records, ids)  # anew: the two batches may differ in shape
    on_device, rollouts = put_batch((prompts, host), policy.mesh)
    samples = (chosen[:, None] * group + np.arange(group)).reshape(-1)
    texts = [*scored.texts, *more.texts]
    return ScoredRollouts(
        Responses(prompts, on_device, rollouts),
        records,
        [texts[i] for i in samples],
        taken(joined(scored.scores, more.scores), samples),
        host,
        scored.memorised,
    )


def taught(
    scored: ScoredRollouts,
    rows: Int[np.ndarray, "n"],
    demonstration: Callable[[Record], str | None],
    policy: Policy,
) -> ScoredRollouts:
    """The first response of these groups becomes the demonstration, where the record has one."""
    found = {p: text for p in rows if (text := demonstration(scored.records[p])) is not None}
    if these := list(found):
        chosen, texts = [scored.records[p] for p in these], list(found.values())
        tokens, mask = policy.encoder.encode_responses(texts, chosen)
        host = jax.tree.map(np.array, scored.host)  # a copy
        host.tokens[these, 0], host.mask[these, 0] = tokens, mask
        host.logps[these, 0], host.finished[these, 0] = 0.0, True
        replaced = scored.memorised.copy()
        replaced[these, 0] = True
        scored = dataclasses.replace(scored, host=host, memorised=replaced)
    # on every process alike, whether it has such a group or not
    rollouts = put_batch(scored.host, policy.mesh)
    responses = dataclasses.replace(scored.responses, rollouts=rollouts, others=None)
    return dataclasses.replace(scored, responses=responses)


def anywhere(here: Bool[np.ndarray, "P"], policy: Policy) -> bool:
    """Whether it holds for a prompt of any process."""
    return bool(all_hosts_sum(np.array(here.any()), policy.rows))


def beside(
    scored: ScoredRollouts, more: ScoredRollouts, rows: Int[np.ndarray, "n"]
) -> ScoredRollouts:
    """The rollouts [P, G] and, beside them, those of the second [n, g], on the host: its prompts
    are these rows of the first. Other rows are filled up with some of the second's, which the
    caller leaves out."""
    (count, group), width = scored.shape, more.shape[1]
    source = np.zeros(count, int)
    source[rows] = np.arange(len(rows))
    mine = np.arange(count * group).reshape(count, group)
    theirs = count * group + source[:, None] * width + np.arange(width)
    samples = np.hstack([mine, theirs]).reshape(-1)
    texts = [*scored.texts, *more.texts]
    return dataclasses.replace(
        scored,
        texts=[texts[i] for i in samples],
        scores=taken(joined(scored.scores, more.scores), samples),
        host=jax.tree.map(lambda a, b: np.hstack([a, b[source]]), scored.host, more.host),
        memorised=np.hstack([scored.memorised, more.memorised[source]]),
    )


def with_samples(
    scored: ScoredRollouts,
    picks: Int[np.ndarray, "P n"],
    policy: Policy,
    given: dict[str, Float[np.ndarray, "P n"]],
) -> ScoredRollouts:
    """These of each group's rollouts alone, with what is given of each; on the device too."""
    rows = np.arange(len(picks))[:, None]
    samples = (rows * scored.shape[1] + picks).reshape(-1)
    host = jax.tree.map(lambda a: a[rows, picks], scored.host)
    responses = dataclasses.replace(
        scored.responses, rollouts=put_batch(host, policy.mesh), others=None
    )
    return dataclasses.replace(
        scored,
        responses=responses,
        texts=[scored.texts[i] for i in samples],
        scores=taken(scored.scores, samples),
        host=host,
        memorised=scored.memorised[rows, picks],
        given=given,
    )


def joined(scores: Scores, more: Scores) -> Scores:
    """Of the completions of both; what functions logged as metrics is of the first."""
    nothing = [None] * len(scores.total), [None] * len(more.total)
    return Scores(
        total=np.concatenate([scores.total, more.total]),
        components={
            name: np.concatenate([values, more.components[name]])
            for name, values in scores.components.items()
        },
        accuracy=np.concatenate([scores.accuracy, more.accuracy]),
        parsed=np.concatenate([scores.parsed, more.parsed]),
        problems=(*scores.problems, *more.problems),
        metrics=scores.metrics,
        extra={
            name: [*scores.extra.get(name, nothing[0]), *more.extra.get(name, nothing[1])]
            for name in {**scores.extra, **more.extra}
        },
    )


def taken(scores: Scores, samples: Int[np.ndarray, "n"]) -> Scores:
    """Of these completions alone."""
    return Scores(
        total=scores.total[samples],
        components={name: values[samples] for name, values in scores.components.items()},
        accuracy=scores.accuracy[samples],
        parsed=scores.parsed[samples],
        problems=tuple(scores.problems[i] for i in samples),
        metrics=scores.metrics,
        extra={name: [texts[i] for i in samples] for name, texts in scores.extra.items()},
    )
