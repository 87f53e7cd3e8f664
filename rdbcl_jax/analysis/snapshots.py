"""Policies by name: a Hugging Face directory, or a run's policy after one of its tasks."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from rdbcl_jax.checkpoint import Checkpoints
from rdbcl_jax.models.qwen_vl.model import Params
from rdbcl_jax.policy import Policy, load_policy


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A policy at one moment of its training."""

    name: str
    policy: Policy
    learned: Params  # the half that learns

    @property
    def params(self) -> Params:
        """All of them, those that do not learn too; nothing is copied."""
        return self.policy.whole(self.learned)


def load_snapshots(
    config: ConfigDict, names: Sequence[str], mesh: jax.sharding.Mesh
) -> list[Snapshot]:
    """Each name is one of

    | | |
    |---|---|
    | `DIR` | a Hugging Face checkpoint directory |
    | `WORKDIR@K` | a run's policy after its first K tasks; `WORKDIR@0` is its base |
    | `WORKDIR` | the same after the last task that is finished |

    Snapshots of one run share what was not trained. `config` must be the run's own where it says
    what learns (`model.lora`, `model.freeze_vision`) and what from (`model.path`).

    Raises:
      FileNotFoundError: neither a checkpoint nor a workdir, or no such task in it.
      ValueError: a workdir of another model; tokenizers that differ.
    """
    places = [place(config, name) for name in names]  # all found before any is read
    loaded: dict[pathlib.Path, tuple[Policy, Params]] = {}
    snapshots = []
    for name, (path, workdir, task) in zip(names, places, strict=True):
        if path not in loaded:
            loaded[path] = load_policy(_at(config, path, workdir), mesh)
        policy, params = loaded[path]
        if task:
            params = Checkpoints(workdir).restore_task(task, params)
        snapshots.append(Snapshot(name, policy, params))
    _check_tokenizers(snapshots)
    return snapshots


def place(config: ConfigDict, name: str) -> tuple[pathlib.Path, pathlib.Path | None, int]:
    """(checkpoint directory, workdir, number of tasks); no workdir for a plain directory."""
    path = pathlib.Path(name)
    if (path / "config.json").exists():
        return path, None, 0
    folder, at, number = name.rpartition("@")
    workdir = pathlib.Path(folder if at else name)
    saved = {int(p.name[5:]) for p in workdir.glob("checkpoints/task_*") if p.name[5:].isdigit()}
    base = pathlib.Path(config.model.path or workdir / "base")
    if not saved and not (workdir / "base").exists():
        raise FileNotFoundError(
            f"{name}: neither a checkpoint directory (no config.json) nor a run's workdir (no "
            "checkpoints/task_… and no base/); expected DIR, WORKDIR or WORKDIR@TASKS"
        )
    if not (base / "config.json").exists():
        raise FileNotFoundError(f"{name}: the run's base model is not at {base}; set model.path")
    task = int(number) if number.isdigit() else -1
    if not at:
        task = max(saved, default=0)
    if task not in saved | {0}:
        raise FileNotFoundError(f"{name}: found tasks {sorted(saved | {0})} in {workdir}, 0: base")
    return base, workdir, task


def _at(config: ConfigDict, path: pathlib.Path, workdir: pathlib.Path | None) -> ConfigDict:
    """The config with the model at `path`; one that is no run's has no adapters."""
    config = config.copy_and_resolve_references()
    config.model.path = str(path)
    if workdir is None:
        config.model.lora.rank, config.model.freeze_vision = 0, False
    return config


def _check_tokenizers(snapshots: Sequence[Snapshot]) -> None:
    first, *others = snapshots
    for other in others:
        if other.policy.tokenizer.get_vocab() != first.policy.tokenizer.get_vocab():
            raise ValueError(
                f"{first.name} and {other.name} have different tokenizers, so neither can score "
                "the other's tokens; give two policies of one family"
            )
