"""Right responses of a policy, kept to learn from: the RFT rollouts of 2506.23508.

A run collects them as it goes (`training.collect`), or `rdbcl collect` does afterwards, from its
checkpoints.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Array

from rdbcl_jax.config import RunConfig
from rdbcl_jax.data.records import Record
from rdbcl_jax.data.tasks import load_sequence
from rdbcl_jax.models.partition import Trained
from rdbcl_jax.policy import Policy, record_check
from rdbcl_jax.remote import of_this_machine
from rdbcl_jax.results import FILE
from rdbcl_jax.rewards.scoring import judge
from rdbcl_jax.rollout.sampling import Sampling, sampling_of
from rdbcl_jax.rollout.scored import ScoredRollouts, ScoreFunction, generate_scored
from rdbcl_jax.sharding import make_mesh
from rdbcl_jax.snapshots import load_snapshots
from rdbcl_jax.training import rng
from rdbcl_jax.workdir import check_names_no_code, directory_of, place, run_config

_COLUMNS = ("record_id", "task", "prompt", "completion", "gold")


def collect(
    workdir: str,
    out: str | pathlib.Path,
    config: RunConfig | Mapping[str, Any] | None = None,
    *,
    samples: int = 4,
    limit: int = 0,
) -> dict[str, tuple[int, int]]:
    """For each finished task of a run, right responses of the policy that had just learned it.

    Writes `out`/TASK.parquet with the right ones of `samples` responses to each of the task's
    training records (the first `limit`, or all); see `write_right_responses` for its columns.
    `config.method = "rft_sft"` learns from such files.

    Args:
      config: the run's; default: what its results.json says, if that names no functions, verifiers
        or suites of one's own.
    Returns:
      Per task, how many responses were kept, of how many.
    Raises:
      FileNotFoundError: no such workdir, or no task of it is finished.
      ValueError: results.json names code to import; the config is of other tasks.
    """
    out = of_this_machine(out, "what is collected")
    saved = run_config(workdir)
    if config is None:
        check_names_no_code(saved, pathlib.Path(workdir) / FILE)
    config = saved if config is None else RunConfig.of(config)
    if config.sequence != saved.sequence:
        raise ValueError(
            f"config.sequence is {config.sequence}, and {workdir} holds a run of {saved.sequence}"
        )
    start, _, finished = place(config, workdir)
    if not finished:
        raise FileNotFoundError(f"{workdir}: no task is finished, so nothing can be collected")
    check = record_check(config, lambda: contextlib.nullcontext(directory_of(start)))
    tasks = load_sequence(config, check)
    mesh = make_mesh(data=1, fsdp=-1)
    snapshots = load_snapshots(config, [f"{workdir}@{k + 1}" for k in range(finished)], mesh)
    found = {}
    for k, (task, snapshot) in enumerate(zip(tasks, snapshots, strict=False)):
        found[task.name] = write_right_responses(
            out / f"{task.name}.parquet",
            snapshot.policy,
            snapshot.learned,
            task.train[: limit or None],
            judge,
            sampling_of(snapshot.policy, config.rollout),
            rng.of_collected(config.seed, k),
            batch_size=config.evaluation.batch_size,
            samples=samples,
        )
    return found


def write_right_responses(
    path: pathlib.Path,
    policy: Policy,
    params: Trained,
    records: Sequence[Record],
    score: ScoreFunction,
    sampling: Sampling,
    rng: Array,
    *,
    batch_size: int,
    samples: int,
) -> tuple[int, int]:
    """Writes the right, finished ones of `samples` responses to each record to a Parquet file.

    Rows have `record_id`, `task`, `prompt`, `completion` and `gold`; a completion that a record
    already has is not repeated. Returns how many were kept, of how many
    (this process's). Of several processes that hold the same rows one writes.
    """
    rows: list[tuple[str, ...]] = []
    tried = 0
    for scored, valid in generate_scored(
        policy, params, records, score, sampling, rng, batch_size=batch_size, samples=samples
    ):
        tried += int(valid.sum()) * samples
        rows += _right_rows(scored, valid)
    if not policy.rows.leads:
        return len(rows), tried
    columns = zip(*rows, strict=True) if rows else ([] for _ in _COLUMNS)
    schema = pa.schema([(name, pa.string()) for name in _COLUMNS])
    table = pa.table([list(column) for column in columns], schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    pq.write_table(table, draft)
    draft.rename(path)
    return len(rows), tried


def _right_rows(scored: ScoredRollouts, valid: np.ndarray) -> list[tuple[str, ...]]:
    # a response that was cut may parse, and would be too long with its end token
    right = (scored.scores.accuracy == 1).reshape(scored.shape) & scored.own.finished
    texts = np.array(scored.texts, object).reshape(scored.shape)
    rows: list[tuple[str, ...]] = []
    for row in np.flatnonzero(valid):
        record = scored.records[row]
        rows += [
            (record.id, record.task, record.prompt, text, record.answer)
            for text in dict.fromkeys(texts[row][right[row]])
        ]
    return rows
