"""A few of a task's last responses, token by token, for the report."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from rdbcl_jax.data.records import load_images
from rdbcl_jax.models.partition import Trained
from rdbcl_jax.sharding import local_rows
from rdbcl_jax.training.learner import Learner
from rdbcl_jax.training.memory import phase
from rdbcl_jax.training.task import Step

PER_TASK = 4


@phase("boundary")
def make_examples(
    learner: Learner, step: Step, policy: Trained, previous: Trained
) -> list[dict[str, Any]]:
    """The first response to each of this process's first prompts in the step, with its log-probs
    under the policies after the task and before it."""
    scored, batch = step.scored, step.batch
    count, group = min(PER_TASK, len(scored.records)), scored.shape[1]
    logps = (learner.logprobs(params, batch.prompts, batch) for params in (policy, previous))
    policy_logps, previous_logps = (local_rows(a)[:count, 0] for a in logps)
    reasoning, answer = (local_rows(a)[:, 0] for a in (batch.reasoning_mask, batch.answer_mask))
    samples = jax.tree.map(local_rows, step.device[1])
    tokens, lengths = scored.host.tokens[:, 0], scored.host.mask[:, 0].sum(-1)
    examples = []
    for row in range(count):
        length, record, sample = lengths[row], scored.records[row], row * group
        spans = np.full(length, "other", object)
        spans[reasoning[row, :length]] = "reasoning"
        spans[answer[row, :length]] = "answer"
        examples.append(
            {
                "record_id": record.id,
                "image": _png(load_images(record)),
                "prompt": record.prompt,
                "tokens": learner.policy.pieces(tokens[row, :length]),
                "policy_logps": policy_logps[row, :length],
                "reference_logps": previous_logps[row, :length],
                "spans": spans.tolist(),
                "reward": float(scored.scores.total[sample]),
                "gold": record.answer,
                "correct": bool(scored.scores.accuracy[sample] > 0.5),
                **{n: float(samples[n][row, 0]) for n in ("rp", "kl_coef") if n in samples},
            }
        )
    return examples


def _png(images: Sequence[Image.Image]) -> str | None:
    """The first picture as base64; None where there is none."""
    if not images:
        return None
    buffer = io.BytesIO()
    images[0].save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
