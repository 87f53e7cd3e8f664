"""The outer loop: freeze the reference, learn a task, evaluate on all tasks, checkpoint, go on."""

from __future__ import annotations

import base64
import contextlib
import functools
import glob
import io
import itertools
import pathlib
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rdbcl_jax.checkpoint import Checkpoints
from rdbcl_jax.config import RunConfig
from rdbcl_jax.data.records import load_images
from rdbcl_jax.data.tasks import BUILT_IN, EVALUATED, SPLITS, TaskData, load_held_out, load_sequence
from rdbcl_jax.evaluation import Evaluation, evaluate, split_results
from rdbcl_jax.methods import make_method
from rdbcl_jax.methods.classic import EWCOptions, ReplayOptions
from rdbcl_jax.methods.method import Method
from rdbcl_jax.models import attention, read_config
from rdbcl_jax.models.interface import Params
from rdbcl_jax.policy import load_policy
from rdbcl_jax.reporting.progress import Progress
from rdbcl_jax.reporting.report import write_report
from rdbcl_jax.reporting.run_files import read_steps
from rdbcl_jax.reporting.run_log import RunLog
from rdbcl_jax.results import RunResults, read_results
from rdbcl_jax.rewards.scoring import RewardConfig, score
from rdbcl_jax.rollout.sampling import sampling_of
from rdbcl_jax.sharding import local_rows, make_mesh
from rdbcl_jax.toy import digits_suite
from rdbcl_jax.toy.base import make_base
from rdbcl_jax.toy.options import BaseOptions
from rdbcl_jax.training import rng
from rdbcl_jax.training.fisher import estimate_fisher
from rdbcl_jax.training.learner import Learner, Stage, Step
from rdbcl_jax.training.learner import Progress as HostProgress
from rdbcl_jax.training.pretask_stats import collect
from rdbcl_jax.training.update import Consolidation
from rdbcl_jax.workdir import changes, directory_of, is_there

EXAMPLES_PER_TASK = 4


def train(config: RunConfig | Mapping[str, Any], workdir: str | pathlib.Path) -> RunResults:
    """Runs the whole sequence, or what is left of it, and returns the content of results.json."""
    return _Run(RunConfig.of(config), pathlib.Path(workdir)).run()


class Policies:
    """The frozen policies of the tasks' boundaries: what a KL reference can be."""

    def __init__(self, base: Params, decay: float, averages: bool):
        """`averages`: keep the moving average too; it starts at the base."""
        self.base = self.previous = self.ema = base
        self.decay, self.averages = decay, averages

    def add(self, policy: Params) -> None:
        """The policy as it is after another task."""
        self.previous = policy
        if self.averages:
            self.ema = jax.tree.map(
                lambda a, p: (self.decay * a + (1 - self.decay) * p).astype(a.dtype),
                self.ema,
                policy,
            )

    def of(self, reference: str) -> Params:
        return {"previous": self.previous, "base": self.base, "ema": self.ema}[reference]


