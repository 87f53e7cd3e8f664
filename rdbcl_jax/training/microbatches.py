"""How many parts an update takes a batch in: users say how many prompts a device takes at once, and
the number of parts follows."""

from __future__ import annotations

from collections.abc import Mapping

from rdbcl_jax.config import RunConfig
from rdbcl_jax.sharding import row_parts


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
