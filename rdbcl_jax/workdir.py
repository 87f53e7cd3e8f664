"""A run by its workdir: its policies, and whether it is a given config's.

`WORKDIR@K` is a run's policy after its first K tasks. The name may stand wherever that of a Hugging
Face checkpoint directory may, as in `config.model.path`: one run starts from what another has
learned.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rdbcl_jax.checkpoint import Checkpoints
from rdbcl_jax.config import NOT_OF_A_RUN, RunConfig
from rdbcl_jax.data.suites import SUITES
from rdbcl_jax.json_files import flatten, plain
from rdbcl_jax.remote import at, local
from rdbcl_jax.results import FILE, read_results
from rdbcl_jax.rewards.verifiers import VERIFIERS

# fields, and sections, that leave a run's results as they are
WITHOUT_EFFECT = (
    "training.checkpoint_every",
    "training.max_skipped",
    "checkpoint.",
    "data.threads",
    "data.image_root",
    "data.check",
    "mesh.",
    "training.prompts_per_device",
    "training.microbatches",  # of runs from before there was that one
    "log.",
    "profile",
)


def place(config: RunConfig, name: str | pathlib.Path) -> tuple[str, pathlib.Path | None, int]:
    """Where a policy lies: (what its run started from, workdir, number of tasks).

    A checkpoint directory is its own start, and has no workdir.

    Args:
      config: the run's own; its `model.path` says what the run started from.
      name: `DIR`, `WORKDIR@K`, or `WORKDIR` for the policy after the last finished task.
    Raises:
      FileNotFoundError: neither a checkpoint nor a workdir, or a workdir without that task.
    """
    if is_directory(name):
        return str(name), None, 0
    name = str(name)
    workdir, number = _parts(name)
    saved = {*Checkpoints(workdir).tasks()}
    if not saved and not (workdir / "base").exists():
        raise FileNotFoundError(
            f"{name}: neither a checkpoint directory (no config.json) nor a run's workdir (no "
            "finished checkpoints/task_… and no base/); expected DIR, WORKDIR or WORKDIR@TASKS"
        )
    start = str(config.model.path or workdir / "base")
    try:
        directory_of(start)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{name}: the run's base model is not at {start}; set model.path ({error})"
        ) from None
    task = int(number) if number.isdigit() else -1
    if number == "":
        task = max(saved, default=0)
    if task not in saved | {0}:
        raise FileNotFoundError(f"{name}: found tasks {sorted(saved | {0})} in {workdir}, 0: base")
    return start, workdir, task


def directory_of(name: str | pathlib.Path) -> pathlib.Path:
    """The checkpoint directory with a policy's config.json, tokenizer and processor: the one from
    which its run started, or the run before that.

    Raises:
      FileNotFoundError: as `place`.
    """
    while not is_directory(name):
        if not _results(name).exists():
            raise FileNotFoundError(
                f"{name}: neither a checkpoint directory (no config.json) nor a run (no "
                "results.json); expected DIR, WORKDIR or WORKDIR@TASKS"
            )
        name, _, _ = place(run_config(name), name)
    return local(name)


def is_directory(name: str | pathlib.Path) -> bool:
    """Whether it is a Hugging Face checkpoint directory."""
    path = at(name)
    # a workdir of a study has a config.json too
    return (path / "config.json").exists() and not (path / "checkpoints").exists()


def is_there(name: str | pathlib.Path) -> bool:
    """Whether there is a folder of that name or run, whatever it holds."""
    return at(name).exists() or _parts(str(name))[0].exists()


def run_config(name: str | pathlib.Path) -> RunConfig:
    """The config of the run `WORKDIR` or `WORKDIR@K`, as its results.json has it."""
    file = _results(name)
    saved = read_results(file.parent)
    if saved is None:
        raise FileNotFoundError(f"{file} is not there; expected a run's workdir, or give --config")
    return RunConfig.of_saved(saved.config)


def check_names_no_code(config: RunConfig, source: str | pathlib.Path) -> None:
    """Raises ValueError where a config that a workdir holds names a module that is not ours, or a
    file: a workdir is data, and only what a caller's own config names is imported."""
    named = sorted(filter(_names_code, {*_texts(config.to_dict())}))
    if named:
        raise ValueError(
            f"{source} names {', '.join(map(repr, named))}, and nothing is imported because a "
            "workdir says so; give the run's own config, --config=FILE"
        )


def _names_code(text: str) -> bool:
    """Whether it is `file.py:name`, or `module:name` of a module that is neither a suite of ours
    nor a verifier."""
    if ".py:" in text:
        return True
    module, colon, name = text.partition(":")
    name = name.partition(":")[0]
    dotted = all(part.isidentifier() for part in (*module.split("."), name))
    return bool(colon) and dotted and module not in {*SUITES, *VERIFIERS}


def _texts(value: Any) -> Iterator[str]:
    """All texts in nested values, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _results(name: str | pathlib.Path) -> pathlib.Path:
    return _parts(str(name))[0] / FILE


def _parts(name: str) -> tuple[pathlib.Path, str]:
    """(workdir, K as it is written); K is empty without one."""
    folder, mark, number = name.rpartition("@")
    if not mark or "/" in number:  # such as /home/me@lab/run
        return at(name), ""
    return at(folder), number or "?"


def settings_of(saved: Mapping[str, Any], names: Iterable[str] = ()) -> dict[str, Any]:
    """Dotted field → value of a config that a workdir holds.

    Those of `names` that are newer than the workdir are at their defaults: a new field's default
    leaves a run as it was.
    """
    of_run = {name: value for name, value in saved.items() if name not in NOT_OF_A_RUN}
    there, defaults = _by_default(flatten(of_run)), flatten(plain(RunConfig()))
    newer = (name for name in names if name in defaults and name not in there)
    return there | {name: defaults[name] for name in newer}


def changes(saved: Mapping[str, Any], config: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Dotted fields in which a config differs from one that a workdir holds: (there, now); a field
    newer than the workdir as in `settings_of`."""
    now = _by_default(flatten(plain(config)))
    there = settings_of(saved, now)
    return {
        name: (there.get(name), now.get(name))
        for name in sorted(there.keys() | now.keys())
        if there.get(name) != now.get(name)
    }


def _by_default(settings: dict[str, Any]) -> dict[str, Any]:
    """Adapters' targets, once written out, are now empty where they are the model's own."""
    from rdbcl_jax.models.decoder import LORA_TARGETS

    written_out = settings.get("model.lora.targets") == LORA_TARGETS
    return settings | ({"model.lora.targets": ""} if written_out else {})
