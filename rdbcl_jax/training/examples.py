"""A few of a task's last responses, token by token, for the report."""

from __future__ import annotations

import base64
import io
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool
from PIL import Image

from rdbcl_jax.data.records import load_images
from rdbcl_jax.models.partition import Trained
from rdbcl_jax.sharding import local_rows
from rdbcl_jax.training.learner import Learner
from rdbcl_jax.training.memory import phase
from rdbcl_jax.training.task import Step

PROMPTS, RESPONSES = 4, 8  # of a task, and of a group, at most


@phase("boundary")
def make_examples(
    learner: Learner, step: Step, policy: Trained, previous: Trained
) -> list[dict[str, Any]]:
    """Of this process's prompts in the step a whole group and a response to each of a few others,
    wrong ones first; with log-probs under the policies after the task and before it."""
    scored, batch = step.scored, step.batch
    right = scored.scores.accuracy.reshape(scored.shape) >= 0.5
    logps = (learner.logprobs(params, batch.prompts, batch) for params in (policy, previous))
    policy_logps, previous_logps = (local_rows(a) for a in logps)
    reasoning, answer = (local_rows(a) for a in (batch.reasoning_mask, batch.answer_mask))
    numbers = jax.tree.map(local_rows, step.device[1])
    lengths, examples = scored.host.mask.sum(-1), list[dict[str, Any]]()
    for row, sample in _chosen(right):
        at, record, length = (row, sample), scored.records[row], lengths[row, sample]
        spans = np.full(length, "other", object)
        spans[reasoning[at][:length]] = "reasoning"
        spans[answer[at][:length]] = "answer"
        first = not examples or examples[-1]["record_id"] != record.id
        examples.append(
            {
                "record_id": record.id,
                "sample": sample,
                "images": [_png(image) for image in load_images(record)] if first else [],
                "prompt": record.prompt,
                "tokens": learner.policy.pieces(scored.host.tokens[at][:length]),
                "policy_logps": policy_logps[at][:length],
                "reference_logps": previous_logps[at][:length],
                "spans": spans.tolist(),
                "reward": float(scored.scores.total.reshape(scored.shape)[at]),
                "gold": record.answer,
                "correct": bool(right[at]),
                **{n: float(numbers[n][at]) for n in ("rp", "kl_coef") if n in numbers},
            }
        )
    return examples


def _chosen(right: Bool[np.ndarray, "P G"]) -> list[tuple[int, int]]:
    """(prompt, sample) of each response that is shown: the group of the first prompt with right
    and wrong responses, then the first wrong one of others, those without a right one first."""
    solved, size = right.mean(axis=1), right.shape[1]
    whole = int(np.argmax((solved > 0) & (solved < 1)))  # the first of all where there is none
    others = [row for row in np.argsort(solved, kind="stable") if row != whole][: PROMPTS - 1]
    group = [(whole, sample) for sample in range(min(size, RESPONSES))]
    return group + [(int(row), int(np.argmin(right[row]))) for row in others]


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
