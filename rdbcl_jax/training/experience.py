"""The responses of a step: prompts chosen, responses drawn and scored, and what the method makes of
them. All host arrays hold this process's rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np
from jaxtyping import Bool, Int

from rdbcl_jax.batches import PromptBatch, Rollouts
from rdbcl_jax.config import RunConfig
from rdbcl_jax.data.pipeline import batches, indices, rehearsed
from rdbcl_jax.data.prompts import SupervisedBatch
from rdbcl_jax.distributed import most_anywhere
from rdbcl_jax.methods.classic import ReplayOptions
from rdbcl_jax.methods.method import PromptSampler
from rdbcl_jax.policy import Policy
from rdbcl_jax.rollout.scored import Responses, ScoredRollouts, score_rollouts
from rdbcl_jax.sharding import all_hosts_rows, put_batch
from rdbcl_jax.training import rng
from rdbcl_jax.training.learner import Learner
from rdbcl_jax.training.memory import phase
from rdbcl_jax.training.stage import Stage
from rdbcl_jax.training.state import TaskState
from rdbcl_jax.training.surveys import surveyed, told

# (state, step of the task) -> the encoded batch after the `state.batches` that were taken
Feed = Callable[[TaskState, int], Any]


@dataclasses.dataclass(frozen=True)
class Experience:
    """What the steps of a task learn from.

    Attributes:
      first_step: steps of all tasks before this one.
      feed: encoded batches, see `make_feed`.
    """

    learner: Learner
    stage: Stage
    first_step: int
    feed: Feed

    @property
    def config(self) -> RunConfig:
        return self.learner.config

    @phase("sampling")
    def draw(self, state: TaskState, index: int, attempt: int = 0) -> tuple[Responses, TaskState]:
        """The next batch of step `index` and its responses, on the device; nothing is waited for.
        `attempt`: how many were drawn in this step before."""
        batch = self.feed(state, index)
        state = dataclasses.replace(state, batches=np.asarray(state.batches + 1))
        if self.learner.method.responses == "demonstrations":
            return demonstrated(batch, self.learner.policy), state
        return self.sampled(batch, state, index, attempt), state

    @phase("sampling")
    def sampled(self, batch: PromptBatch, state: TaskState, index: int, attempt: int) -> Responses:
        """Responses to a host batch, likewise."""
        learner, config = self.learner, self.config
        prompts = put_batch(batch, learner.policy.mesh)
        key = rng.of_step(config.seed, self.first_step + index)
        if attempt:
            key = jax.random.fold_in(key, attempt)
        rollouts = learner.sample(state.train.params, prompts, key, config.rollout.samples)
        others = None
        if count := learner.method.previous_responses:
            others = learner.sample(self.stage.previous, prompts, rng.of_others(key), count)
        return Responses(batch, prompts, rollouts, others)

    def scored(self, responses: Responses, index: int) -> ScoredRollouts:
        """With the rewards of a step; waits for the device."""
        learner, score = self.learner, self.learner.score_at(self.first_step + index)
        return score_rollouts(responses, self.stage.records, learner.policy, score)

    @phase("sampling")
    def revised(
        self, responses: Responses, state: TaskState, index: int
    ) -> tuple[ScoredRollouts, TaskState, int]:
        """Rewards, and what the method makes of the responses then: host work. With how many the
        policy sampled for it, of all processes."""
        scored, sampled = self.scored(responses, index), responses.sampled
        if (revise := self.learner.method.revise) is None:
            return scored, state, sampled
        draws = _StepDraws(self, state, index)
        return revise(scored, draws), draws.state, sampled + draws.sampled

    @phase("sampling")
    def surveyed(self, state: TaskState, index: int) -> TaskState:
        """The state before a step, whose prompt sampler asks all prompts where it is time to."""
        sampler, learner = self.learner.method.prompts, self.learner
        if sampler is None or (survey := sampler.survey) is None:
            return state
        if index % survey.every if survey.every else index or learner.method.asks_once:
            return state
        key = rng.of_survey(learner.config.seed, self.first_step + index)
        own = self.stage.own_records
        return told(learner, state, surveyed(learner, state.train.params, own, survey, key))

    def observed(self, state: TaskState, scored: ScoredRollouts) -> TaskState:
        """The state whose prompt sampler has seen the rewards of the task's own prompts."""
        sampler, rows = self.learner.method.prompts, self.learner.policy.rows
        if sampler is None or sampler.observe is None:
            return state
        ids = all_hosts_rows(np.asarray(scored.responses.host_prompts.record_ids), rows)
        rewards = all_hosts_rows(scored.scores.total.reshape(scored.shape), rows)
        own = ids < self.stage.own
        known = sampler.observe(state.prompts, ids[own], rewards[own])
        return dataclasses.replace(state, prompts=known)


