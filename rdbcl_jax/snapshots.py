"""Policies by name: a Hugging Face directory, or a run's policy after one of its tasks."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import jax

from rdbcl_jax.checkpoint import Checkpoints
from rdbcl_jax.config import RunConfig
from rdbcl_jax.models.interface import Params
from rdbcl_jax.models.partition import Trained
from rdbcl_jax.policy import Policy, load_policy
from rdbcl_jax.workdir import place


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A policy at one moment of its training."""

    name: str
    policy: Policy
    learned: Trained

    @property
    def params(self) -> Params:
        """All parameters, those that do not learn too; nothing is copied."""
        return self.policy.whole(self.learned)


def load_snapshots(
    config: RunConfig, names: Sequence[str], mesh: jax.sharding.Mesh
) -> list[Snapshot]:
    """Each name is one of

    | | |
    |---|---|
    | `DIR` | a Hugging Face checkpoint directory |
    | `WORKDIR@K` | a run's policy after its first K tasks; `WORKDIR@0` is its base |
    | `WORKDIR` | the same after the last finished task |

    Snapshots of one run share what was not trained. `config` must be the run's own in what learns
    (`model.lora`, `model.freeze_vision`) and from what (`model.path`).

    Raises:
      FileNotFoundError: neither a checkpoint nor a workdir, or a workdir without that task.
      ValueError: a workdir of another model; tokenizers that differ.
    """
    places = [place(config, name) for name in names]  # all found before any is read
    loaded: dict[tuple[str, bool], tuple[Policy, Trained]] = {}
    snapshots = []
    for name, (path, workdir, task) in zip(names, places, strict=True):
        key = path, workdir is None  # a run's base is read as the run has it, with its adapters
        if key not in loaded:
            loaded[key] = load_policy(_at(config, path, workdir), mesh)
        policy, learned = loaded[key]
        if workdir and task:
            learned = Checkpoints(workdir).restore_task(task, learned)
        snapshots.append(Snapshot(name, policy, learned))
    _check_tokenizers(snapshots)
    return snapshots


def _at(config: RunConfig, path: str, workdir: pathlib.Path | None) -> RunConfig:
    """The config with the model at `path`; a model that is not a run's has no adapters."""
    whole = {"model.lora.rank": 0, "model.freeze_vision": False} if workdir is None else {}
    return config.changed({"model.path": path, **whole})


def _check_tokenizers(snapshots: Sequence[Snapshot]) -> None:
    first, *others = snapshots
    for other in others:
        if other.policy.tokenizer.get_vocab() != first.policy.tokenizer.get_vocab():
            raise ValueError(
                f"{first.name} and {other.name} have different tokenizers, so neither can read "
                "the other's tokens; give two policies of one family"
            )
