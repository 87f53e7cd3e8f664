"""Pre-task statistics: what one response of the policy from before a task says of each prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float

from rdbcl_jax.core.portability import reasoning_portability
from rdbcl_jax.data.records import Record
from rdbcl_jax.models.partition import Trained
from rdbcl_jax.policy import Policy
from rdbcl_jax.rollout.sampling import Sampling
from rdbcl_jax.rollout.scored import ScoreFunction, generate_scored
from rdbcl_jax.sharding import all_hosts_sum


def pretask_stats(
    policy: Policy,
    params: Trained,
    records: Sequence[Record],
    score: ScoreFunction,
    sampling: Sampling,
    rng: Array,
    batch_size: int,
) -> dict[str, Float[np.ndarray, "N"]]:
    """By the index of the record, each in [0, 1]: `confidence`, the geometric mean probability of
    the reasoning's tokens (static RP; 1 where there is no reasoning), and `success`, whether the
    response was right. `params`: of the policy from before the task."""
    found = np.zeros((2, len(records)), np.float32)
    for scored, valid in generate_scored(
        policy, params, records, score, sampling, rng, batch_size=batch_size
    ):
        reasoning, _ = policy.spans.find(scored.host.tokens, scored.host.mask)
        logps = scored.host.logps
        sure = np.asarray(reasoning_portability(logps, logps, reasoning, kind="confidence"))[:, 0]
        ids = scored.responses.host_prompts.record_ids[valid]
        found[:, ids] = np.stack([sure, scored.scores.accuracy])[:, valid]
    confidence, success = all_hosts_sum(found, policy.rows)
    return {"confidence": confidence, "success": success}
