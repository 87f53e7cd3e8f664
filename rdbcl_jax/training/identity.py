"""What a run is: its config, data, base and code. Kept in run.json from its start on, and compared
when it goes on, since under another it would be another run with this one's numbers."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rdbcl_jax.checkpoint import task_name
from rdbcl_jax.data.check import SIZES, digest_of
from rdbcl_jax.data.tasks import SPLITS
from rdbcl_jax.integrity import Manifest, code_hash, is_manifest, manifest
from rdbcl_jax.json_files import plain, read_object, write_json
from rdbcl_jax.results import read_results
from rdbcl_jax.training.setup import Setup
from rdbcl_jax.version import __version__
from rdbcl_jax.workdir import (
    WITHOUT_EFFECT,
    changes,
    directory_of,
    is_directory,
    place,
    run_config,
)

FILE = "run.json"
OF_A_MODEL = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")  # files of a checkpoint
# fields that a resumed run may change: what records and base they lead to is compared by itself
FREE = (*WITHOUT_EFFECT, "data.on_bad_record", "model.path", "dry_run")

GROWING = tuple(f"data.{name}" for name in SIZES)  # sizes of batches, to which some may be added


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a run is, as far as it is known: what is empty is not compared.

    Attributes:
      config: nested settings.
      data: "task/split" to its records' number and hash.
      base: manifest of the model that it starts from; empty until that is made.
      code: "version" of this package, and a hash of its "sources".
    """

    config: Mapping[str, Any]
    data: Mapping[str, str] = dataclasses.field(default_factory=dict)
    base: Manifest = dataclasses.field(default_factory=dict)
    code: Mapping[str, str] = dataclasses.field(default_factory=dict)


def identity_of(setup: Setup) -> Identity:
    """Of a run that is about to start; without its base where that is still to be made."""
    config = setup.config
    base = base_files(config.model.path, config.checkpoint.verify) if config.model.path else {}
    data = {
        f"{task.name}/{split}": digest_of(records)
        for task in setup.evaluated
        for split in SPLITS
        if (records := getattr(task, split))
    }
    return Identity(plain(config), data, base, {"version": __version__, "sources": code_hash()})


def read_identity(workdir: pathlib.Path) -> Identity | None:
    """Of the run that a workdir holds; of one from before run.json was written, the config that its
    results have. None: of none.

    Raises:
      ValueError: run.json cannot be read.
    """
    if (workdir / FILE).exists():
        saved = read_object(workdir / FILE)
        if not _says_what_a_run_is(saved):
            raise ValueError(f"{workdir / FILE} is damaged, it does not say what the run is")
        fields = dataclasses.fields(Identity)
        return Identity(**{f.name: saved[f.name] for f in fields if f.name in saved})
    results = read_results(workdir)
    return Identity(results.config) if results and results.config else None


def _says_what_a_run_is(saved: Mapping[str, Any]) -> bool:
    """Whether it has the parts of an `Identity`, as far as they are read."""
    if "config" not in saved:
        return False
    config, data, base, code = (saved.get(f.name, {}) for f in dataclasses.fields(Identity))
    if not all(isinstance(part, dict) for part in (config, data, code)):
        return False
    training = config.get("training", {})
    return (
        is_manifest(base)
        and isinstance(config.get("sequence", []), list)
        and isinstance(training, dict)
        and all(isinstance(training.get(n, 0), int) for n in ("steps", "checkpoint_every"))
        and (not code or {"version", "sources"} <= code.keys())
    )


def write_identity(workdir: pathlib.Path, identity: Identity) -> None:
    write_json(workdir / FILE, dataclasses.asdict(identity), indent=1)


