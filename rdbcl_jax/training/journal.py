"""What a run says of itself while it goes on: display, logs, accuracy matrix and times."""

from __future__ import annotations

import contextlib
import pathlib
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax

from rdbcl_jax.data.tasks import EVALUATED
from rdbcl_jax.evaluation import Evaluation, split_results
from rdbcl_jax.json_files import write_text
from rdbcl_jax.reporting.progress import Progress
from rdbcl_jax.reporting.report import write_report
from rdbcl_jax.reporting.run_files import read_run, read_steps
from rdbcl_jax.reporting.run_log import RunLog
from rdbcl_jax.results import RunResults, SplitResults, read_results
from rdbcl_jax.sharding import row_shard
from rdbcl_jax.training.resume import Start
from rdbcl_jax.training.setup import Setup


class Journal:
    """Each process logs its own rows; the main one's log is the run's, and it alone displays. The
    samples of rows that several processes hold are logged by the one that leads.

    A run that resumes goes on from what the workdir holds of the steps behind it.
    """

    def __init__(self, workdir: pathlib.Path, setup: Setup, start: Start):
        self.workdir, self.setup = workdir, setup
        self.is_main = jax.process_index() == 0
        self.leads = row_shard(setup.mesh).leads
        done, known = start.done, start.done // setup.config.training.steps + 1
        saved = start.results and read_results(workdir)
        self.rows = {
            name: _rows(split)[:known] for name, split in (saved.splits if saved else {}).items()
        }
        self.unchanged = [*saved.unchanged][: known - 1] if saved else []
        self.tokens = _tokens_of(workdir, done) if done else 0
        self.timing = dict(saved.timing) if saved else {}  # of earlier calls too
        self.before = self.timing.get("total", 0.0)
        self.started = time.perf_counter()
        names = [task.name for task in setup.tasks]
        steps, held_out = setup.config.training.steps, [task.name for task in setup.held_out]
        self.progress = Progress(names, steps, held_out=held_out, enabled=self.is_main)
        folder = workdir if self.is_main else workdir / f"processes/{jax.process_index()}"
        self.log = RunLog(folder, resume_step=done)
        for note in (*start.notes, *self.log.lost):
            self.progress.message(f"note: {note}")

    def __enter__(self) -> Journal:
        self.progress.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self.log.close()
        finally:
            self.progress.__exit__(*error)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the seconds within to those of a phase."""
        began = time.perf_counter()
        yield
        self.timing[name] = self.timing.get(name, 0.0) + time.perf_counter() - began

    # ------------------------------------------------------------------ steps

    def step(self, task: int, index: int, metrics: dict, samples: dict) -> None:
        """Logs step `index` of a task (both from 0)."""
        name, first = self.setup.tasks[task].name, task * self.setup.config.training.steps
        place = {"step": first + index, "task": name}
        self.tokens += metrics["num_tokens"]
        row = {**place, "task_index": task, "task_step": index, **metrics}
        row["num_tokens"] = self.tokens
        self.log.write_step(row)
        if self.leads:
            self.log.write_samples({**place, **samples})
        self.progress.step(row)

    def examples(self, task: int, index: int, examples: Iterable[Mapping[str, Any]]) -> None:
        """Logs examples of step `index` of a task."""
        step = task * self.setup.config.training.steps + index
        place = {"task": self.setup.tasks[task].name, "step": step}
        if self.leads:
            self.log.write_examples({**place, **example} for example in examples)

    def left_out(self, problems: Sequence[str]) -> None:
        """Lists the records that are left out, and says how many."""
        if self.is_main:
            file = self.workdir / "left_out.txt"
            write_text(file, "\n".join(problems) + "\n")
            self.progress.message(f"{len(problems)} records are left out, see {file}")

    # ------------------------------------------------------------------ the accuracy matrix

    @property
    def matrix_rows(self) -> int:
        """How many rows of the accuracy matrix are there; row 0 is the base model's."""
        return len(self.rows.get(EVALUATED[-1], []))

    def add_row(self, found: Mapping[str, Evaluation]) -> None:
        """The next row, by split."""
        for split, evaluation in found.items():
            self.rows.setdefault(split, []).append(evaluation)
        self.write_results("running")
        self.progress.end_task(self.matrix_rows - 2, found[EVALUATED[-1]].accuracy)

    def learned(self, task: int, changed: bool) -> None:
        """Whether a task has changed any parameter; said in the results where it has not."""
        if not changed:
            self.unchanged.append(self.setup.tasks[task].name)

    def repeat_first_row(self) -> None:
        """Nothing is learned: every row is that of the base."""
        for rows in self.rows.values():
            rows[1:] = rows[:1] * len(self.setup.tasks)

    # ------------------------------------------------------------------ results

    def write_results(self, status: str) -> RunResults:
        """Writes results.json as things stand, and returns its content."""
        setup, config = self.setup, self.setup.config
        self.timing["total"] = self.before + time.perf_counter() - self.started
        results = RunResults(
            method=config.method,
            seed=config.seed,
            status=status,
            tasks=[task.name for task in setup.tasks],
            held_out=[task.name for task in setup.held_out],
            splits={s: split_results(rows, len(setup.tasks)) for s, rows in self.rows.items()},
            config=config.to_dict(),
            versions=_versions(),
            device=f"{jax.device_count()} × {jax.devices()[0].device_kind}",
            timing=dict(self.timing),
            unchanged=self.unchanged,
        )
        self.log.write_results(results)
        return results

    def finish(self) -> RunResults:
        """Writes the results and the report of a run that is over; returns the results."""
        results = self.write_results("done")
        self.progress.phase("writing the report")
        self.log.close()
        if self.is_main:
            write_report(self.workdir)
            for line in read_run(self.workdir).warnings:
                self.progress.message(f"warning: {line}")
        self.progress.message(f"report: {self.workdir / 'report.html'}")
        return results


def _rows(split: SplitResults) -> list[Evaluation]:
    pairs = zip(split.accuracy, split.parse_rate, strict=True)
    return [
        Evaluation(list(accuracy), list(parsed), list(split.count)) for accuracy, parsed in pairs
    ]


def _tokens_of(workdir: pathlib.Path, done: int) -> int:
    """Tokens of the first `done` steps: what a killed run has logged after them comes again."""
    steps = [row for row in read_steps(workdir) if row["step"] < done]
    return int(steps[-1].get("num_tokens", 0)) if steps else 0


def _versions() -> dict[str, str]:
    packages = ("rdbcl_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers")
    return {"python": platform.python_version(), **{p: metadata.version(p) for p in packages}}
