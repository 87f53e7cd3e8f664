"""Right responses of a run's policies, to learn from: the RFT rollouts of 2506.23508."""

from __future__ import annotations

import functools
import pathlib

from rdbcl_jax.data.tasks import load_sequence
from rdbcl_jax.rewards.scoring import RewardConfig, score
from rdbcl_jax.rollout.sampling import sampling_of
from rdbcl_jax.sharding import make_mesh
from rdbcl_jax.snapshots import load_snapshots
from rdbcl_jax.training import rng
from rdbcl_jax.training.pretask_stats import collect as collect_responses
from rdbcl_jax.workdir import place, run_config


def collect(
    workdir: str, out: str | pathlib.Path, *, samples: int = 4, limit: int = 0
) -> dict[str, tuple[int, int]]:
    """For each finished task of a run, what the policy that had just learned it answers rightly.

    Writes `out`/TASK.parquet with the right ones of `samples` responses to each of the task's
    training records (the first `limit`, or all); see `training.survey.collect` for its columns.
    `config.method = "rft_sft"` learns from such files.

    Returns:
      Per task, how many responses were kept, of how many.
    Raises:
      FileNotFoundError: no such workdir, or no task of it is finished.
    """
    config = run_config(workdir)
    _, _, finished = place(config, workdir)
    if not finished:
        raise FileNotFoundError(f"{workdir}: no task is finished, so nothing can be collected")
    rewards, mesh = RewardConfig(**config.rewards.to_dict()), make_mesh(data=1, fsdp=-1)
    snapshots = load_snapshots(config, [f"{workdir}@{k + 1}" for k in range(finished)], mesh)
    found = {}
    for k, (task, snapshot) in enumerate(zip(load_sequence(config), snapshots, strict=False)):
        policy = snapshot.policy
        found[task.name] = collect_responses(
            pathlib.Path(out) / f"{task.name}.parquet",
            policy,
            snapshot.learned,
            task.train[: limit or None],
            functools.partial(score, config=rewards),
            sampling_of(policy, config.rollout),
            rng.of_collected(config.seed, k),
            batch_size=config.evaluation.batch_size,
            samples=samples,
        )
    return found
