"""The tiny base model: made from nothing, then given moderate skill by a short SFT.

It stands in for an instruct model where none can be had: same modules, same files, same loading.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from rdbcl_jax.config import RunConfig
from rdbcl_jax.data.records import Record
from rdbcl_jax.data.sizes import SIZES
from rdbcl_jax.data.suites import TaughtSuite, load_suite
from rdbcl_jax.distributed import meet
from rdbcl_jax.integrity import damage, manifest, read_manifest
from rdbcl_jax.json_files import flatten, plain, read_object, write_json
from rdbcl_jax.messages import did_you_mean
from rdbcl_jax.models import from_config, save_pretrained
from rdbcl_jax.models.interface import VLM
from rdbcl_jax.models.partition import Trained
from rdbcl_jax.policy import Policy, load_policy
from rdbcl_jax.rewards.response_format import TAGS
from rdbcl_jax.toy.options import BaseOptions
from rdbcl_jax.toy.tiny import tiny_of, write_tiny_model
from rdbcl_jax.training.supervised import fine_tune

WEIGHTS = "model.safetensors"
# from which settings it was made, and sizes and hashes of its files; in a folder of its own, since
# the files of the model's own are copied where policies are exported
MADE = "made/manifest.json"


def make_base(
    config: RunConfig,
    directory: pathlib.Path,
    mesh: jax.sharding.Mesh,
    on_step: Callable[[int, float], None],
) -> pathlib.Path:
    """Writes the base model to `directory`, unless it is there already; returns the directory.

    It depends on `config.base` and the shapes in `config.data` alone, not on the run's seed.

    Raises:
      ValueError: what is there was made from other settings, or is damaged.
    """
    if directory.exists():
        _check_made(directory, config)
        return directory
    options, suite, size = _checked(config)
    draft = directory.with_name(directory.name + ".draft")
    if jax.process_index() == 0:
        shutil.rmtree(draft, ignore_errors=True)  # of one that was killed
        write_tiny_model(draft, size, suite.words(), options.model_type)
        model = from_config(draft, dtype="float32", param_dtype="float32")
        params = jax.device_get(model.init(jax.random.key(options.seed)))
        save_pretrained(draft, model, params, like=draft)
    meet("draft of the base model")
    if options.steps:
        policy, trained = load_policy(_at(config, draft), mesh)
        trained = _taught(config, suite, policy, trained, on_step)
        save_pretrained(draft, policy.model, policy.whole(trained), like=draft)
    if jax.process_index() == 0:
        content = {"settings": _settings(config), "files": manifest(draft)}
        (draft / MADE).parent.mkdir()
        write_json(draft / MADE, content, indent=1)
        draft.rename(directory)  # in one move: what is there is complete
    meet("base model")
    return directory


def _taught(
    config: RunConfig,
    suite: TaughtSuite,
    policy: Policy,
    trained: Trained,
    on_step: Callable[[int, float], None],
) -> Trained:
    """The parameters after the fine-tuning."""
    options = config.section(BaseOptions)
    demonstrations: Any = suite.Demonstrations(
        options.steps * options.batch_size, options.seed, follow=options.follow
    )
    if options.formatted < 1:
        demonstrations = Careless(demonstrations, options.formatted, options.seed)
    return fine_tune(
        policy,
        trained,
        demonstrations,
        options.optimizer,
        steps=options.steps,
        batch_size=options.batch_size,
        chunk_size=config.training.chunk_size,
        seed=options.seed,
        threads=config.data.threads,
        max_skipped=config.training.max_skipped,
        on_step=on_step,
    )


def _check_made(directory: pathlib.Path, config: RunConfig) -> None:
    """A base of before there was a list of its files is taken as it is."""
    advice = "use a new workdir, or remove that folder and it is made again"
    try:
        files, settings = read_manifest(directory / MADE), read_object(directory / MADE)["settings"]
        problem = damage(directory, files, hashed=config.checkpoint.verify)
    except FileNotFoundError:
        settings, problem = {}, "" if (directory / WEIGHTS).exists() else f"has no {WEIGHTS}"
    except (ValueError, KeyError):
        settings, problem = {}, f"has a damaged {MADE}"
    now = flatten(_settings(config))
    # of batches, which may be left to the data: of the run, or, in a study, of the base alone
    sizes = {f"data.{name}" for name in SIZES}
    problem = problem or ", ".join(
        f"was made with {name} = {value!r}, not {now[name]!r}"
        for name, value in flatten(settings).items()
        if name in now and now[name] != value and not (name in sizes and not (value and now[name]))
    )
    if problem:
        raise ValueError(f"the base model {directory} {problem}; {advice}")


def _settings(config: RunConfig) -> dict[str, Any]:
    """What a base is made from."""
    how = ("train_count", "validation_count", "test_count", "seed", "threads")
    data = {name: value for name, value in config.data.to_dict().items() if name not in how}
    model = {name: getattr(config.model, name) for name in ("dtype", "param_dtype")}
    return plain({"base": config.section(BaseOptions).to_dict(), "data": data, "model": model})


def check_base(config: RunConfig) -> None:
    """Raises ValueError for options from which no base can be made."""
    _checked(config)


def draft_model(config: RunConfig) -> VLM:
    """The base's model, without parameters."""
    with draft_directory(config) as draft:
        return from_config(draft)


@contextlib.contextmanager
def draft_directory(config: RunConfig) -> Iterator[pathlib.Path]:
    """The base's checkpoint directory, without weights, while it is needed."""
    options, suite, size = _checked(config)
    with tempfile.TemporaryDirectory() as draft:
        yield write_tiny_model(draft, size, suite.words(), options.model_type)


def _checked(config: RunConfig) -> tuple[BaseOptions, Any, Any]:
    """The options, the suite that is taught and the model's size."""
    options = config.section(BaseOptions)
    try:
        suite = load_suite(options.suite, TaughtSuite)
        make_size = tiny_of(options.model_type).size
    except ValueError as error:
        raise ValueError(f"config.base.{error}") from None
    fields = [field.name for field in dataclasses.fields(make_size)]
    for name, value in options.size.items():
        if name not in fields:
            raise ValueError(f"config.base.size.{name} is no field{did_you_mean(name, fields)}")
        listed = isinstance(value, list | tuple)  # of layers, the first of which is 0
        if not all(0 < n < math.inf or (listed and n == 0) for n in np.atleast_1d(value)):
            expected = "numbers of layers, from 0 on" if listed else "a number above 0"
            raise ValueError(f"config.base.size.{name} is {value!r}, expected {expected}")
    return options, suite, make_size(**options.size)


class Careless:
    """Demonstrations of which only a share keeps to the response format: the others have the same
    words without its tags, like the answers of a model that does not yet follow instructions. Which
    ones is a pure function of (seed, index)."""

    def __init__(self, demonstrations: Sequence[tuple[Record, str]], formatted: float, seed: int):
        self.demonstrations, self.formatted, self.seed = demonstrations, formatted, seed

    def __len__(self) -> int:
        return len(self.demonstrations)

    def __getitem__(self, index: int) -> tuple[Record, str]:
        record, text = self.demonstrations[index]
        keeps = np.random.default_rng([self.seed, index, 2]).random() < self.formatted
        return record, text if keeps else " ".join(w for w in text.split() if w not in TAGS)


def _at(config: RunConfig, path: pathlib.Path) -> RunConfig:
    """The config with the model at `path`, all of which learns, in float32."""
    return config.changed(
        {
            "model.path": str(path),
            "model.lora.rank": 0,
            "model.freeze_vision": False,
            "model.param_dtype": "float32",
        }
    )
