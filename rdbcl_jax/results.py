"""results.json, a run's numbers: its schema, one writer, one reader.

Version 2. Version 1, which names no version, calls `held_out` "held". The reader takes both, so
that a run begun by an earlier release can go on and be reported.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rdbcl_jax.json_files import read_json, write_json
from rdbcl_jax.remote import at

FILE = "results.json"
SCHEMA_VERSION = 2
RENAMED = {"held_last": "held_out_last", "held_change": "held_out_change"}  # metrics of version 1


@dataclasses.dataclass(frozen=True)
class SplitResults:
    """One split's numbers, as far as the run has come: fractions in [0, 1], but for a task that
    `RunResults.measures` names, None for what is not finite. Columns are the learned tasks in
    order, then those held out.

    Attributes:
      accuracy: [rows, tasks]; row 0 is the base model, row k the policy after k tasks.
      parse_rate: the same, of responses in the required format.
      count: records of each task.
      metrics: those of `continual_metrics` and `held_out_metrics`; empty until the last row is
        there.
    """

    accuracy: Sequence[Sequence[float | None]] = ()
    parse_rate: Sequence[Sequence[float | None]] = ()
    count: Sequence[int] = ()
    metrics: Mapping[str, float | None] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class RunResults:
    """The content of results.json; what is not known yet is empty.

    Attributes:
      status: "running", or "done" once the last row is there.
      tasks: names of the learned tasks, in order.
      held_out: names of the tasks that are evaluated and not learned.
      splits: "test" and "validation".
      measures: of the tasks whose accuracy is no share of right answers: what it is.
      config: the run's, as nested dicts.
      versions: of Python and of packages.
      timing: seconds by phase, and the "total", of all calls that took the run on.
      unchanged: names of learned tasks that left every parameter as it was.
    """

    method: str = ""
    seed: int | None = None
    status: str = "running"
    tasks: Sequence[str] = ()
    held_out: Sequence[str] = ()
    splits: Mapping[str, SplitResults] = dataclasses.field(default_factory=dict)
    measures: Mapping[str, str] = dataclasses.field(default_factory=dict)
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    device: str = ""
    timing: Mapping[str, float] = dataclasses.field(default_factory=dict)
    unchanged: Sequence[str] = dataclasses.field(default_factory=list)
    schema_version: int = SCHEMA_VERSION

    def metrics(self, split: str) -> Mapping[str, float | None]:
        """Of one split; empty where there are none."""
        return self.splits[split].metrics if split in self.splits else {}


def write_results(workdir: str | os.PathLike, results: RunResults) -> None:
    """Replaces results.json in one move: a reader sees the old file or the new one."""
    write_json(Path(workdir) / FILE, dataclasses.asdict(results), indent=1)


def read_results(workdir: str | os.PathLike) -> RunResults | None:
    """Of any version; None where there is no file.

    Raises:
      ValueError: the file is of a later version than this package knows, or no such results.
    """
    path = at(workdir) / FILE
    saved = read_json(path, None)
    if saved is None:
        return None
    try:
        return _results(saved, path)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{path} is damaged, it holds no results: {error}") from None


def _results(saved: Any, path: Path) -> RunResults:
    version = saved.get("schema_version", 1)
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema_version {version}, this rdbcl_jax reads up to {SCHEMA_VERSION}; "
            "use the release that wrote it, or a later one"
        )
    if version < 2:
        saved = {**saved, "held_out": saved.get("held", [])}
    splits = {name: _split(split) for name, split in saved.get("splits", {}).items()}
    return _known(RunResults, {**saved, "splits": splits, "schema_version": SCHEMA_VERSION})


def renamed(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics under the names that they have now."""
    return {RENAMED.get(name, name): value for name, value in metrics.items()}


def _split(saved: Mapping[str, Any]) -> SplitResults:
    return _known(SplitResults, {**saved, "metrics": renamed(saved.get("metrics", {}))})


def _known(kind: type, saved: Mapping[str, Any]) -> Any:
    """The dataclass from those entries that are its fields."""
    names = [field.name for field in dataclasses.fields(kind)]
    return kind(**{name: saved[name] for name in names if name in saved})
