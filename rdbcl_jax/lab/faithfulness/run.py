"""The gate on models in files: a checkpoint, or what a run began and ended with."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from rdbcl_jax.checkpoint import Checkpoints
from rdbcl_jax.config import RunConfig
from rdbcl_jax.data.suites import TracedSuite, find_task
from rdbcl_jax.lab.config import FaithfulnessOptions
from rdbcl_jax.lab.faithfulness.checks import Check, gate
from rdbcl_jax.policy import load_policy
from rdbcl_jax.sharding import make_mesh
from rdbcl_jax.toy.base import make_base


def run_gate(
    config: RunConfig | Mapping[str, Any],
    workdir: str | pathlib.Path | None = None,
    checkpoint: str | pathlib.Path | None = None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> dict[str, list[Check]]:
    """Gates a checkpoint directory, or a workdir: its base model (made, if there is none) and the
    policy after its last finished task. Returns the checks of each, by its name.

    Raises:
      ValueError: not exactly one of the two given; a task of no suite.
    """
    options, config = FaithfulnessOptions.of_config(config), RunConfig.of(config)
    if (workdir is None) == (checkpoint is None):
        raise ValueError("give either a workdir or a checkpoint directory")
    for task in config.sequence:
        find_task(task, TracedSuite)
    mesh = make_mesh(**config.mesh.to_dict())
    if workdir is not None:
        workdir = pathlib.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        base = config.model.path or make_base(config, workdir / "base", mesh, on_step)
    config = config.changed({"model.path": str(checkpoint or base)})
    policy, trained = load_policy(config, mesh)
    found = {"base": gate(policy, trained, config, options, zero_shot=True)}
    checkpoints = None if workdir is None else Checkpoints(workdir)
    if checkpoints and (done := checkpoints.tasks()):
        trained = checkpoints.restore_task(done[-1], trained)
        found[f"after task {done[-1]}"] = gate(policy, trained, config, options)
    return found