class _Run:
    def __init__(self, config: RunConfig, workdir: pathlib.Path):
        self.workdir, self.started = workdir, time.perf_counter()
        self.config = dry(config) if config.dry_run else config
        # everything that can be wrong with the input is found before anything is made or compiled
        self.method = make_method(self.config)
        self.rewards = RewardConfig(**self.config.rewards.to_dict())
        self.mesh = make_mesh(**self.config.mesh.to_dict())
        check(self.config, self.mesh)
        self.tasks, self.held_out = load_sequence(self.config), load_held_out(self.config)
        self.demonstrations = list(_demonstrations(self.method, self.tasks))
        workdir.mkdir(parents=True, exist_ok=True)
        self.checkpoints = Checkpoints(workdir)
        self.timing: dict[str, float] = {}
        self.fisher = None

    @property
    def steps(self) -> int:
        return self.config.training.steps

    def run(self) -> RunResults:
        names = [task.name for task in self.tasks]
        done = self.checkpoints.latest_step() or 0
        check_resume(self.workdir, self.config, done)
        # each process logs its own rows; the main one's log is the run's
        process = jax.process_index()
        folder = self.workdir / f"processes/{process}" if process else self.workdir
        with (
            Progress(
                names,
                self.steps,
                held_out=[task.name for task in self.held_out],
                enabled=process == 0,
            ) as self.progress,
            RunLog(folder, resume_step=done) as self.log,
        ):
            self._load()
            if done:
                self.progress.message(f"resuming after step {done} of {self.steps * len(names)}")
            self._learn_all(done)
            results = self._write_results("done")
            self.progress.phase("writing the report")
            self.log.close()
            if process == 0:
                write_report(self.workdir)
            self.progress.message(f"report: {self.workdir / 'report.html'}")
        return results

    # ------------------------------------------------------------------ phases

    def _load(self) -> None:
        """The base policy: read, or made first."""
        config = self.config
        if not config.model.path:
            total = config.section(BaseOptions).steps

            def on_step(step: int, loss: float) -> None:
                if step % 50 == 0 or step == total - 1:
                    self.progress.phase(f"SFT of the base: step {step}/{total}, loss {loss:.3f}")

            with self._timed("base"):
                self.progress.phase("making the base model")
                path = make_base(config, self.workdir / "base", self.mesh, on_step)
            # the run's own config keeps its empty path: where the workdir lies is no setting
            config = config.changed({"model.path": str(path)})
        self.policy, self.base = load_policy(config, self.mesh)
        self.learner = Learner(config, self.policy, self.base, self.method, self.rewards)
        for records, texts in self.demonstrations:  # too long, or of words it has no token for
            self.policy.encoder.encode_responses(texts, records)

    def _learn_all(self, done: int) -> None:
        saved = read_results(self.workdir) if done else None
        self.rows = {
            name: [
                Evaluation(accuracy, parse_rate, split.count)
                for accuracy, parse_rate in zip(split.accuracy, split.parse_rate, strict=True)
            ]
            for name, split in (saved.splits if saved else {}).items()
        }
        self.tokens = _last_tokens(self.workdir) if done else 0
        first = done // self.steps
        policies = Policies(self.base, self.config.kl.ema_decay, self.method.reference == "ema")
        for task in range(1, first + 1):
            if task == first or policies.averages:
                policies.add(self.checkpoints.restore_task(task, self.base))
        self._evaluate(first, policies.previous)
        if self.method.responses == "none":
            self._repeat_first_row()
            return
        state = self.learner.init(self.base)
        stage = self._stage(min(first, len(self.tasks) - 1), policies)
        progress = self.learner.progress(stage)
        if done:
            state, progress = self.checkpoints.restore_step(done, (state, progress))
        for k in range(first, len(self.tasks)):
            start = done - k * self.steps if k == first else 0
            state, last = self._learn_task(k, stage, state, progress, start)
            # the state's own parameters are donated to the next update
            policy = jax.tree.map(jnp.copy, state.params)
            if last:
                self.log.write_examples(self._examples(k, last, policy, policies.previous))
            self._consolidate(k, policy)
            self._collect(k, policy)
            policies.add(policy)
            stage = self._stage(min(k + 1, len(self.tasks) - 1), policies)
            state, progress = self.learner.init(policy), self.learner.progress(stage)
            with self._timed("checkpoints"):
                self.checkpoints.save_task(k + 1, policy)
                self.checkpoints.save_step((k + 1) * self.steps, (state, progress))
            self._evaluate(k + 1, policy)

    def _stage(self, k: int, policies: Policies) -> Stage:
        """What task k learns from, and the frozen policies it is held against."""
        tasks, method = self.tasks, self.method
        records, rehearsal = tasks[k].train, []
        if method.data == "joint":
            records = [record for task in tasks for record in task.train]
        elif method.data == "replay":
            kept = self.config.section(ReplayOptions).per_task
            rehearsal = [record for task in tasks[:k] for record in task.train[:kept]]
        consolidation = None
        if method.consolidation and k:
            if self.fisher is None:  # resumed
                self.fisher = self.checkpoints.restore_fisher(k, self._fisher_like())
            consolidation = Consolidation(policies.previous, self.fisher)
        reference = policies.of(method.reference or "previous")
        return Stage(records, policies.previous, reference, rehearsal, consolidation)

    def _fisher_like(self):
        return jax.tree.map(
            lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32, sharding=p.sharding), self.base
        )

    def _consolidate(self, k: int, policy) -> None:
        """EWC: adds what mattered to task k to what mattered before it."""
        if not self.method.consolidation:
            return
        own, count = self.config.section(EWCOptions), self.config.evaluation.batch_size
        with self._timed("learning"):
            found = estimate_fisher(
                self.policy,
                policy,
                self.tasks[k].train[: own.sequences],
                sampling_of(self.policy, self.config.rollout),
                rng.of_fisher(self.config.seed, k),
                batch_size=min(count, own.sequences),
                chunk_size=self.config.training.chunk_size,
            )
        if self.fisher is not None:
            found = jax.tree.map(lambda old, new: own.decay * old + new, self.fisher, found)
        self.fisher = found
        self.checkpoints.save_fisher(k + 1, found)

    def _collect(self, k: int, policy) -> None:
        """Right responses to the task just learned, for `rft_sft`."""
        if not self.config.training.collect:
            return
        process, task = jax.process_index(), self.tasks[k]
        part = f"-{process:05}-of-{jax.process_count():05}" if jax.process_count() > 1 else ""
        with self._timed("collecting"):
            self.progress.phase(f"collecting right responses to {task.name}")
            collect(
                self.workdir / "rollouts" / f"{task.name}{part}.parquet",
                self.policy,
                policy,
                task.train,
                functools.partial(score, config=self.rewards),
                sampling_of(self.policy, self.config.rollout),
                rng.of_collected(self.config.seed, k),
                batch_size=self.config.evaluation.batch_size,
                samples=self.config.training.collect,
            )

    def _repeat_first_row(self) -> None:
        """Nothing is learned: every row of the matrix is that of the base."""
        for rows in self.rows.values():
            rows[1:] = rows[:1] * len(self.tasks)

    def _learn_task(self, k: int, stage: Stage, state, progress: HostProgress, start: int):
        task, first_step = self.tasks[k], k * self.steps
        self.progress.start_task(k, step=start)

        def probe(params) -> dict[str, float]:
            tasks = [*self.tasks, *self.held_out]
            records = [task.validation for task in tasks]
            found = evaluate(self.policy, params, records, self.rewards, self.config)
            pairs = zip(tasks, found.accuracy, strict=True)
            return {f"eval/{task.name}/accuracy": value for task, value in pairs}

        def report(index: int, metrics: dict, samples: dict) -> None:
            self.tokens += metrics["num_tokens"]
            place = {"step": first_step + index, "task": task.name}
            row = {**place, "task_index": k, "task_step": index, **metrics}
            row["num_tokens"] = self.tokens
            self.log.write_step(row)
            self.log.write_samples({**place, **samples})
            self.progress.step(row)

        def save(done: int, state, progress) -> None:
            self.checkpoints.save_step(first_step + done, (state, progress))

        with self._timed("learning"):
            return self.learner.learn(
                stage,
                state,
                progress,
                start=start,
                first_step=first_step,
                report=report,
                save=save,
                probe=probe,
            )

    def _evaluate(self, row: int, policy) -> None:
        """Row `row` of both matrices, unless it is there from before a resume."""
        if len(self.rows.get("test", [])) > row:
            return
        tasks = [*self.tasks, *self.held_out]
        self.progress.phase(f"evaluating all {len(tasks)} tasks")
        records = [getattr(task, split) for split in EVALUATED for task in tasks]
        with self._timed("evaluation"):
            found = evaluate(self.policy, policy, records, self.rewards, self.config)
        count = len(tasks)
        for i, split in enumerate(EVALUATED):
            self.rows.setdefault(split, []).append(found.part(i * count, (i + 1) * count))
        self._write_results("running")
        self.progress.end_task(row - 1, self.rows["test"][-1].accuracy)

    # ------------------------------------------------------------------ what is written

    def _write_results(self, status: str) -> RunResults:
        self.timing["total"] = time.perf_counter() - self.started
        results = RunResults(
            method=self.config.method,
            seed=self.config.seed,
            status=status,
            tasks=[task.name for task in self.tasks],
            held_out=[task.name for task in self.held_out],
            splits={s: split_results(rows, len(self.tasks)) for s, rows in self.rows.items()},
            config=self.config.to_dict(),
            versions=_versions(),
            device=f"{jax.device_count()} × {jax.devices()[0].device_kind}",
            timing=dict(self.timing),
        )
        self.log.write_results(results)
        return results

    def _examples(self, k: int, step: Step, policy, reference) -> list[dict[str, Any]]:
        """A few of the task's last samples, token by token, after the task."""
        judged, batch = step.judged, step.batch
        count, group = min(EXAMPLES_PER_TASK, len(judged.records)), judged.shape[1]
        scored = (self.learner.score(p, batch.prompts, batch) for p in (policy, reference))
        policy_logps, reference_logps = (local_rows(a)[:count, 0] for a in scored)
        reasoning, answer = (local_rows(a)[:, 0] for a in (batch.reasoning_mask, batch.answer_mask))
        samples = jax.tree.map(local_rows, step.device[1])
        tokens, lengths = judged.host.tokens[:, 0], judged.host.mask[:, 0].sum(-1)
        examples = []
        for row in range(count):
            length = lengths[row]
            spans = np.full(length, "other", object)
            spans[reasoning[row, :length]] = "reasoning"
            spans[answer[row, :length]] = "answer"
            record, sample = judged.records[row], row * group
            examples.append(
                {
                    "task": self.tasks[k].name,
                    "step": k * self.steps + step.index,
                    "record_id": record.id,
                    "image": _png(load_images(record)),
                    "prompt": record.prompt,
                    "tokens": self.policy.pieces(tokens[row, :length]),
                    "policy_logps": policy_logps[row, :length],
                    "reference_logps": reference_logps[row, :length],
                    "spans": spans.tolist(),
                    "reward": float(judged.scores.total[sample]),
                    "gold": record.answer,
                    "correct": bool(judged.scores.accuracy[sample]),
                    **{n: float(samples[n][row, 0]) for n in ("rp", "kl_coef") if n in samples},
                }
            )
        return examples

    @contextlib.contextmanager
    def _timed(self, name: str):
        started = time.perf_counter()
        yield
        self.timing[name] = self.timing.get(name, 0.0) + time.perf_counter() - started


