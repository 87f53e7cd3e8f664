"""What is fixed while a run learns: its options, its model and the jitted programs of all tasks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from rdbcl_jax.batches import PromptBatch, Rollouts
from rdbcl_jax.config import RunConfig
from rdbcl_jax.methods import Method
from rdbcl_jax.models.partition import Trained
from rdbcl_jax.policy import Policy
from rdbcl_jax.rewards.calls import TrainerState
from rdbcl_jax.rewards.scoring import RewardConfig
from rdbcl_jax.rewards.scoring import score as score_texts
from rdbcl_jax.rollout.sampler import sample
from rdbcl_jax.rollout.sampling import Sampling, sampling_of
from rdbcl_jax.rollout.scored import ScoreFunction
from rdbcl_jax.sharding import abstract
from rdbcl_jax.training.ahead import Ahead
from rdbcl_jax.training.logprobs import compiled_logprobs
from rdbcl_jax.training.memory import phase
from rdbcl_jax.training.microbatches import microbatches, passes_at_once
from rdbcl_jax.training.optimizer import learning_rate, make_optimizer
from rdbcl_jax.training.stage import Stage
from rdbcl_jax.training.state import TaskState, TrainState, make_init
from rdbcl_jax.training.update import Update, UpdateConfig, make_update


@dataclasses.dataclass(frozen=True)
class Learner:
    """A policy, a method and their programs.

    Attributes:
      score: rewards of texts.
      sampling: options of a step's rollouts.
      init: makes a fresh train state of parameters, which it takes over.
      like: the shapes of such a state, and where it lies.
      update: one update, see `update.make_update`.
      microbatches: parts that it takes a batch in.
      ahead: what is compiled of the above before it is called.
    """

    config: RunConfig
    policy: Policy
    method: Method
    score: ScoreFunction
    sampling: Sampling
    init: Callable[[Trained], TrainState]
    like: TrainState
    update: Update
    microbatches: int
    ahead: Ahead

    @property
    def logprob_options(self) -> dict[str, Any]:
        """Of `compiled_logprobs`: with each of them it is another program.

        A batch is taken in the parts of the update, unless `passes_at_once`.
        """
        once = passes_at_once(self.config, self.policy.mesh.shape)
        return {
            "temperature": self.config.rollout.temperature,
            "chunk_size": self.config.training.chunk_size,
            "parts": 1 if once else self.microbatches,
        }

    @phase("boundary")
    def start(self, stage: Stage, params: Trained, memory: Any = None) -> TaskState:
        """The state before a task's first step. It takes the parameters over: updates donate them.
        `memory`: what a tracker that is carried from task to task has seen; None: nothing yet."""
        return dataclasses.replace(self.blank(stage, memory), train=self.init(params))

    def blank(self, stage: Stage, memory: Any = None) -> TaskState:
        """The same with shapes in place of the arrays on the device."""
        tracker, prompts = self.method.tracker, self.method.prompts
        if tracker and memory is None:
            memory = tracker.blank(len(stage.records))
        return TaskState(
            train=self.like,
            batches=np.zeros((), np.int64),
            tracker=memory,
            last_kl=np.full((), np.nan, np.float32),
            prompts=prompts and prompts.start(stage.own),
            learned=np.ones(stage.own, bool) if self.method.filter else None,
        )

    def score_at(self, run_step: int) -> ScoreFunction:
        """`score` for the batch that is learned in a step of the run."""
        total = self.config.training.steps * len(self.config.sequence)
        return functools.partial(self.score, trainer_state=TrainerState(run_step, total))

    def sample(self, params: Trained, prompts: PromptBatch, rng: Array, samples: int) -> Rollouts:
        """Rollouts of a step, under any values of the parameters that learn."""
        self.ahead.wait("sampling")
        return sample(
            self.policy.model,
            self.policy.to_read(params),
            prompts,
            rng,
            samples=samples,
            sampling=self.sampling,
        )

    def logprobs(self, params, prompts: PromptBatch, responses, *, return_entropy: bool = False):
        """Log-probs (and entropies) [P, G, T] of `responses.tokens`, likewise."""
        self.ahead.wait("reference")
        return compiled_logprobs(
            self.policy.model,
            self.policy.to_read(params),
            prompts,
            responses.tokens,
            responses.mask,
            return_entropy=return_entropy,
            **self.logprob_options,
        )


def make_learner(
    config: RunConfig,
    policy: Policy,
    params: Trained,
    method: Method,
    rewards: RewardConfig,
    ahead: Ahead | None = None,
) -> Learner:
    """`params`: those that learn, of which only shapes and shardings are read."""
    training, rollout = config.training, config.rollout
    updates = training.steps * training.updates_per_batch
    optimizer = make_optimizer(config.optimizer, updates, config.model.param_dtype, config.seed)
    init, shardings = make_init(params, optimizer, policy.mesh)
    parts = microbatches(config, policy.mesh.shape)
    update = make_update(
        policy.model,
        optimizer,
        method,
        UpdateConfig(
            rollout.temperature,
            training.chunk_size,
            parts,
            training.entropy,
            config.seed,
        ),
        shardings,
        learning_rate(config.optimizer, updates),
    )
    return Learner(
        config=config,
        policy=policy,
        method=method,
        score=functools.partial(score_texts, config=rewards),
        sampling=sampling_of(policy, rollout),
        init=init,
        like=abstract(jax.eval_shape(init, params), shardings),
        update=update,
        microbatches=parts,
        ahead=ahead or Ahead(),
    )
