"""What a run leaves in its workdir, and the writer of it; `run_files` reads.

    results.json     accuracy matrix, metrics, config, versions, timing: `rdbcl_jax.results`
    metrics.jsonl    one JSON object per training step
    samples/         Parquet, one row per sampled response: `samples`
    examples.json    a few responses with their image and per-token log-probs
    tb/              TensorBoard events

Steps are global and counted from 0. A run that resumes has `resume_step` steps behind it: rows of
steps ≥ resume_step are dropped first, so that a killed and resumed run holds nothing twice.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from rdbcl_jax.json_files import plain, read_json, write_json, write_text
from rdbcl_jax.reporting.run_files import INDEX_KEYS, read_steps
from rdbcl_jax.reporting.samples import merge_parts, truncate_samples, write_part
from rdbcl_jax.results import RunResults, write_results


class RunLog:
    """Writes a run's files. Use one per run, on one process."""

    def __init__(self, workdir: str | os.PathLike, *, resume_step: int = 0):
        self.workdir = Path(workdir)
        self.workdir.mkdir(parents=True, exist_ok=True)
        self._truncate(resume_step)
        self._metrics = open(self.workdir / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        self._board = SummaryWriter(
            str(self.workdir / "tb"),
            purge_step=resume_step or None,  # TensorBoard then hides the steps that are run again
            filename_suffix=f".{resume_step:08d}",  # two files of one second must not collide
        )
        self._samples = self.workdir / "samples"
        self._task: str | None = None

    def write_step(self, row: Mapping[str, Any]) -> None:
        """Logs one step's metrics: needs "step"; scalars also go to TensorBoard."""
        row = plain(row)
        self._metrics.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._metrics.flush()
        for key, value in row.items():
            if key not in INDEX_KEYS and isinstance(value, int | float):
                self._board.add_scalar(key, value, row["step"])

    def write_samples(self, rows: Mapping[str, Any]) -> None:
        """Logs one step's samples: columns of equal length, or one value for all of its rows."""
        self._task = write_part(self._samples, rows, after=self._task)

    def write_examples(self, examples: Iterable[Mapping[str, Any]]) -> None:
        """Adds examples to those of earlier calls."""
        path = self.workdir / "examples.json"
        write_json(path, read_json(path, []) + plain(list(examples)))

    def write_results(self, results: RunResults) -> None:
        """Replaces results.json."""
        write_results(self.workdir, results)

    def close(self) -> None:
        """Gathers the last task's samples and closes the files."""
        merge_parts(self._samples)
        self._metrics.close()
        self._board.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _truncate(self, step: int) -> None:
        """Drops everything that was logged at `step` or later."""
        metrics, examples = self.workdir / "metrics.jsonl", self.workdir / "examples.json"
        if metrics.exists():
            rows = [row for row in read_steps(self.workdir) if row["step"] < step]
            write_text(metrics, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
        if examples.exists():
            write_json(examples, [e for e in read_json(examples, []) if e["step"] < step])
        truncate_samples(self.workdir / "samples", step)
        if step == 0:
            shutil.rmtree(self.workdir / "tb", ignore_errors=True)
