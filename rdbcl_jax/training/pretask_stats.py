"""Responses of one policy to all records of a task: what they say about the prompts, and which of
them are right."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Array, Bool, Float

from rdbcl_jax.core.portability import reasoning_portability
from rdbcl_jax.data.records import Record
from rdbcl_jax.models.interface import Params
from rdbcl_jax.policy import Policy
from rdbcl_jax.rollout.generate import Answered, answers
from rdbcl_jax.rollout.sampling import Sampling
from rdbcl_jax.sharding import all_hosts_sum
from rdbcl_jax.training.experience import Judged, Responses, ScoreFunction, judge


def respond(
    policy: Policy,
    params: Params,
    records: Sequence[Record],
    score: ScoreFunction,
    sampling: Sampling,
    key: Array,
    *,
    batch_size: int,
    samples: int = 1,
) -> Iterator[tuple[Judged, Bool[np.ndarray, "P"]]]:
    """Judged responses to every record, this process's part of each batch; False marks the rows
    that only fill the last one."""
    waiting = None  # judged while the device decodes the next batch
    for batch in answers(
        policy,
        policy.whole(params),
        records,
        sampling,
        key,
        batch_size=batch_size,
        samples=samples,
    ):
        if waiting:
            yield _judged(waiting, records, policy, score)
        waiting = batch
    if waiting:
        yield _judged(waiting, records, policy, score)


def _judged(batch: Answered, records, policy, score):
    responses = Responses(batch.host_prompts, batch.prompts, batch.rollouts)
    return judge(responses, records, policy, score), batch.valid


def survey(
    policy: Policy,
    params: Params,
    records: Sequence[Record],
    score: ScoreFunction,
    sampling: Sampling,
    key: Array,
    batch_size: int,
) -> dict[str, Float[np.ndarray, "N"]]:
    """What one response to each prompt says about it; `params`: the policy from before the task.

    Returns, each in [0, 1] and by the index of the record: `confidence`, the geometric mean
    probability of its reasoning's tokens (static RP; 1 where there is no reasoning), and
    `success`, whether it was right.
    """
    found = np.zeros((2, len(records)), np.float32)
    answers = respond(policy, params, records, score, sampling, key, batch_size=batch_size)
    for judged, valid in answers:
        reasoning, _ = policy.spans.find(judged.host.tokens, judged.host.mask)
        logps = judged.host.logps
        sure = np.asarray(reasoning_portability(logps, logps, reasoning, kind="confidence"))[:, 0]
        ids = judged.responses.host_prompts.record_ids[valid]
        found[:, ids] = np.stack([sure, judged.scores.accuracy])[:, valid]
    confidence, success = all_hosts_sum(found)
    return {"confidence": confidence, "success": success}


def collect(
    path: pathlib.Path,
    policy: Policy,
    params: Params,
    records: Sequence[Record],
    score: ScoreFunction,
    sampling: Sampling,
    key: Array,
    *,
    batch_size: int,
    samples: int,
) -> tuple[int, int]:
    """Writes the right, finished ones of `samples` responses to each record to a Parquet file.

    Rows have `record_id`, `task`, `prompt`, `completion` and `gold`; a completion that a record
    already has is not repeated. Returns how many were kept, of how many (this process's).
    """
    rows, tried = [], 0
    for judged, valid in respond(
        policy, params, records, score, sampling, key, batch_size=batch_size, samples=samples
    ):
        # one that was cut may parse, and would be too long with its end token
        right = (judged.scores.accuracy == 1).reshape(judged.shape) & judged.own.finished
        texts = np.array(judged.texts, object).reshape(judged.shape)
        tried += int(valid.sum()) * samples
        for row in np.flatnonzero(valid):
            record = judged.records[row]
            rows += [
                (record.id, record.task, record.prompt, text, record.answer)
                for text in dict.fromkeys(texts[row][right[row]])
            ]
    names = ("record_id", "task", "prompt", "completion", "gold")
    columns = zip(*rows, strict=True) if rows else ([] for _ in names)
    schema = pa.schema([(name, pa.string()) for name in names])
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table([list(column) for column in columns], schema=schema)
    draft = path.with_suffix(".draft")
    pq.write_table(table, draft)
    draft.rename(path)
    return len(rows), tried
