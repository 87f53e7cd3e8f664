"""What one response of the previous policy says about each prompt of a task, before it starts."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Float

from rdbcl_jax.core.portability import reasoning_portability
from rdbcl_jax.data.pipeline import Shard, eval_batches
from rdbcl_jax.data.records import Record
from rdbcl_jax.models.qwen_vl.model import Params
from rdbcl_jax.policy import Policy
from rdbcl_jax.rollout.sampler import sample
from rdbcl_jax.rollout.sampling import Sampling
from rdbcl_jax.sharding import all_hosts_sum, put_batch
from rdbcl_jax.training.responses import Responses, ScoreFunction, judge


def survey(
    policy: Policy,
    params: Params,
    records: Sequence[Record],
    score: ScoreFunction,
    sampling: Sampling,
    key: Array,
    batch_size: int,
) -> dict[str, Float[np.ndarray, "N"]]:
    """One response to each prompt, under `params`, the policy from before the task.

    Returns, each in [0, 1] and by the index of the record: `confidence`, the geometric mean
    probability of its reasoning's tokens (static RP; 1 where there is no reasoning), and
    `success`, whether it was right.
    """
    found = np.zeros((2, len(records)), np.float32)
    shard = Shard(jax.process_index(), jax.process_count())
    for number, (prompts, valid) in enumerate(
        eval_batches(records, policy.encoder.encode, batch_size, shard)
    ):
        on_device = put_batch(prompts, policy.mesh)
        rollouts = sample(
            policy.model,
            policy.whole(params),
            on_device,
            jax.random.fold_in(key, number),
            samples=1,
            sampling=sampling,
        )
        judged = judge(Responses(prompts, on_device, rollouts), records, policy, score)
        reasoning, _ = policy.spans.find(judged.host.tokens, judged.host.mask)
        logps = judged.host.logps
        sure = np.asarray(reasoning_portability(logps, logps, reasoning, kind="confidence"))[:, 0]
        ids = prompts.record_ids[valid]
        found[:, ids] = np.stack([sure, judged.scores.accuracy])[:, valid]
    confidence, success = all_hosts_sum(found)
    return {"confidence": confidence, "success": success}
