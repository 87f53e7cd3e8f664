"""What fresh responses of a policy say of prompts, and which of them a task is learned from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Array, Float

from rdbcl_jax.data.records import Record
from rdbcl_jax.methods.method import Survey
from rdbcl_jax.models.partition import Trained
from rdbcl_jax.rewards.scoring import judge
from rdbcl_jax.rollout.sampling import Sampling
from rdbcl_jax.rollout.scored import generate_scored
from rdbcl_jax.sharding import all_hosts_sum
from rdbcl_jax.training import rng
from rdbcl_jax.training.learner import Learner
from rdbcl_jax.training.memory import phase
from rdbcl_jax.training.stage import Stage
from rdbcl_jax.training.state import TaskState


def surveyed(
    learner: Learner,
    params: Trained,
    records: Sequence[Record],
    survey: Survey,
    key: Array,
    sampling: Sampling | None = None,
) -> Float[np.ndarray, "N"]:
    """A survey's value of each record, on every process.

    Args:
      params: of the policy that responds, as they learn.
      sampling: None: as in a step.
    """
    values = np.zeros(len(records), np.float32)  # as processes exchange them
    for scored, valid in generate_scored(
        learner.policy,
        params,
        records,
        judge,
        sampling or learner.sampling,
        key,
        batch_size=learner.config.evaluation.batch_size,
        samples=survey.samples,
    ):
        right, texts = scored.right, np.array(scored.texts, object).reshape(scored.shape)
        for row in np.flatnonzero(valid):
            record = scored.responses.host_prompts.record_ids[row]
            values[record] = survey.value(texts[row].tolist(), right[row])
    return all_hosts_sum(values, learner.policy.rows)


def told(learner: Learner, state: TaskState, values: Float[np.ndarray, "N"]) -> TaskState:
    """The state whose prompt sampler, which asked, knows the values of the task's own prompts."""
    sampler = learner.method.prompts
    assert sampler and sampler.refresh
    return dataclasses.replace(state, prompts=sampler.refresh(state.prompts, values))


@phase("sampling")
def filtered(
    learner: Learner,
    stage: Stage,
    state: TaskState,
    first_step: int,
    say: Callable[[str], None],
) -> TaskState:
    """The state before a task's first step, with the prompts that pass the method's filter; all of
    them where none does. A prompt sampler that would ask the same is told what they answered.

    Args:
      first_step: steps of all tasks before this one.
      say: is told how many pass.
    """
    if (asked := learner.method.filter) is None:
        return state
    key = rng.of_filter(learner.config.seed, first_step)
    values = surveyed(learner, state.train.params, stage.own_records, asked.survey, key)
    if learner.method.asks_once:
        state = told(learner, state, values)
    passing = asked.keeps(values)
    if passing.any():
        say(f"note: {passing.sum()} of {stage.own} prompts pass prompts.filter")
    else:
        say(f"note: none of {stage.own} prompts passes prompts.filter: all are learned from")
    return dataclasses.replace(state, learned=passing if passing.any() else ~passing)
