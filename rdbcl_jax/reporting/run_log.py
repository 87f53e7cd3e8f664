"""What a run leaves in its workdir, and the writer of it; `run_files` reads.

    results.json     accuracy matrix, metrics, config, versions, timing: `rdbcl_jax.results`
    metrics.jsonl    one JSON object per training step
    samples/         Parquet, one row per sampled response: `samples`
    examples.json    a few responses with their image and per-token log-probs
    answers/         Parquet, one file per row of the accuracy matrix: every answer of an evaluation
    tb/              TensorBoard events

Steps are global and counted from 0. A run that resumes has `resume_step` steps behind it: rows of
steps ≥ resume_step are dropped first, so that a killed and resumed run holds nothing twice.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from rdbcl_jax.config import LogConfig
from rdbcl_jax.json_files import plain, write_json, write_text, writing
from rdbcl_jax.reporting.run_files import INDEX_KEYS, read_examples, read_steps
from rdbcl_jax.reporting.samples import (
    logged_steps,
    merge_parts,
    truncate_samples,
    write_part,
    write_table,
)
from rdbcl_jax.reporting.writers import make_writers
from rdbcl_jax.results import RunResults, write_results

DEFAULT, EMPTY = LogConfig(), types.MappingProxyType(dict[str, Any]())


class RunLog:
    """Writes a run's files. Use one per run, on one process.

    Args:
      log: where else metrics, accuracies and examples go.
      config: the run's settings, for there.

    Attributes:
      lost: what was logged before `resume_step` and is not there any more, a line for each file.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        resume_step: int = 0,
        log: LogConfig = DEFAULT,
        config: Mapping[str, Any] = EMPTY,
    ):
        self.workdir = Path(workdir)
        self._samples = self.workdir / "samples"
        self._task: str | None = None
        path = self.workdir / "metrics.jsonl"
        with writing(path):
            self.workdir.mkdir(parents=True, exist_ok=True)
            self.lost = self._truncate(resume_step)
            self._metrics = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self.writers = make_writers(log, self.workdir, resume_step)
        for writer in self.writers:
            writer.config(config)

    def write_step(self, row: Mapping[str, Any]) -> None:
        """Logs one step's metrics: needs "step"; scalars also go to the writers."""
        row = plain(row)
        with writing(self.workdir / "metrics.jsonl"):
            self._metrics.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._metrics.flush()
        numbers = {key: value for key, value in row.items() if isinstance(value, int | float)}
        shown = {key: value for key, value in numbers.items() if key not in INDEX_KEYS}
        for writer in self.writers:
            writer.scalars(shown, row["step"])

    def write_samples(self, rows: Mapping[str, Any]) -> None:
        """Logs one step's samples: columns of equal length, or one value for all of its rows."""
        self._task = write_part(self._samples, rows, after=self._task)

    def write_examples(self, examples: Iterable[Mapping[str, Any]]) -> None:
        """Adds examples to those of earlier calls."""
        path = self.workdir / "examples.json"
        added: list[dict[str, Any]] = plain(list(examples))
        write_json(path, read_examples(self.workdir) + added)
        for example in added:
            self._show(example)

    def _show(self, example: Mapping[str, Any]) -> None:
        """An example as text, and its pictures where it has them."""
        name, step = f"examples/{example.get('task', '')}", example["step"]
        response = "".join(example.get("tokens", ()))
        right = "right" if example.get("correct") else "wrong"
        facts = (right, f"reward {example.get('reward')}")
        parts = (example.get("prompt", ""), response, f"gold answer {example.get('gold')}", *facts)
        for writer in self.writers:
            writer.text(
                f"{name}/{example.get('sample', 0)}", "\n\n".join(filter(None, parts)), step
            )
            for number, picture in enumerate(example.get("images", ())):
                writer.picture(f"{name}/picture/{number}", base64.b64decode(picture), step)

    def write_row(
        self, split: str, row: Mapping[str, float], table: str, step: int, picture: bytes = b""
    ) -> None:
        """Logs a row of a split's accuracy matrix: task → accuracy, and the matrix so far, as
        Markdown, and as a PNG where there is one."""
        for writer in self.writers:
            writer.scalars({f"accuracy/{split}/{task}": a for task, a in row.items()}, step)
            writer.text(f"accuracy/{split}", table, step)
            if picture:
                writer.picture(f"accuracy/{split}/matrix", picture, step)

    def write_answers(self, row: int, answers: Sequence[Mapping[str, Any]]) -> None:
        """Every answer that a row of the accuracy matrix is made of; row 0 is the base model's."""
        folder = self.workdir / "answers"
        with writing(folder):
            folder.mkdir(exist_ok=True)
        text = ("gold", "response", "record_id")
        rows = [{"row": row, **a, **{k: str(plain(a[k])) for k in text}} for a in answers]
        if rows:
            write_table(pa.Table.from_pylist(rows), folder / f"{row:03d}.parquet")

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
            for writer in self.writers:
                writer.close()

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
                kept = [e for e in read_examples(self.workdir) if e.get("step", 0) < step]
            except ValueError as error:
                kept, lost = [], [str(error)]
            write_json(examples, kept)
        damaged = truncate_samples(self._samples, step)
        lost += [f"samples/{name} cannot be read: set aside as {name}.damaged" for name in damaged]
        if step == 0:
            for name in ("tb", "answers"):
                shutil.rmtree(self.workdir / name, ignore_errors=True)
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
