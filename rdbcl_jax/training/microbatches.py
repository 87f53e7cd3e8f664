"""How many parts an update takes a batch in: users say how many prompts a device takes at once, and
the number of parts follows."""

from __future__ import annotations

from collections.abc import Mapping

from rdbcl_jax.config import RunConfig
from rdbcl_jax.sharding import row_parts
from rdbcl_jax.training.lengths import lengths


def prompts_at_once(config: RunConfig, mesh: Mapping[str, int]) -> int:
    """Prompts of a micro-batch on each device: as many of its own as `training.prompts_per_device`
    allows and divide them."""
    rows = config.rollout.prompts // row_parts(mesh)
    most = config.training.prompts_per_device or rows
    return max(n for n in range(1, min(most, max(rows, 1)) + 1) if rows % n == 0)


def microbatches(config: RunConfig, mesh: Mapping[str, int]) -> int:
    """Parts that the gradients of a batch are accumulated over."""
    rows = config.rollout.prompts // row_parts(mesh)
    return max(rows // prompts_at_once(config, mesh), 1)


def passes_at_once(config: RunConfig, mesh: Mapping[str, int]) -> bool:
    """Whether log-probs are those of a whole batch at a time, where an update may take it in parts:
    if responses are all of one length, or each part would gather the parameters anew."""
    return len(lengths(config.rollout.max_tokens)) == 1 or mesh["fsdp"] > 1
