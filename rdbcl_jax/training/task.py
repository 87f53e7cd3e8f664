"""Learning one task: a loop that keeps the device busy while the host scores and logs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from rdbcl_jax.batches import TrainBatch
from rdbcl_jax.finite import NotFinite, check_finite
from rdbcl_jax.models.partition import Trained
from rdbcl_jax.rewards.scoring import judge
from rdbcl_jax.rollout.scored import Responses, ScoredRollouts
from rdbcl_jax.sharding import all_hosts_rows, local_rows, put_batch
from rdbcl_jax.training import rng
from rdbcl_jax.training.experience import Experience, make_feed
from rdbcl_jax.training.learner import Learner
from rdbcl_jax.training.memory import phase
from rdbcl_jax.training.metrics import rollout_metrics, sample_columns
from rdbcl_jax.training.not_finite import what_was_not_finite
from rdbcl_jax.training.pretask_stats import pretask_stats
from rdbcl_jax.training.references import after_first_update, frozen_logprobs
from rdbcl_jax.training.stage import Stage
from rdbcl_jax.training.state import TaskState
from rdbcl_jax.training.stop import Stopped


@dataclasses.dataclass(frozen=True)
class Step:
    """What the host keeps of one step until its device results are read."""

    index: int
    scored: ScoredRollouts
    batch: TrainBatch
    batches: int  # drawn so far
    sampled: int  # responses of the policy, of all processes, those that were left out with them
    tracker: Any  # the method's memory before it saw this step's rewards
    device: tuple[dict, dict]  # metrics and per-sample values of the update
    probed: dict[str, float] = dataclasses.field(default_factory=dict)  # of the policy after it


Report = Callable[[int, dict[str, float], dict[str, Any]], None]  # step, metrics, sample columns
Save = Callable[[int, TaskState], None]
Probe = Callable[[Trained], dict[str, float]]
Asked = Callable[[], int]  # the signal by which the run was asked to stop; 0: it was not


def learn_task(
    learner: Learner,
    stage: Stage,
    state: TaskState,
    *,
    start: int,
    first_step: int,
    report: Report,
    save: Save,
    probe: Probe,
    asked: Asked = lambda: 0,
) -> tuple[TaskState, Step | None]:
    """Steps `start` … `training.steps` of a task.

    Args:
      first_step: steps of all tasks before this one; batches and rng follow from the sum.
      report: called with the metrics of every step, one step late.
      save: called every `training.checkpoint_every` steps but the last, with the number of steps
        done; all of them have been reported by then.
      probe: metrics of a policy, which join those of the step that made it; called every
        `evaluation.every` steps but the last.
      asked: called after every step; a stop is saved and raised, but for one after the last.
    Returns:
      The state, and the last step (None if nothing was left to do).
    Raises:
      NotFinite: the updates of `training.max_skipped` steps in a row were left out, since their
        loss or gradient was not finite; or a parameter that would be saved is not.
      OutOfMemory: on the device.
      Stopped: as it was asked.
    """
    training, method = learner.config.training, learner.method
    clock = _StepClock()

    def due(every: int, done: int) -> bool:  # the end of a task has a place of its own
        return every > 0 and done % every == 0 and done < training.steps

    def keep(state: TaskState, done: int) -> None:
        check_finite(state.train.params, f"the state after {done} steps of the task is not saved")
        save(done, state)

    def reported(state: TaskState, step: Step) -> TaskState:
        update, samples = _results(learner, step)
        skipped = int(update.pop("skipped_in_a_row"))
        row = {
            **rollout_metrics(step.scored, learner.policy.rows, memorise=method.memorises),
            "batches": step.batches,
            "sampled": step.sampled,
            "step_time": clock.lap(),
            **{name: float(value) for name, value in update.items()},
            **step.probed,
        }
        report(step.index, row, sample_columns(step.scored, samples, memorise=method.memorises))
        if not skipped:
            bad.clear()
            kl = np.asarray(update.get("kl", np.nan), np.float32)
            return dataclasses.replace(state, last_kl=kl)
        if not bad:
            bad.append(step)
        if skipped >= training.updates_per_batch:  # all of the step's: it leaves nothing behind
            state = dataclasses.replace(state, tracker=step.tracker)
        if skipped >= training.max_skipped:
            give_up(state, step, skipped)
        return state

    def give_up(state: TaskState, step: Step, skipped: int) -> None:
        """Ends the run; the state is as before the first of these updates."""
        if step.index + 1 < training.steps:  # else the state would pass for the next task's
            state = dataclasses.replace(state, batches=np.asarray(step.batches))
            keep(state, step.index + 1)
        first, here = bad[0], first_step + step.index
        what = what_was_not_finite(
            learner, state.train.params, first.scored, first.batch, first.device
        )
        raise NotFinite(
            f"step {here}: the loss or gradient of {skipped} updates in a row was not finite, as "
            f"many as training.max_skipped allows; first, in step {first_step + first.index}, "
            f"{what}. The parameters are still those of the last good update; lower the learning "
            "rate, or look at that record"
        )

    # ---------------------------------------------------------------- before the first step
    values, state = _prompt_values(learner, stage, state, first_step, start)
    feed = make_feed(learner, stage, first_step, state)
    experience = Experience(learner, stage, first_step, feed)

    # ---------------------------------------------------------------- step by step
    step = unreported = None
    untouched = True  # as far as is known
    bad: list[Step] = []  # the first of those in a row that were left out
    for index in range(start, training.steps):
        state = experience.surveyed(state, index)
        responses, state = experience.draw(state, index)
        untouched = untouched and not int(state.train.step)
        # queued before the host scores, unless the method may yet change the responses
        early = method.revise is None
        references = _references(learner, stage, responses, untouched) if early else None
        if unreported:  # the device is busy with the above
            state = reported(state, unreported)
        scored, state, sampled = experience.revised(responses, state, index)
        if references is None:
            references = _references(learner, stage, scored.responses, untouched)
        before = state.tracker
        batch, state = _train_batch(experience, state, scored, references, values, index)
        state = experience.observed(state, scored)
        state, batch, device = _update(learner, stage, state, batch)
        step = Step(index, scored, batch, int(state.batches), sampled, before, device)
        done = index + 1
        if due(learner.config.evaluation.every, done):
            jax.block_until_ready(state.train.params)  # that is the step's time
            with clock.stopped():
                step = dataclasses.replace(step, probed=probe(state.train.params))
        unreported = step
        signum = asked() if done < training.steps else 0
        if signum or due(training.checkpoint_every, done):
            state, unreported = reported(state, step), None
            keep(state, done)
        if signum:
            raise Stopped(signum, f"after step {first_step + done}, which is saved")
    if unreported:
        state = reported(state, unreported)
    check_finite(state.train.params, "the policy after the task is not saved")
    return state, step


class _StepClock:
    """Seconds from report to report, without those in which it was stopped."""

    def __init__(self) -> None:
        self._since = self._stopped_at = time.perf_counter()

    def lap(self) -> float:
        before, self._since = self._since, time.perf_counter()
        return self._since - before

    def stopped(self) -> _StepClock:
        return self

    def __enter__(self) -> None:
        self._stopped_at = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._since += time.perf_counter() - self._stopped_at


# ------------------------------------------------------------------ the start of a task


def _prompt_values(
    learner: Learner, stage: Stage, state: TaskState, first_step: int, start: int
) -> tuple[Float[np.ndarray, "N"], TaskState]:
    """The pre-task statistic of each prompt (0 where the method wants none), and the state whose
    tracker has been told."""
    wanted, config = learner.method.pretask, learner.config
    if not wanted or (wanted == "success" and start > 0):
        return np.zeros(len(stage.records), np.float32), state
    values = pretask_stats(
        learner.policy,
        stage.previous,
        stage.records,
        judge,
        learner.sampling,
        rng.of_pretask_stats(config.seed, first_step),
        config.evaluation.batch_size,
    )[wanted]
    if wanted == "success" and (tracker := learner.method.tracker):
        started = jax.device_get(tracker.start(values))
        state = dataclasses.replace(state, tracker=started)
    return values, state


@phase("reference")
def _references(
    learner: Learner, stage: Stage, responses: Responses, untouched: bool
) -> dict[str, Any]:
    return frozen_logprobs(
        learner.logprobs,
        learner.method,
        responses,
        previous=stage.previous,
        reference=stage.reference,
        untouched=untouched,
    )


# ------------------------------------------------------------------ the batch and its updates


@phase("update")
def _results(learner: Learner, step: Step) -> tuple[dict, dict]:
    """Metrics and per-sample values on the host; waits for the device."""
    return jax.device_get(step.device[0]), jax.tree.map(local_rows, step.device[1])


def _train_batch(
    experience: Experience,
    state: TaskState,
    scored: ScoredRollouts,
    references: dict[str, Any],
    values: Float[np.ndarray, "N"],
    index: int,
) -> tuple[TrainBatch, TaskState]:
    """The train batch, with what is known of each prompt from before; and the state whose tracker
    has seen the rewards."""
    learner, stage = experience.learner, experience.stage
    ids, found = scored.responses.host_prompts.record_ids, scored.responses.all
    known = values[ids]
    if tracker := learner.method.tracker:
        memory, total = state.tracker, scored.scores.total
        known = np.asarray(tracker.baselines(memory, ids), np.float32)
        rows = learner.policy.rows
        prompts = all_hosts_rows(np.repeat(ids, scored.shape[1]), rows)
        seen = prompts, all_hosts_rows(total, rows)
        kl = None if np.isnan(state.last_kl) else float(state.last_kl)
        state = dataclasses.replace(
            state, tracker=jax.device_get(tracker.observe(memory, *seen, kl))
        )
    of_prompts = {"prompt_values": known, "replayed": ids >= stage.own}
    from_host = {**scored.columns(learner.policy), **of_prompts}
    mask = found.mask
    if learner.config.loss.mask_truncated:
        mask &= found.finished[..., None]
    batch = TrainBatch(
        prompts=scored.responses.prompts,
        tokens=found.tokens,
        mask=mask,
        step=jnp.asarray(experience.first_step + index, jnp.int32),
        task_step=jnp.asarray(index, jnp.int32),
        task_steps=jnp.asarray(learner.config.training.steps, jnp.int32),
        sampler_logps=found.logps,
        **references,
        **put_batch(from_host, learner.policy.mesh),
    )
    return batch, state


@phase("update")
def _update(
    learner: Learner, stage: Stage, state: TaskState, batch: TrainBatch
) -> tuple[TaskState, TrainBatch, tuple[dict, dict]]:
    """All updates of a batch: the state, the batch as the last one had it, and that one's metrics
    and per-sample values."""
    training, method, train = learner.config.training, learner.method, state.train
    several = training.updates_per_batch > 1
    if several or (learner.microbatches > 1 and method.policy):
        old = learner.logprobs(train.params, batch.prompts, batch, return_entropy=method.entropies)
        old, entropies = old if method.entropies else (old, None)
        batch = dataclasses.replace(batch, old_logps=old, old_entropies=entropies)
    learner.ahead.wait("update")
    for update in range(training.updates_per_batch):
        if update == 1:
            batch = after_first_update(batch)
        train, metrics, samples = learner.update(
            train, learner.policy.frozen, batch, stage.consolidation
        )
    return dataclasses.replace(state, train=train), batch, (metrics, samples)