class _StepDraws:
    """What a revision may ask for in a step, see `methods.method.Draws`."""

    def __init__(self, experience: Experience, state: TaskState, index: int):
        learner = experience.learner
        self.policy, self.state = learner.policy, state
        self.rng = rng.of_revision(learner.config.seed, experience.first_step + index)
        self.task_step, self.task_steps = index, learner.config.training.steps
        self.sampled = 0  # responses, beyond those of the step's first batch
        self._experience, self._attempts = experience, 0

    def next_batch(self) -> ScoredRollouts:
        self._attempts += 1
        more, self.state = self._experience.draw(self.state, self.task_step, self._attempts)
        return self._scored(more)

    def again(
        self, scored: ScoredRollouts, wanted: Bool[np.ndarray, "P"]
    ) -> tuple[ScoredRollouts, Int[np.ndarray, "n"]]:
        self._attempts += 1
        parts = wanted.reshape(len(self.policy.rows.parts), -1)
        chosen = halved(parts, most_anywhere(int(parts.sum(1).max())))
        host = jax.tree.map(lambda a: np.asarray(a)[chosen], scored.responses.host_prompts)
        more = self._experience.sampled(host, self.state, self.task_step, self._attempts)
        return self._scored(more), chosen

    def _scored(self, responses: Responses) -> ScoredRollouts:
        self.sampled += responses.sampled
        return self._experience.scored(responses, self.task_step)


def halved(wanted: Bool[np.ndarray, "D P"], most: int) -> Int[np.ndarray, "n"]:
    """The rows that are wanted, and some others: the batch halved as often as all of them still
    fit, so that few sizes are compiled. Of every device's rows as many are taken, so that one
    process and several draw for the same prompts.

    Args:
      wanted: the rows of each of this process's devices.
      most: of one device, on any process.
    """
    devices, rows = wanted.shape
    size = rows
    while size % 2 == 0 and size // 2 >= most:
        size //= 2
    first = np.argsort(~wanted, axis=1, kind="stable")[:, :size]
    return (first + rows * np.arange(devices)[:, None]).reshape(-1)


# ------------------------------------------------------------------ which prompts


def make_feed(learner: Learner, stage: Stage, first_step: int, state: TaskState) -> Feed:
    """Encoded batches without end, after those that a task's state has taken."""
    config, method = learner.config, learner.method
    places, old = _places(stage, state), stage.replayed
    own = len(places) - old
    size, seed = config.rollout.prompts, config.seed + first_step
    rehearsal = 0
    if old:
        rehearsal = config.section(ReplayOptions).rehearsed(size)
    if method.prompts:
        return _chosen(learner, stage, places, method.prompts, first_step, rehearsal)
    if old:
        order = rehearsed(own, old, size, rehearsal, seed)
    else:
        order = own_batches(config, own, first_step)
    feed = batches(
        stage.records,
        _encoding(learner),
        order=order.map(lambda batch: places[np.asarray(batch)]),
        start=int(state.batches),
        shard=learner.policy.rows,
        threads=config.data.threads,
    )
    return lambda state, index: next(feed)


def own_batches(config: RunConfig, count: int, first_step: int) -> grain.MapDataset:
    """Which of a task's `count` records each batch holds, where nothing else has a say in it."""
    return indices(count, config.rollout.prompts, config.seed + first_step)


def _places(stage: Stage, state: TaskState) -> Int[np.ndarray, "n"]:
    """Of the records that batches hold: a task's own that pass, then those of earlier tasks."""
    records = np.arange(len(stage.records))
    if state.learned is None:
        return records
    return np.concatenate([np.flatnonzero(state.learned), records[stage.own :]])


def _chosen(
    learner: Learner,
    stage: Stage,
    places: Int[np.ndarray, "n"],
    sampler: PromptSampler,
    first_step: int,
    rehearsal: int,
) -> Feed:
    """Batches of prompts that the sampler chooses, but for the last rows, of earlier tasks. None is
    encoded ahead: what is chosen may depend on the step before. Of prompts that do not pass the
    sampler is shown nothing."""
    config, shard, encode = learner.config, learner.policy.rows, _encoding(learner)
    size, own = config.rollout.prompts, places[: len(places) - stage.replayed]
    old = indices(stage.replayed, rehearsal, config.seed + first_step + 1) if rehearsal else None

    def feed(state: TaskState, index: int) -> Any:
        number = int(state.batches)
        chosen = sampler.choose(
            jax.tree.map(lambda of_prompts: of_prompts[own], state.prompts),
            rng.of_batch(config.seed, first_step, number),
            size - rehearsal,
            index / config.training.steps,
        )
        ids = own[np.asarray(chosen)]
        if old is not None:
            ids = np.concatenate([ids, stage.own + np.asarray(old[number])])
        mine = ids[shard.rows(size)]
        return encode([stage.records[i] for i in mine.tolist()], mine)

    return feed


def _encoding(learner: Learner) -> Callable[..., Any]:
    """(records, their indices) → batch."""
    encoder, method = learner.policy.encoder, learner.method
    if method.responses != "demonstrations":
        return encoder.encode

    def encode(records, ids):
        assert method.demonstration  # the method learns from them
        texts: list[Any] = [method.demonstration(record) for record in records]
        return encoder.encode_supervised(records, texts, ids)

    return encode


# ------------------------------------------------------------------ responses that are given


def demonstrated(batch: SupervisedBatch, policy: Policy) -> Responses:
    """Demonstrations in place of sampled responses."""
    rollouts = Rollouts(
        tokens=batch.tokens,
        mask=batch.mask,
        logps=np.zeros(batch.mask.shape, np.float32),
        finished=np.ones(batch.mask.shape[:2], bool),
    )
    prompts, on_device = put_batch((batch.prompts, rollouts), policy.mesh)
    return Responses(batch.prompts, prompts, on_device, demonstrated=True)