def check(config: RunConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises ValueError, or FileNotFoundError for the model, for settings that cannot work."""
    rollout, training = config.rollout, config.training
    attention.resolve(config.model.attention, mesh)
    if config.model.path:
        read_config(directory_of(config.model.path))
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    sizes = {
        "rollout.prompts": (rollout.prompts, parts * training.microbatches),
        "evaluation.batch_size": (config.evaluation.batch_size, parts),
    }
    if not config.model.path:
        sizes["base.batch_size"] = (config.section(BaseOptions).batch_size, parts)
    for name, (size, divisor) in sizes.items():
        if size < 1 or size % divisor:
            raise ValueError(
                f"config.{name} is {size}, which does not divide over {parts} devices of the "
                f"batch axes (times {training.microbatches} microbatches of an update); expected "
                f"a multiple of {divisor}"
            )


def _demonstrations(method: Method, tasks: Sequence[TaskData]) -> Iterator[tuple[list, list]]:
    """Per task, the training records that have a demonstration, and those texts."""
    for task in tasks if method.demonstration else ():
        pairs = [(record, method.demonstration(record)) for record in task.train]
        pairs = [(record, text) for record, text in pairs if text is not None]
        if not pairs:
            raise ValueError(
                f"task {task.name!r}: no training record has a demonstration; see "
                "config.demonstrations"
            )
        yield [record for record, _ in pairs], [text for _, text in pairs]


# fields that a resumed run may change: they leave the results as they are
FREE_ON_RESUME = ("training.checkpoint_every", "data.threads", "mesh.", "model.path", "dry_run")


def check_resume(workdir: pathlib.Path, config: RunConfig, done: int) -> None:
    """Raises ValueError where a started workdir belongs to a run of another config."""
    saved = read_results(workdir) if done else None
    if saved is None:
        return
    differing = [
        f"{name}: {there} in the workdir, {now} now"
        for name, (there, now) in changes(saved.config, config).items()
        if not name.startswith(FREE_ON_RESUME)
    ]
    if differing:
        raise ValueError(
            f"{workdir} holds {done} steps of another config; use a new workdir, or that "
            "config:\n  " + "\n  ".join(differing)
        )


def dry(config: RunConfig) -> RunConfig:
    """The same run in small: two steps a task on a few records of few tokens.

    A model or a data file that is not there is replaced by a tiny random one and by built-in
    records, so that a recipe can be tried where neither has been fetched.
    """
    tasks, names = dict(config.tasks), (*config.sequence, *config.evaluation.tasks)
    for name, built_in in zip(names, itertools.cycle(digits_suite.TASKS)):
        if any(not _exists(tasks.get(name, {}).get(split)) for split in SPLITS):
            tasks[name] = dict.fromkeys(SPLITS, BUILT_IN + built_in)
    rows = jax.device_count() * config.training.microbatches
    return config.changed(
        {
            "model.path": config.model.path if is_there(config.model.path) else "",
            "tasks": tasks,
            "rollout.prompts": rows,
            "rollout.samples": min(2, config.rollout.samples),
            "rollout.max_tokens": 16,
            "training.steps": 2,
            "training.checkpoint_every": 1,
            "base.steps": 2,
            "base.batch_size": rows,
            "evaluation.batch_size": rows,
            "data.train_count": rows,
            "data.validation_count": 2,
            "data.test_count": 2,
        }
    )


def _exists(source: str | None) -> bool:
    return bool(source) and (":" in source or bool(glob.glob(source)))


def _png(images: Sequence) -> str | None:
    if not images:
        return None
    buffer = io.BytesIO()
    images[0].save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _versions() -> dict[str, str]:
    packages = ("rdbcl_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers")
    return {"python": platform.python_version(), **{p: metadata.version(p) for p in packages}}


def _last_tokens(workdir: pathlib.Path) -> int:
    steps = read_steps(workdir)
    return int(steps[-1].get("num_tokens", 0)) if steps else 0
