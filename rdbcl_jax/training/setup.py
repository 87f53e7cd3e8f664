"""What a run needs before its first step: everything that can be wrong with its input is found
here, before anything is made or compiled."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import itertools
import math
import pathlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from PIL import Image

from rdbcl_jax import policy
from rdbcl_jax.config import RunConfig
from rdbcl_jax.data.check import Check, digest_of
from rdbcl_jax.data.indexed import only
from rdbcl_jax.data.records import Record
from rdbcl_jax.data.sizes import with_sizes
from rdbcl_jax.data.tasks import (
    BUILT_IN,
    SPLITS,
    TaskData,
    load_held_out,
    load_sequence,
    shared_records,
)
from rdbcl_jax.methods import make_method
from rdbcl_jax.methods.method import Method
from rdbcl_jax.methods.unread import said
from rdbcl_jax.models import attention, from_config, lora
from rdbcl_jax.models.config_files import readable
from rdbcl_jax.reporting.services import check_services
from rdbcl_jax.rewards.calls import TrainerState
from rdbcl_jax.rewards.response_format import in_format
from rdbcl_jax.rewards.scoring import RewardConfig, score
from rdbcl_jax.sharding import agree, least_memory, make_mesh, row_parts
from rdbcl_jax.toy import digits_suite
from rdbcl_jax.toy.base import check_base, draft_directory, draft_model
from rdbcl_jax.toy.options import BaseOptions
from rdbcl_jax.training import layout
from rdbcl_jax.workdir import directory_of, is_there

TRIED = 8  # records of each task on which the rewards are tried before anything is made


class NothingToLearn(ValueError):
    """A task has no record to learn from: what a run can find of its data, and no wrong setting."""


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run's input, checked.

    Attributes:
      tasks: of the sequence, in its order.
      held_out: tasks that are evaluated beside them and never learned.
      demonstrations: per task, training records with the text that a method learns for each; they
        are tokenized once a tokenizer is there.
      left_out: what is wrong with each record that is not among them; see `data.on_bad_record`.
      replaced: what a dry run has others in place of.
      notes: what is odd about options and records, and no error.
    """

    config: RunConfig
    method: Method
    rewards: RewardConfig
    mesh: jax.sharding.Mesh
    tasks: list[TaskData]
    held_out: list[TaskData]
    demonstrations: list[tuple[Sequence[Record], list[str]]]
    left_out: list[str]
    replaced: list[str]
    notes: list[str]

    @property
    def evaluated(self) -> list[TaskData]:
        """The columns of the accuracy matrix."""
        return [*self.tasks, *self.held_out]


def prepare(config: RunConfig) -> Setup:
    """Checks a config and reads its records.

    Raises:
      ValueError, FileNotFoundError: what is wrong: which field or record, what was found, what was
        expected.
      NothingToLearn: nothing is wrong, but no record of a task has a demonstration.
    """
    method = make_method(config)
    replaced = list[str]()
    if config.dry_run:
        config, replaced = dry(config, method)
        method = make_method(config)
    rewards = RewardConfig(**config.rewards.to_dict())
    check(config, make_mesh(**config.mesh.to_dict()))
    check_services(config.log)
    records, left_out = record_check(config), list[str]()
    tasks = load_sequence(config, records, left_out)
    held_out = load_held_out(config, records, left_out)
    splits = [getattr(task, split) for task in [*tasks, *held_out] for split in SPLITS]
    config = with_sizes(config, [part for part in splits if len(part)], records)
    config = _laid_out(config)
    mesh = make_mesh(**config.mesh.to_dict())
    check_rows(config, mesh)
    _check_rewards(method, rewards, tasks, config.training.steps * len(tasks))
    demonstrations = list(_demonstrations(method, tasks))
    _check_agreement([*tasks, *held_out], demonstrations)
    notes = said(config, method)
    notes += [line for task in [*tasks, *held_out] for line in shared_records(task)]
    notes += _weights_of_no_task(rewards, [*tasks, *held_out])
    return Setup(
        config, method, rewards, mesh, tasks, held_out, demonstrations, left_out, replaced, notes
    )


