"""What workers do: make a base model, gate it, and train one run. Imports wait for a job."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from typing import Any

from ml_collections import ConfigDict

from rdbcl_jax.config import RunConfig
from rdbcl_jax.json_files import plain, read_json, write_json
from rdbcl_jax.results import read_results
from rdbcl_jax.workdir import changes, is_directory

ASKED = "config.json"  # in a run's workdir: the config that it was asked for
LACK = "lack.json"  # likewise: why it had nothing to learn from
# fields that are younger than some studies' workdirs, and the values at which they change nothing:
# names of bases and gates leave them out there, so that those that exist are found again
YOUNGER = {
    "data.system_prompt": "",
    "data.image_root": "",
    "data.on_bad_record": "error",
    "data.check": "full",
    "base.model_type": "qwen2_5_vl",
    "base.optimizer.moments_dtype": "float32",
    "model.frozen_dtype": None,
    "model.reference_dtype": None,
}


def base_name(config: ConfigDict) -> str:
    """Folder of the base model that a run starts from, the same for all runs that can share it.

    Empty where nothing is to be made: the config names a model, or is a dry run with its own.
    """
    if config.model.path or config.dry_run:
        return ""
    counts = ("train_count", "validation_count", "test_count", "seed", "threads")
    parts = {
        "base": _section(config, "base"),
        "model": {k: config.model[k] for k in ("dtype", "param_dtype", "remat")},
        "data": {k: v for k, v in _section(config, "data").items() if k not in counts},
        "max_tokens": config.rollout.max_tokens,
        "chunk_size": config.training.chunk_size,
        "mesh": _section(config, "mesh"),
    }
    return f"bases/seed{config.base.seed}-{_digest(parts)}"


def gate_name(config: ConfigDict) -> str:
    """Folder of the gate that a run's base has to pass, the same for all runs that can share it.

    Named by what the gate reads: other thresholds are another gate. Empty for a dry run, and where
    a run starts from another's policy: that run's base is gated.
    """
    if config.dry_run or (config.model.path and not is_directory(config.model.path)):
        return ""
    parts = {
        "tasks": sorted(config.sequence),
        "gate": _section(config, "gate"),
        "model": _section(config, "model"),
        "data": _section(config, "data"),
        "max_tokens": config.rollout.max_tokens,
        "base": _section(config, "base"),
    }
    base = base_name(config) or config.model.path
    return f"gates/{pathlib.Path(base).name}-{_digest(parts)}"


def _section(config: ConfigDict, name: str) -> dict[str, Any]:
    """A section as the first studies' configs had it."""
    from rdbcl_jax.models.decoder import LORA_TARGETS

    fields = config[name].to_dict()
    if name == "model" and not fields["lora"]["targets"]:
        fields["lora"]["targets"] = LORA_TARGETS  # which was written out
    return _older(name, fields)


def _older(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a section, and of those within, without those that are younger."""
    return {
        field: _older(f"{name}.{field}", value) if isinstance(value, dict) else value
        for field, value in fields.items()
        if YOUNGER.get(f"{name}.{field}", ...) != value
    }


def _digest(parts: dict[str, Any]) -> str:
    text = json.dumps(plain(parts), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def make_base(config: ConfigDict, directory: pathlib.Path) -> None:
    """The base model of a run's config, at `directory`."""
    from rdbcl_jax.sharding import make_mesh
    from rdbcl_jax.toy import base

    def on_step(step: int, loss: float) -> None:
        if step % 50 == 0:
            print(f"SFT of the base: step {step}, loss {loss:.3f}", flush=True)

    run = RunConfig.of(config)
    base.make_base(run, directory, make_mesh(**run.mesh.to_dict()), on_step)


def gate_base(config: ConfigDict, directory: pathlib.Path, base: pathlib.Path | None) -> None:
    """Every check of the model that a run starts from, to gate.md and gate.json in `directory`."""
    from rdbcl_jax.lab.faithfulness.report import write
    from rdbcl_jax.lab.faithfulness.run import run_gate

    write(run_gate(config, checkpoint=base or config.model.path), directory)


def train_run(config: ConfigDict, workdir: pathlib.Path, base: pathlib.Path | None) -> None:
    """One run, from the base model at `base`; goes on where an earlier call was cut short. Where
    there is nothing to learn from it is over, and its workdir says why."""
    from rdbcl_jax.training.run import train
    from rdbcl_jax.training.setup import NothingToLearn

    begun = read_results(workdir)
    if begun and begun.splits and not _asked_for(workdir, config):
        raise ValueError(
            f"{workdir} holds a run of another config, see its {ASKED}; the study was changed: "
            "use a new workdir, or remove this run's"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / LACK).unlink(missing_ok=True)
    write_json(workdir / ASKED, config, indent=1)
    link = workdir / "base"
    if base and not link.is_symlink():
        link.symlink_to(os.path.relpath(base, workdir))
    try:
        train(config, workdir)
    except NothingToLearn as reason:
        write_json(workdir / LACK, {"reason": str(reason)})


def finished(workdir: pathlib.Path, config: ConfigDict) -> bool:
    """Whether this very run is over."""
    results = read_results(workdir)
    done = results is not None and results.status == "done"
    return (done or bool(lack_of(workdir))) and _asked_for(workdir, config)


def lack_of(workdir: pathlib.Path) -> str:
    """Why a run had nothing to learn from; empty where it had."""
    return read_json(workdir / LACK, {}).get("reason", "")


def _asked_for(workdir: pathlib.Path, config: ConfigDict) -> bool:
    """Whether the workdir is that of this config."""
    asked = read_json(workdir / ASKED, {})
    return bool(asked) and not changes(asked, RunConfig.of(config))
