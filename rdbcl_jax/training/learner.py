"""Learning one task: the loop that keeps the device busy while the host scores and logs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rdbcl_jax.batches import PromptBatch, Rollouts, TrainBatch
from rdbcl_jax.data.pipeline import Shard, batches
from rdbcl_jax.data.records import Record
from rdbcl_jax.methods import Method
from rdbcl_jax.models.qwen_vl.model import Params
from rdbcl_jax.policy import Policy
from rdbcl_jax.rewards.scoring import RewardConfig, Scores
from rdbcl_jax.rewards.scoring import score as score_texts
from rdbcl_jax.rollout.sampler import sample
from rdbcl_jax.sharding import all_hosts_sum, local_rows, put_batch
from rdbcl_jax.training.state import TrainState, learning_rate, make_init, make_optimizer
from rdbcl_jax.training.update import UpdateConfig, make_update, score


@dataclasses.dataclass(frozen=True)
class Step:
    """What the host keeps of one step until its device results are read."""

    index: int
    records: Sequence[Record]
    texts: list[str]  # P·G completions
    scores: Scores
    rollouts: Any  # this process's Rollouts, numpy
    prompt_tokens: int  # of this process's prompts, images included
    batch: TrainBatch
    device: tuple[dict, dict]  # metrics and per-sample values of the update


Report = Callable[[int, dict[str, float], dict[str, Any]], None]  # step, metrics, sample columns


class Learner:
    """Runs a method on one task after another; the jitted programs are shared by all of them."""

    def __init__(
        self,
        config: ConfigDict,
        policy: Policy,
        params: Params,
        method: Method,
        rewards: RewardConfig,
    ):
        self.config, self.policy, self.method, self.rewards = config, policy, method, rewards
        training, rollout = config.training, config.rollout
        self.optimizer = make_optimizer(config.optimizer, training.steps)
        self._rate = learning_rate(config.optimizer, training.steps)
        self._sampling = policy.sampling(rollout)
        self._init, shardings = make_init(params, self.optimizer, policy.mesh)
        self._update = make_update(
            policy.model,
            self.optimizer,
            method,
            UpdateConfig(
                rollout.temperature, training.chunk_size, training.microbatches, training.entropy
            ),
            shardings,
        )

    def init(self, params: Params) -> TrainState:
        """A fresh state that owns its parameters: the update donates them."""
        return self._init(jax.tree.map(jnp.copy, params))

    def learn(
        self,
        records: Sequence[Record],
        state: TrainState,
        reference: Params,
        *,
        start: int,
        first_step: int,
        report: Report,
        save: Callable[[int, TrainState], None],
    ) -> tuple[TrainState, Step | None]:
        """Steps `start` … `training.steps` of a task.

        Args:
          reference: the policy from before the task.
          first_step: steps of all tasks before this one; batches and keys follow from the sum.
          report: called with the metrics of every step, one step late.
          save: called with (steps done, state) every `training.checkpoint_every` steps, but for
            the last; all steps before it have been reported by then.
        Returns:
          The state, and the last step (None if nothing was left to do).
        """
        training = self.config.training
        feed = self._feed(records, first_step, start)
        step = unreported = None
        self._reported = time.perf_counter()
        for index in range(start, training.steps):
            host_prompts = next(feed)
            prompts = put_batch(host_prompts, self.policy.mesh)
            rollouts = self._sample(state.params, prompts, first_step + index)
            reference_logps = self._reference(reference, prompts, rollouts, first_update=index == 0)
            if unreported:  # the device is busy with the above
                self._report(unreported, report)
            step = self._judge(index, records, host_prompts, prompts, rollouts, reference_logps)
            state, step = self._learn_from(state, step)
            unreported = step
            every, done = training.checkpoint_every, index + 1
            if every and done % every == 0 and done < training.steps:
                self._report(unreported, report)
                unreported = None
                save(done, state)
        if unreported:
            self._report(unreported, report)
        return state, step

    # ------------------------------------------------------------------ one step

    def _feed(self, records, first_step, start):
        config = self.config

        def encode(items, ids):
            return self.policy.encoder.encode(items, ids)

        return batches(
            records,
            encode,
            batch_size=config.rollout.prompts,
            seed=config.seed + first_step,
            start=start,
            shard=Shard(jax.process_index(), jax.process_count()),
            threads=config.data.threads,
        )

    def _sample(self, params, prompts, step) -> Rollouts:
        key = jax.random.fold_in(jax.random.key(self.config.seed), step)
        samples = self.config.rollout.samples
        return sample(
            self.policy.model,
            self.policy.whole(params),
            prompts,
            key,
            samples=samples,
            sampling=self._sampling,
        )

    def score(self, params, prompts: PromptBatch, rollouts: Rollouts):
        """Log-probs of the responses under any parameters."""
        return score(
            self.policy.model,
            self.policy.whole(params),
            prompts,
            rollouts.tokens,
            rollouts.mask,
            temperature=self.config.rollout.temperature,
            chunk_size=self.config.training.chunk_size,
        )

    def _reference(self, reference, prompts, rollouts, *, first_update):
        if self.method.kl_coefficients is None:
            return None
        if first_update:  # the reference is the policy: see update._with_reference
            return rollouts.logps
        return self.score(reference, prompts, rollouts)

    @property
    def _needs_old_logps(self) -> bool:
        training = self.config.training
        anchored = self.method.kl_coefficients is not None
        return training.updates_per_batch > 1 or (training.microbatches > 1 and anchored)

    def _judge(self, index, records, host_prompts, prompts, rollouts, reference_logps) -> Step:
        """Rewards, spans and advantages: host work, while the device scores the reference."""
        shape = (len(host_prompts.record_ids), self.config.rollout.samples)
        host = jax.tree.map(local_rows, rollouts)
        flat_tokens, flat_mask = (a.reshape(-1, a.shape[-1]) for a in (host.tokens, host.mask))
        reasoning, answer = self.policy.spans.find(host.tokens, host.mask)
        texts = self.policy.texts(flat_tokens, flat_mask)
        mine = [records[i] for i in host_prompts.record_ids]
        scores = score_texts(_repeat(mine, shape[1]), texts, self.rewards)
        advantages = self.method.advantages(scores.total.reshape(shape))
        put = {
            "reasoning_mask": reasoning,
            "answer_mask": answer,
            "advantages": np.asarray(advantages, np.float32),
            "accuracies": np.asarray(scores.accuracy, np.float32).reshape(shape),
        }
        batch = TrainBatch(
            prompts=prompts,
            tokens=rollouts.tokens,
            mask=rollouts.mask,
            sampler_logps=rollouts.logps,
            old_logps=None,
            reference_logps=reference_logps,
            reference_is_policy=jnp.asarray(index == 0),
            **put_batch(put, self.policy.mesh),
        )
        count = int(host_prompts.mask.sum())
        return Step(index, mine, texts, scores, host, count, batch, ({}, {}))

    def _learn_from(self, state: TrainState, step: Step) -> tuple[TrainState, Step]:
        """All updates of a step; metrics are those of the last."""
        batch = step.batch
        if self._needs_old_logps:
            old = self.score(state.params, batch.prompts, batch)
            batch = dataclasses.replace(batch, old_logps=old)
        for update in range(self.config.training.updates_per_batch):
            if update == 1 and step.index == 0 and self.method.kl_coefficients is not None:
                # the policy has left the reference, which is the policy that sampled
                batch = dataclasses.replace(
                    batch, reference_logps=old, reference_is_policy=jnp.asarray(False)
                )
            state, *device = self._update(state, self.policy.frozen, batch)
        return state, dataclasses.replace(step, batch=batch, device=tuple(device))

    # ------------------------------------------------------------------ reading a step

    def _report(self, step: Step, report: Report) -> None:
        metrics, samples = jax.device_get(step.device[0]), jax.tree.map(local_rows, step.device[1])
        before, self._reported = self._reported, (now := time.perf_counter())
        rollouts, scores = step.rollouts, step.scores
        rewards = scores.total.reshape(rollouts.finished.shape)
        lengths = rollouts.mask.sum(-1)
        spread = rewards.std(axis=1, ddof=1) if rewards.shape[1] > 1 else np.zeros(len(rewards))
        tokens = np.array([step.prompt_tokens * rewards.shape[1] + lengths.sum()])
        means = {
            "reward": rewards.mean(),
            "reward_std": spread.mean(),
            "frac_reward_zero_std": (spread < 1e-6).mean(),
            "accuracy": np.mean(scores.accuracy),
            "parse_rate": np.mean(scores.parsed),
            "completions/mean_length": lengths.mean(),
            "completions/clipped_ratio": 1 - rollouts.finished.mean(),
            **{
                f"rewards/{name}/mean": values[~np.isnan(values)].mean()
                for name, values in scores.components.items()
                if not np.isnan(values).all()
            },
        }
        values = all_hosts_sum(np.array(list(means.values()))) / jax.process_count()
        row = {
            **dict(zip(means, values.tolist(), strict=True)),
            "completions/min_length": int(lengths.min()),
            "completions/max_length": int(lengths.max()),
            "num_tokens": int(all_hosts_sum(tokens)[0]),
            "learning_rate": float(self._rate(step.index + 1)),
            "step_time": now - before,
            **{name: float(value) for name, value in metrics.items()},
        }
        report(step.index, row, self._columns(step, samples, lengths))

    def _columns(self, step: Step, samples, lengths) -> dict[str, Any]:
        """The per-sample table's rows of this step."""
        records = _repeat(step.records, lengths.shape[1])
        per_sample = {name: value.reshape(-1) for name, value in samples.items()}
        return {
            "record_id": [r.id for r in records],
            "prompt": [r.prompt for r in records],
            "completion": step.texts,
            "gold": [r.answer for r in records],
            "reward": step.scores.total,
            **{f"rewards/{name}": value for name, value in step.scores.components.items()},
            "accuracy": step.scores.accuracy,
            "parsed": step.scores.parsed,
            "advantage": local_rows(step.batch.advantages).reshape(-1),
            "length": lengths.reshape(-1),
            "finished": step.rollouts.finished.reshape(-1),
            **per_sample,
        }


def _repeat(records: Sequence[Record], times: int) -> list[Record]:
    return [record for record in records for _ in range(times)]
