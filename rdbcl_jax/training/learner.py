"""Learning one task: the loop that keeps the device busy while the host scores and logs."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from rdbcl_jax.batches import PromptBatch, Rollouts, TrainBatch, pytree
from rdbcl_jax.config import RunConfig
from rdbcl_jax.data.pipeline import Shard, batches, indices, rehearsed
from rdbcl_jax.data.records import Record
from rdbcl_jax.methods import Method
from rdbcl_jax.methods.classic import ReplayOptions
from rdbcl_jax.models.interface import Params
from rdbcl_jax.policy import Policy
from rdbcl_jax.rewards.scoring import RewardConfig
from rdbcl_jax.rewards.scoring import score as score_texts
from rdbcl_jax.rollout.sampler import sample
from rdbcl_jax.rollout.sampling import sampling_of
from rdbcl_jax.sharding import all_hosts_rows, all_hosts_sum, local_rows, put_batch
from rdbcl_jax.training import rng
from rdbcl_jax.training.experience import (
    Judged,
    Responses,
    demonstrated,
    judge,
    memorised,
    replenished,
)
from rdbcl_jax.training.pretask_stats import survey
from rdbcl_jax.training.state import TrainState, learning_rate, make_init, make_optimizer
from rdbcl_jax.training.update import Consolidation, UpdateConfig, make_update, score


@dataclasses.dataclass(frozen=True)
class Stage:
    """One task as the learner sees it: its data, and the frozen policies it may need.

    Attributes:
      records: the prompts to learn.
      rehearsal: of earlier tasks, for methods that replay.
      previous: the policy from before the task.
      reference: the policy of the KL term; often the same object.
      consolidation: what EWC keeps of earlier tasks.
    """

    records: Sequence[Record]
    previous: Params
    reference: Params
    rehearsal: Sequence[Record] = ()
    consolidation: Consolidation | None = None


@pytree
class Progress:
    """What the host carries from step to step of a task, and a resume needs."""

    batches: Int[Array, ""]  # taken from the feed so far
    tracker: Any  # the method's memory of the prompts


@dataclasses.dataclass(frozen=True)
class Step:
    """What the host keeps of one step until its device results are read."""

    index: int
    judged: Judged
    batch: TrainBatch
    batches: int  # drawn so far
    device: tuple[dict, dict]  # metrics and per-sample values of the update
    probed: dict[str, float] = dataclasses.field(default_factory=dict)  # of the policy after it


Report = Callable[[int, dict[str, float], dict[str, Any]], None]  # step, metrics, sample columns
Save = Callable[[int, TrainState, Progress], None]
Probe = Callable[[Params], dict[str, float]]


class Learner:
    """Runs a method on one task after another; the jitted programs are shared by all of them."""

    def __init__(
        self,
        config: RunConfig,
        policy: Policy,
        params: Params,
        method: Method,
        rewards: RewardConfig,
    ):
        self.config, self.policy, self.method = config, policy, method
        training, rollout = config.training, config.rollout
        self.optimizer = make_optimizer(config.optimizer, training.steps)
        self._rate = learning_rate(config.optimizer, training.steps)
        self._sampling = sampling_of(policy, rollout)
        self._score = functools.partial(score_texts, config=rewards)
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

    def progress(self, stage: Stage) -> Progress:
        """Of a task that has not begun."""
        tracker = self.method.tracker
        unknown = np.full(len(self._prompts(stage)), 0.5, np.float32)
        return Progress(np.zeros((), np.int64), tracker and jax.device_get(tracker.start(unknown)))

    def learn(
        self,
        stage: Stage,
        state: TrainState,
        progress: Progress,
        *,
        start: int,
        first_step: int,
        report: Report,
        save: Save,
        probe: Probe,
    ) -> tuple[TrainState, Step | None]:
        """Steps `start` … `training.steps` of a task.

        Args:
          first_step: steps of all tasks before this one; batches and keys follow from the sum.
          report: called with the metrics of every step, one step late.
          save: called every `training.checkpoint_every` steps with the number of steps done, but
            for the last; all steps before it have been reported by then.
          probe: metrics of a policy, which join those of the step that made it; called every
            `evaluation.every` steps, but for the last.
        Returns:
          The state, and the last step (None if nothing was left to do).
        """
        training = self.config.training
        self._begin(stage, progress, first_step, start)
        step = unreported = None
        for index in range(start, training.steps):
            responses = self._draw(state.params, first_step + index)
            # scored while the host judges, unless the method may yet change the responses
            early = not (self.method.memorise or self.method.resample)
            references = self._references(responses, index) if early else {}
            if unreported:  # the device is busy with the above
                self._report(unreported, report)
            judged = self._judge(state.params, responses, first_step + index)
            references = references or self._references(judged.responses, index)
            batch = self._batch(judged, references, first_step + index)
            drawn = int(self._progress.batches)
            state, step = self._update_from(state, Step(index, judged, batch, drawn, ({}, {})))
            done = index + 1
            if self._due(self.config.evaluation.every, done):
                step = self._probed(step, probe, state.params)
            unreported = step
            if self._due(training.checkpoint_every, done):
                self._report(unreported, report)
                unreported = None
                save(done, state, self._progress)
        if unreported:
            self._report(unreported, report)
        return state, step

    def _due(self, every: int, done: int) -> bool:
        """What happens every so many steps of a task (0: never); its end has a place of its own."""
        return every > 0 and done % every == 0 and done < self.config.training.steps

    def _probed(self, step: Step, probe: Probe, params: Params) -> Step:
        jax.block_until_ready(params)  # that is the step's time, and the rest is not
        began = time.perf_counter()
        found = probe(params)
        self._reported += time.perf_counter() - began
        return dataclasses.replace(step, probed=found)

    # ------------------------------------------------------------------ the start of a task

    def _begin(self, stage: Stage, progress: Progress, first_step: int, start: int) -> None:
        self._stage, self._records = stage, self._prompts(stage)
        self._progress, self._last_kl = progress, None
        self._reported = time.perf_counter()
        self._feed = self._make_feed(first_step, int(progress.batches))
        self._known = np.zeros(len(self._records), np.float32)
        wanted = self.method.survey
        if wanted == "confidence" or (wanted and start == 0):
            self._known = survey(
                self.policy,
                stage.previous,
                self._records,
                self._score,
                self._sampling,
                rng.of_survey(self.config.seed, first_step),
                self.config.evaluation.batch_size,
            )[wanted]
        if wanted == "success" and start == 0:
            tracker = jax.device_get(self.method.tracker.start(self._known))
            self._progress = dataclasses.replace(progress, tracker=tracker)

    def _prompts(self, stage: Stage) -> list[Record]:
        """The prompts a task learns from; where responses are given, those that have one."""
        records = [*stage.records, *stage.rehearsal]
        if self.method.responses != "given":
            return records
        return [record for record in records if self.method.demonstration(record) is not None]

    def _make_feed(self, first_step: int, start: int) -> Iterator[Any]:
        config, old = self.config, len(self._stage.rehearsal)
        own = len(self._records) - old
        size, seed = config.rollout.prompts, config.seed + first_step
        order = indices(own, size, seed)
        if old:
            share = min(max(round(config.section(ReplayOptions).fraction * size), 1), size - 1)
            order = rehearsed(own, old, size, share, seed)
        given = self.method.responses == "given"
        return batches(
            self._records,
            self._encode_given if given else self.policy.encoder.encode,
            order=order,
            start=start,
            shard=Shard(jax.process_index(), jax.process_count()),
            threads=config.data.threads,
        )

    def _encode_given(self, records, ids):
        texts = [self.method.demonstration(record) for record in records]
        return self.policy.encoder.encode_supervised(records, texts, ids)

    # ------------------------------------------------------------------ the responses of a step

    def _draw(self, params: Params, run_step: int, attempt: int = 0) -> Responses:
        """The next batch and its responses, on the device; nothing is waited for."""
        batch, done = next(self._feed), np.asarray(self._progress.batches + 1)
        self._progress = dataclasses.replace(self._progress, batches=done)
        if self.method.responses == "given":
            return demonstrated(batch, self.policy)
        prompts, key = put_batch(batch, self.policy.mesh), rng.of_step(self.config.seed, run_step)
        if attempt:
            key = jax.random.fold_in(key, attempt)
        rollouts = self._sample(params, prompts, key, self.config.rollout.samples)
        others = None
        if count := self.method.previous_responses:
            key = rng.of_others(key)
            others = self._sample(self._stage.previous, prompts, key, count)
        return Responses(batch, prompts, rollouts, others)

    def _sample(self, params, prompts, key, samples: int) -> Rollouts:
        return sample(
            self.policy.model,
            self.policy.whole(params),
            prompts,
            key,
            samples=samples,
            sampling=self._sampling,
        )

    def _judge(self, params: Params, responses: Responses, run_step: int) -> Judged:
        """Rewards, and what the method makes of them: host work."""
        judged = judge(responses, self._records, self.policy, self._score)
        for attempt in range(1, self.method.resample + 1):
            if not all_hosts_sum(np.array(~judged.informative.all())):
                break
            more = self._draw(params, run_step, attempt)
            more = judge(more, self._records, self.policy, self._score)
            judged = replenished(judged, more, self.policy)
        if self.method.memorise:
            judged = memorised(judged, self.method.demonstration, self.policy)
        return judged

    # ------------------------------------------------------------------ the batch of a step

    def score(self, params, prompts: PromptBatch, responses, *, return_entropy: bool = False):
        """Log-probs (and entropies) of `responses.tokens` under any parameters."""
        return score(
            self.policy.model,
            self.policy.whole(params),
            prompts,
            responses.tokens,
            responses.mask,
            temperature=self.config.rollout.temperature,
            chunk_size=self.config.training.chunk_size,
            return_entropy=return_entropy,
        )

    def _references(self, responses: Responses, index: int) -> dict[str, Any]:
        """Log-probs under the frozen policies that the method reads.

        On a task's first step the policy from before it needs no pass: it is the policy.
        """
        method, stage, whole = self.method, self._stage, responses.all
        scored: dict[int, Any] = {}

        def logps(params, wanted: bool):
            if not wanted:
                return None
            if index == 0 and params is stage.previous:
                return whole.logps  # not read: see update._with_references
            if id(params) not in scored:
                scored[id(params)] = self.score(params, responses.prompts, whole)
            return scored[id(params)]

        reference_is_previous = stage.reference is stage.previous
        return {
            "previous_logps": logps(stage.previous, method.previous),
            "previous_is_policy": jnp.asarray(index == 0),
            "reference_logps": logps(stage.reference, method.reference is not None),
            "reference_is_policy": jnp.asarray(index == 0 and reference_is_previous),
        }

    def _batch(self, judged: Judged, references: dict[str, Any], run_step: int) -> TrainBatch:
        """The train batch, with what is known of each prompt from before."""
        ids, whole = judged.responses.host_prompts.record_ids, judged.responses.all
        known = self._known[ids]
        if tracker := self.method.tracker:
            state, total = self._progress.tracker, judged.scores.total
            known = np.asarray(tracker.baselines(state, ids), np.float32)
            seen = all_hosts_rows(np.repeat(ids, judged.shape[1])), all_hosts_rows(total)
            state = jax.device_get(tracker.observe(state, *seen, self._last_kl))
            self._progress = dataclasses.replace(self._progress, tracker=state)
        own = len(self._records) - len(self._stage.rehearsal)
        of_prompts = {"prompt_values": known, "replayed": ids >= own}
        from_host = {**judged.columns(self.policy), **of_prompts}
        return TrainBatch(
            prompts=judged.responses.prompts,
            tokens=whole.tokens,
            mask=whole.mask,
            step=jnp.asarray(run_step, jnp.int32),
            sampler_logps=whole.logps,
            **references,
            **put_batch(from_host, self.policy.mesh),
        )

    @property
    def _needs_old_logps(self) -> bool:
        training = self.config.training
        return training.updates_per_batch > 1 or (training.microbatches > 1 and self.method.policy)

    def _update_from(self, state: TrainState, step: Step) -> tuple[TrainState, Step]:
        """All updates of a step; metrics are those of the last."""
        batch = step.batch
        if self._needs_old_logps:
            old = self.score(
                state.params, batch.prompts, batch, return_entropy=self.method.entropies
            )
            old, entropies = old if self.method.entropies else (old, None)
            batch = dataclasses.replace(batch, old_logps=old, old_entropies=entropies)
        for update in range(self.config.training.updates_per_batch):
            if update == 1:
                batch = _after_first_update(batch)
            state, *device = self._update(
                state, self.policy.frozen, batch, self._stage.consolidation
            )
        return state, dataclasses.replace(step, batch=batch, device=tuple(device))

    # ------------------------------------------------------------------ reading a step

    def _report(self, step: Step, report: Report) -> None:
        metrics, samples = jax.device_get(step.device[0]), jax.tree.map(local_rows, step.device[1])
        self._last_kl = float(metrics["kl"]) if "kl" in metrics else None
        before, self._reported = self._reported, (now := time.perf_counter())
        scores, own = step.judged.scores, step.judged.own
        rewards = scores.total.reshape(step.judged.shape)
        lengths = own.mask.sum(-1)
        spread = rewards.std(axis=1, ddof=1) if rewards.shape[1] > 1 else np.zeros(len(rewards))
        prompt_tokens = int(step.judged.responses.host_prompts.mask.sum())
        tokens = np.array([prompt_tokens * rewards.shape[1] + lengths.sum()])
        means = {
            "reward": rewards.mean(),
            "reward_std": spread.mean(),
            "frac_reward_zero_std": (spread < 1e-6).mean(),
            "accuracy": np.mean(scores.accuracy),
            "parse_rate": np.mean(scores.parsed),
            "completions/mean_length": lengths.mean(),
            "completions/clipped_ratio": 1 - own.finished.mean(),
        }
        if self.method.memorise:
            means["memorised_groups"] = step.judged.memorised.any(1).mean()
        values = all_hosts_sum(np.array(list(means.values()))) / jax.process_count()
        row = {
            **dict(zip(means, values.tolist(), strict=True)),
            **_component_means(scores.components),
            "completions/min_length": int(lengths.min()),
            "completions/max_length": int(lengths.max()),
            "num_tokens": int(all_hosts_sum(tokens)[0]),
            "batches": step.batches,
            "learning_rate": float(self._rate(step.index + 1)),
            "step_time": now - before,
            **{name: float(value) for name, value in metrics.items()},
            **step.probed,
        }
        report(step.index, row, self._columns(step, samples, lengths))

    def _columns(self, step: Step, samples, lengths) -> dict[str, Any]:
        """The per-sample table's rows of this step."""
        judged, (_, group) = step.judged, lengths.shape
        records = [record for record in judged.records for _ in range(group)]
        per_sample = {name: value[:, :group].reshape(-1) for name, value in samples.items()}
        if self.method.memorise:
            per_sample["memorised"] = judged.memorised.reshape(-1)
        return {
            "record_id": [r.id for r in records],
            "prompt": [r.prompt for r in records],
            "completion": judged.texts,
            "gold": [r.answer for r in records],
            "reward": judged.scores.total,
            **{f"rewards/{name}": value for name, value in judged.scores.components.items()},
            "accuracy": judged.scores.accuracy,
            "parsed": judged.scores.parsed,
            "length": lengths.reshape(-1),
            "finished": judged.own.finished.reshape(-1),
            **per_sample,
        }


def _component_means(components: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean of each reward over the responses, of all processes, that it applies to (not NaN);
    without those that apply to none."""
    known = [values[~np.isnan(values)] for values in components.values()]
    sums = all_hosts_sum(np.array([(values.sum(), len(values)) for values in known]))
    return {
        f"rewards/{name}/mean": float(total / count)
        for name, (total, count) in zip(components, sums, strict=True)
        if count
    }


def _after_first_update(batch: TrainBatch) -> TrainBatch:
    """The policy has left the references that it was, and they are the policy that sampled."""

    def left(logps, is_policy):
        return None if logps is None else jnp.where(is_policy, batch.old_logps, logps)

    never = jnp.asarray(False)
    return dataclasses.replace(
        batch,
        reference_logps=left(batch.reference_logps, batch.reference_is_policy),
        reference_is_policy=never,
        previous_logps=left(batch.previous_logps, batch.previous_is_policy),
        previous_is_policy=never,
    )
