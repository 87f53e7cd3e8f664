"""What is logged of a step: its row of metrics, and the rows of its sampled responses.

Pure functions of host numbers; means are over the responses of all processes, but for what reward
functions log themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from rdbcl_jax.rollout.scored import ScoredRollouts
from rdbcl_jax.sharding import RowShard, all_hosts_rows, all_hosts_sum


def rollout_metrics(scored: ScoredRollouts, shard: RowShard, *, memorise: bool) -> dict[str, float]:
    """What a step's scored rollouts say, under TRL's names.

    Args:
      shard: the rows of this process.
      memorise: whether demonstrations may have replaced responses.
    """
    own, rewards = scored.own, scored.scores.total.reshape(scored.shape)
    lengths = own.mask.sum(-1)
    everywhere = all_hosts_rows(np.asarray(lengths).reshape(-1), shard)
    prompt_tokens = int(scored.responses.host_prompts.mask.sum())
    tokens = np.array([prompt_tokens * rewards.shape[1] + lengths.sum()])
    means = {
        "accuracy": np.mean(scored.scores.accuracy),
        "parse_rate": np.mean(scored.scores.parsed),
        "completions/mean_length": lengths.mean(),
        "completions/clipped_ratio": 1 - own.finished.mean(),
    }
    if memorise:
        means["memorised_groups"] = scored.memorised.any(1).mean()
    values = all_hosts_sum(np.array(list(means.values())), shard) / shard.groups
    return {
        **scored.scores.metrics,
        **reward_means(rewards, scored.informative, shard),
        **dict(zip(means, values.tolist(), strict=True)),
        **component_means(scored.scores.components, shard),
        "completions/min_length": int(everywhere.min()),
        "completions/max_length": int(everywhere.max()),
        "num_tokens": int(all_hosts_sum(tokens, shard)[0]),
    }


def reward_means(
    rewards: Float[np.ndarray, "P G"], informative: Bool[np.ndarray, "P"], shard: RowShard
) -> dict[str, float]:
    """Of all processes: the mean reward, over the responses to which one applies (not NaN); the
    mean of the groups' standard deviations, over groups with such a response; and the share of all
    groups that say nothing. A mean of nothing is left out."""
    applies = ~np.isnan(rewards)
    count = applies.sum(1)
    mean = np.where(applies, rewards, 0).sum(1) / np.maximum(count, 1)
    squares = np.where(applies, rewards - mean[:, None], 0.0) ** 2
    spread = np.sqrt(squares.sum(1) / np.maximum(count - 1, 1))  # of the sample; 0 of one response
    pairs = {
        "reward": (rewards[applies].sum(), applies.sum()),
        "reward_std": (spread.sum(), (count > 0).sum()),
        "frac_reward_zero_std": ((~informative).sum(), len(rewards)),
    }
    sums = all_hosts_sum(np.array(list(pairs.values()), float), shard)
    found = zip(pairs, sums, strict=True)
    return {name: float(total / number) for name, (total, number) in found if number}


def component_means(components: dict[str, np.ndarray], shard: RowShard) -> dict[str, float]:
    """Mean of each reward over the responses, of all processes, to which it applies (not NaN);
    rewards that apply to none are left out."""
    known = [values[~np.isnan(values)] for values in components.values()]
    sums = all_hosts_sum(np.array([(values.sum(), len(values)) for values in known]), shard)
    return {
        f"rewards/{name}/mean": float(total / count)
        for name, (total, count) in zip(components, sums, strict=True)
        if count
    }


def sample_columns(
    scored: ScoredRollouts, values: dict[str, Float[np.ndarray, "P G"]], *, memorise: bool
) -> dict[str, Any]:
    """The per-sample table's columns of a step: its P·G responses of this process.

    Args:
      values: the update's, [P, G + g]; those of the g responses that the policy did not sample are
        left out.
    """
    _, group = scored.shape
    records = [record for record in scored.records for _ in range(group)]
    per_sample = {name: value[:, :group].reshape(-1) for name, value in values.items()}
    if memorise:
        per_sample["memorised"] = scored.memorised.reshape(-1)
    return {
        **scored.scores.extra,
        "record_id": [r.id for r in records],
        "prompt": [r.prompt for r in records],
        "completion": scored.texts,
        "gold": [r.answer for r in records],
        "reward": scored.scores.total,
        **{f"rewards/{name}": value for name, value in scored.scores.components.items()},
        "accuracy": scored.scores.accuracy,
        "parsed": scored.scores.parsed,
        "length": scored.own.mask.sum(-1).reshape(-1),
        "finished": scored.own.finished.reshape(-1),
        **per_sample,
    }