def record_check(config: RunConfig) -> Check:
    """Whether the run's policy, or the base that is still to be made, can read records."""
    return policy.record_check(config, lambda: _directory(config))


def _directory(config: RunConfig) -> contextlib.AbstractContextManager[pathlib.Path]:
    """The checkpoint directory of the model that the run starts from, or of what it will make."""
    path = config.model.path
    return contextlib.nullcontext(directory_of(path)) if path else draft_directory(config)


def check(config: RunConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises ValueError, or FileNotFoundError for the model, for settings that cannot work."""
    attention.resolve(config.model.attention, mesh)
    if not config.model.path:
        check_base(config)
    _check_processor(config)
    if config.model.lora.rank and config.model.lora.targets:
        _check_adapters(config)
    if not layout.is_open(config) or not [*layout.meshes(config, mesh.devices.flat)]:
        check_rows(config, mesh)


def check_rows(config: RunConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises ValueError for batches that do not divide over the devices."""
    parts = row_parts(mesh.shape)
    sizes = {
        "rollout.prompts": config.rollout.prompts,
        "evaluation.batch_size": config.evaluation.batch_size,
    }
    if not config.model.path:
        sizes["base.batch_size"] = config.section(BaseOptions).batch_size
    for name, size in sizes.items():
        if size % parts:
            raise ValueError(
                f"config.{name} is {size}, which does not divide over {parts} devices of the "
                f"batch axes; expected a multiple of {parts}"
            )


def _laid_out(config: RunConfig) -> RunConfig:
    """With the mesh and the micro-batches that it leaves open, chosen by what fits."""
    devices = jax.devices()
    backend = attention.resolve(config.model.attention, make_mesh(devices=devices))
    kernel = layout.has_kernel(config, backend)
    least = least_memory()  # by all processes, whatever the config
    memory = least if config.model.path else None  # a base that is still to be made is small
    return layout.with_layout(config, devices, memory, kernel)


def _check_processor(config: RunConfig) -> None:
    """Raises ValueError for a model, its chat template or limits of images that cannot be; a prompt
    with a picture is made, of whatever size."""
    with _directory(config) as path:
        encoder = policy.encoder_of(config, path, {})
        images = (Image.new("RGB", (64, 48)),) if encoder.processor.reads_images else ()
        with readable(path, "its tokenizer, chat template and image processor"):
            encoder.encode([Record("of a first try", "", "1", images, "1", "exact", {})])


def _check_adapters(config: RunConfig) -> None:
    """Raises ValueError where adapters would be added to nothing."""
    path, options = config.model.path, config.model.lora
    model = from_config(directory_of(path)) if path else draft_model(config)
    try:
        lora.adapt_model(model, lora.LoRA(**options.to_dict()))
    except ValueError as error:
        raise ValueError(f"config.model.lora.targets: {error}") from None


def _check_rewards(
    method: Method, rewards: RewardConfig, tasks: Sequence[TaskData], total: int
) -> None:
    """Tries the rewards on the first records of each task, as if they were answered right.

    Args:
      total: steps of the run.
    Raises:
      ValueError: no reward applies to a task.
      FunctionFailed: a reward function raised.
    """
    if method.responses != "sampled":
        return  # rewards are only logged
    for task in tasks:
        records = task.train[:TRIED]
        texts = [in_format(".", record.answer) for record in records]
        found = score(records, texts, rewards, trainer_state=TrainerState(0, total))
        if np.isnan(found.total).all():
            names = sorted(rewards.weights_of(task.name))
            raise ValueError(
                f"config.rewards: none of {names} applies to task "
                f"{task.name!r}: each is None for its first {len(records)} records (from "
                f"{records[0].id!r} on); expected a reward to learn from, see weights and "
                "task_weights"
            )


def _weights_of_no_task(rewards: RewardConfig, tasks: Sequence[TaskData]) -> list[str]:
    """A line for each table of weights that no record is scored by."""
    if not rewards.task_weights:
        return []  # no row is read to say so
    splits = [getattr(task, split) for task in tasks for split in SPLITS]
    names = sorted({records[0].task for records in splits if len(records)})
    return [
        f"rewards.task_weights.{name}: to no effect, the run has the tasks {', '.join(names)}"
        for name in rewards.task_weights
        if name not in names
    ]


def _demonstrations(
    method: Method, tasks: Sequence[TaskData]
) -> Iterator[tuple[Sequence[Record], list[str]]]:
    """Per task, the training records that have a demonstration, and those texts."""
    if method.demonstration is None:
        return
    for task in tasks:
        texts = [method.demonstration(record) for record in task.train]
        taught = [i for i, text in enumerate(texts) if text is not None]
        if not taught:
            raise NothingToLearn(
                f"task {task.name!r}: no training record has a demonstration; see "
                "config.demonstrations"
            )
        yield only(task.train, taught), [text for text in texts if text is not None]


def _check_agreement(
    tasks: Sequence[TaskData],
    demonstrations: Sequence[tuple[Sequence[Record], list[str]]],
) -> None:
    """Finds processes that have read other things than the rest: each takes its rows of a batch out
    of its own list, and as many batches as that comes to.

    Raises:
      ValueError: they have read different records or demonstrations.
    """
    if jax.process_count() == 1:
        return
    records = {f"{t.name}, {s}": digest_of(getattr(t, s)) for t in tasks for s in SPLITS}
    taught = {"demonstrations": [texts for _, texts in demonstrations]}
    # one after the other, since all processes ask the same: the first that differs is named
    differing = [name for name, found in (records | taught).items() if not agree(repr(found))]
    if differing:
        raise ValueError(
            f"the processes have read different records or demonstrations: {differing[0]}; "
            "expected the same files on all hosts, and a demonstrations.refiner that returns the "
            "same wherever it is asked"
        )


# ------------------------------------------------------------------ a dry run


def dry(config: RunConfig, method: Method) -> tuple[RunConfig, list[str]]:
    """The same run in small: two steps a task on a few records of few tokens, as few prompts and
    responses as the method can do with.

    A model or a data file that is not there is replaced by a tiny random one and by built-in
    records, so that a recipe can be tried where neither has been fetched; what was is returned,
    in a line each.
    """
    replaced = []
    tasks, names = dict(config.tasks), (*config.sequence, *config.evaluation.tasks)
    for name, built_in in zip(names, itertools.cycle(digits_suite.TASKS), strict=False):
        if ":" in name:  # of a suite
            continue
        sources = tasks.get(name, {})
        if missing := [split for split in SPLITS if not _exists(sources.get(split))]:
            tasks[name] = dict.fromkeys(SPLITS, BUILT_IN + built_in)
            if sources:
                found = f"{missing[0]} is {sources.get(missing[0])!r}, which is not there"
                replaced.append(f"task {name} has the records of {built_in}: its {found}")
    if config.model.path and not is_there(config.model.path):
        replaced.append(f"the model is tiny and random: {config.model.path} is not there")
    # two micro-batches where the run has several
    parts = 1 + (0 < config.training.prompts_per_device < config.rollout.prompts)
    rows = jax.device_count() * parts
    prompts = rows * math.ceil(method.fewest_prompts.prompts / rows)
    small = config.changed(
        {
            "model.path": config.model.path if is_there(config.model.path) else "",
            "tasks": tasks,
            "rollout.prompts": prompts,
            "rollout.samples": min(method.fewest_samples, config.rollout.samples),
            "rollout.max_tokens": min(16, config.rollout.max_tokens),
            "training.prompts_per_device": min(config.training.prompts_per_device, 1),
            "training.steps": 2,
            "training.checkpoint_every": 1,
            # a base that the run makes is taught; in place of another model random weights do
            "base.steps": 0 if config.model.path else 2,
            "base.batch_size": rows,
            "evaluation.batch_size": rows,
            "data.train_count": prompts,
            "data.validation_count": 2,
            "data.test_count": 2,
        }
    )
    return small, replaced


def _exists(source: str | None) -> bool:
    return source is not None and bool(source) and (":" in source or bool(glob.glob(source)))
