"""study.json, a study's numbers: its schema, one writer, one reader.

Version 2. Version 1, which names no version, calls metrics of tasks that are held out "held"; the
reader takes both.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rdbcl_jax.json_files import plain, read_json, write_json
from rdbcl_jax.results import RENAMED, renamed

FILE = "study.json"
SCHEMA_VERSION = 2

Number = float | None  # None: not finite, or not there


@dataclasses.dataclass(frozen=True)
class Gate:
    """What the gate found of a base: `checks` are those of gate.json."""

    name: str
    passed: bool
    checks: Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of a metric to the baseline's, over the seeds that both have, with a bootstrap interval."""

    seeds: Sequence[int]
    values: Sequence[float]
    mean: Number
    low: Number
    high: Number


@dataclasses.dataclass(frozen=True)
class CellResults:
    """An arm at one point in one setting; lists by seed are in the order of `seeds`.

    Attributes:
      failed: seed, as text → error.
      metrics: name → by seed, test split.
      accuracy: matrices by seed, test split.
      strength, cost: name → by seed.
      learning, progress: column → along the run, means over seeds.
      tradeoff: as `tradeoff.summary` gives it.
      difference: None for the baseline.
      lacking: seed, as text → why there was nothing to learn from.
    """

    setting: str
    arm: str
    point: str
    seeds: Sequence[int]
    failed: Mapping[str, str]
    tasks: Sequence[str]
    metrics: Mapping[str, Sequence[Number]]
    accuracy: Sequence[Sequence[Sequence[Number]]]
    strength: Mapping[str, Sequence[Number]]
    cost: Mapping[str, Sequence[Number]]
    learning: Mapping[str, Sequence[Number]]
    progress: Mapping[str, Sequence[Number]]
    tradeoff: Mapping[str, Any]
    difference: Difference | None = None
    lacking: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def missing(self) -> str:
        """`(1 failed, 2 without data)`: what became of the seeds that are not there."""
        counts = {"failed": len(self.failed), "without data": len(self.lacking)}
        said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        return f"({said})" if said else ""


@dataclasses.dataclass(frozen=True)
class CurvePoint(CellResults):
    """A cell at `x` of a curve."""

    curve: str = ""
    x: float = 0.0


@dataclasses.dataclass(frozen=True)
class TuningResults:
    """Scores of a grid's points, one per tuning seed, and which was chosen, at which edges."""

    setting: str
    arm: str
    points: Sequence[str]
    scores: Sequence[Sequence[Number]]
    chosen: str | None
    edges: Sequence[str]


@dataclasses.dataclass(frozen=True)
class StudyResults:
    """The content of study.json.

    Attributes:
      metric: by which points were chosen and arms are compared.
      failed: run or base → error.
      lacking: run → why it had nothing to learn from, which is a result.
      stopped: why the study ended before its end; empty where it did not.
    """

    name: str
    metric: str
    baseline: str
    tuning_seeds: Sequence[int]
    report_seeds: Sequence[int]
    settings: Sequence[str]
    arms: Sequence[CellResults]
    curves: Sequence[CurvePoint]
    tuning: Sequence[TuningResults]
    failed: Mapping[str, str]
    gates: Sequence[Gate] = ()
    stopped: str = ""
    lacking: Mapping[str, str] = dataclasses.field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def as_written(self) -> StudyResults:
        """With what becomes of it in a file: lists for arrays, None for what is not finite."""
        return _study(plain(dataclasses.asdict(self)))


def write_study(workdir: str | os.PathLike, results: StudyResults) -> None:
    """Replaces study.json in one move."""
    write_json(Path(workdir) / FILE, dataclasses.asdict(results), indent=1)


def read_study(workdir: str | os.PathLike) -> StudyResults:
    """Of any version.

    Raises:
      ValueError: the file is of a later version than this package knows.
    """
    path = Path(workdir) / FILE
    saved = read_json(path, None)
    if saved is None:
        raise FileNotFoundError(f"{path} is not there; expected a study's workdir")
    version = saved.get("schema_version", 1)
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema_version {version}, this rdbcl_jax reads up to {SCHEMA_VERSION}; "
            "use the release that wrote it, or a later one"
        )
    return _study(saved)


def _study(saved: Mapping[str, Any]) -> StudyResults:
    parts = {
        "metric": RENAMED.get(saved["metric"], saved["metric"]),
        "arms": [_cell(CellResults, cell) for cell in saved["arms"]],
        "curves": [_cell(CurvePoint, cell) for cell in saved["curves"]],
        "tuning": [TuningResults(**tuning) for tuning in saved["tuning"]],
        "gates": [Gate(**gate) for gate in saved["gates"]],
        "schema_version": SCHEMA_VERSION,
    }
    return StudyResults(**{**saved, **parts})


def _cell(kind: type, saved: Mapping[str, Any]) -> Any:
    gap = saved.get("difference")
    parts = {"metrics": renamed(saved["metrics"]), "difference": Difference(**gap) if gap else None}
    return kind(**{**saved, **parts})