def differences(saved: Identity, setup: Setup, now: Identity) -> list[str]:
    """In what a run is another than the saved one; what may change, and what comes at the end of
    the sequence or after the last step, is left out."""
    grown = new_tasks(saved, setup)
    own = tuple(f"{part}.{name}." for part in ("tasks", "rewards.task_weights") for name in grown)
    found = [
        f"{name}: {there} in the workdir, {here} now"
        for name, (there, here) in changes(saved.config, setup.config).items()
        if not name.startswith((*FREE, *own))
        and not (name == "sequence" and grown)
        and not (name == "training.steps" and more_steps(saved, setup))
        and not (name in GROWING and {*(there or ())} < {*here})
    ]
    found += [
        f"records of {name}: {there} in the workdir, {now.data.get(name, 'none')} now"
        for name, there in saved.data.items()
        if not _same_records(there, now.data.get(name, ""))
    ]
    found += base_differences(saved.base, now.base)
    if saved.code and saved.code["version"] != now.code["version"]:
        found.append(
            f"rdbcl_jax: {saved.code['version']} in the workdir, {now.code['version']} now (to go "
            f'on with it all the same, remove "code" from {FILE})'
        )
    return found


def _same_records(there: str, here: str) -> bool:
    """What pictures in files hold is known to a full check alone."""
    said, both = zip(*(text.partition(", pictures ")[::2] for text in (there, here)), strict=True)
    return said[0] == said[1] and (both[0] == both[1] or "" in both)


def base_differences(saved: Manifest, now: Manifest) -> list[str]:
    """Files in which two base models differ; an empty one is not known."""
    if not saved or not now:
        return []
    return [
        f"base model: {name} is another file"
        for name in sorted({*saved} | {*now})
        if not _same_file(saved.get(name), now.get(name))
    ]


def _same_file(there: Sequence | None, here: Sequence | None) -> bool:
    if there is None or here is None or there[0] != here[0]:
        return False
    return there[1] is None or here[1] is None or there[1] == here[1]


def new_tasks(saved: Identity, setup: Setup) -> tuple[str, ...]:
    """Tasks that have been added to the end of the sequence. None may be where a method learns from
    all tasks at once."""
    before, now = tuple(saved.config.get("sequence", ())), setup.config.sequence
    longer = len(now) > len(before) > 0 and now[: len(before)] == before
    return now[len(before) :] if longer and setup.method.data != "joint" else ()


def more_steps(saved: Identity, setup: Setup) -> int:
    """The old number of steps of a task where it has grown, and a longer run would have gone
    through the same states: nothing of a step must depend on the number. 0: not so."""
    before, now = _steps(saved), setup.config.training.steps
    same = setup.config.optimizer.schedule == "constant" and not setup.method.scheduled
    return before if 0 < before < now and same else 0


def _steps(saved: Identity) -> int:
    return saved.config.get("training", {}).get("steps", 0)


def base_files(path: str | pathlib.Path, hashed: bool = True) -> Manifest:
    """Manifest of what a policy is made of, `DIR` or `WORKDIR@K`, wherever that lies."""
    files: dict[str, Sequence] = {}
    while not is_directory(path):
        start, workdir, task = place(run_config(path), path)
        if workdir and task:
            policy = manifest(workdir / "checkpoints" / task_name(task), hashed=hashed)
            files |= {f"policy {len(files)}: {name}": of for name, of in policy.items()}
        path = start
    return files | manifest(directory_of(path), OF_A_MODEL, hashed=hashed)


def keep_base(workdir: pathlib.Path, base: pathlib.Path, hashed: bool = True) -> None:
    """Adds the base that a run has made for itself to what the run is.

    Raises:
      ValueError: the run began with another.
    """
    saved, files = read_identity(workdir), base_files(base, hashed)
    if saved is None:
        return  # of a caller who keeps none
    if differing := base_differences(saved.base, files):
        raise ValueError(
            f"{workdir} was begun with another base than {base}; use a new workdir, or bring that "
            "one back:\n  " + "\n  ".join(differing)
        )
    write_identity(workdir, dataclasses.replace(saved, base=files))
