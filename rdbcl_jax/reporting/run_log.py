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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rdbcl_jax.json_files import plain, read_json, write_json, write_text, writing
from rdbcl_jax.reporting.board import Board
from rdbcl_jax.reporting.run_files import INDEX_KEYS, read_steps
from rdbcl_jax.reporting.samples import logged_steps, merge_parts, truncate_samples, write_part
from rdbcl_jax.results import RunResults, write_results


class RunLog:
    """Writes a run's files. Use one per run, on one process.

    Attributes:
      lost: what was logged before `resume_step` and is not there any more, a line for each file.
    """

    def __init__(self, workdir: str | os.PathLike, *, resume_step: int = 0):
        self.workdir = Path(workdir)
        self._samples = self.workdir / "samples"
        self._task: str | None = None
        path = self.workdir / "metrics.jsonl"
        with writing(path):
            self.workdir.mkdir(parents=True, exist_ok=True)
            self.lost = self._truncate(resume_step)
            self._metrics = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self._board = Board(self.workdir / "tb", resume_step)

    def write_step(self, row: Mapping[str, Any]) -> None:
        """Logs one step's metrics: needs "step"; scalars also go to TensorBoard."""
        row = plain(row)
        with writing(self.workdir / "metrics.jsonl"):
            self._metrics.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._metrics.flush()
        numbers = {key: value for key, value in row.items() if isinstance(value, int | float)}
        shown = {key: value for key, value in numbers.items() if key not in INDEX_KEYS}
        self._board.add_scalars(shown, row["step"])

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
        try:
            merge_parts(self._samples)
            with writing(self.workdir / "metrics.jsonl"):
                self._metrics.close()
        finally:
            self._board.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _truncate(self, step: int) -> list[str]:
        """Drops everything that was logged at `step` or later; returns what of the rest is lost."""
        metrics, examples = self.workdir / "metrics.jsonl", self.workdir / "examples.json"
        rows = [row for row in read_steps(self.workdir) if row["step"] < step]
        if metrics.exists():
            write_text(metrics, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
        lost = []
        if examples.exists():
            try:
                kept = [e for e in read_json(examples, []) if e["step"] < step]
            except (ValueError, LookupError, TypeError):
                kept, lost = [], [f"{examples.name} is damaged: its examples are lost"]
            write_json(examples, kept)
        damaged = truncate_samples(self._samples, step)
        lost += [f"samples/{name} cannot be read: set aside as {name}.damaged" for name in damaged]
        if step == 0:
            shutil.rmtree(self.workdir / "tb", ignore_errors=True)
        for name, found in (
            ("metrics.jsonl", {row["step"] for row in rows}),
            ("samples/", logged_steps(self._samples) if step else set()),
        ):
            if missing := sorted(set(range(step)) - found):
                lost.append(f"{name} lacks the rows of steps {_ranges(missing)}")
        return lost


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as "0–3, 7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("–".join(map(str, run)) for run in runs)
