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

from rdbcl_jax.config import LogConfig
from rdbcl_jax.data.tasks import EVALUATED
from rdbcl_jax.evaluation import Evaluation, other_measures, split_results
from rdbcl_jax.json_files import write_text
from rdbcl_jax.reporting import plots
from rdbcl_jax.reporting.numbers import percent
from rdbcl_jax.reporting.progress import Progress
from rdbcl_jax.reporting.report import write_report
from rdbcl_jax.reporting.run_files import full_matrix, read_run, read_steps
from rdbcl_jax.reporting.run_log import RunLog
from rdbcl_jax.reporting.text_tables import markdown_table
from rdbcl_jax.reporting.watching import Compilations, warnings_to
from rdbcl_jax.results import RunResults, SplitResults, read_results
from rdbcl_jax.sharding import row_shard
from rdbcl_jax.training.resume import Start
from rdbcl_jax.training.setup import Setup


class Journal:
    """Each process logs its own rows; the main one's log is the run's, and it alone displays. The
    samples of rows that several processes hold are logged by the one that leads.

    A run that resumes goes on from what the workdir holds of the steps behind it.
    """

    def __init__(self, workdir: pathlib.Path, setup: Setup, start: Start, name: str = ""):
        self.workdir, self.setup = workdir, setup
        self.name = name or str(workdir)  # for people
        self.is_main = jax.process_index() == 0
        self.leads = row_shard(setup.mesh).leads
        done, known = start.done, start.done // setup.config.training.steps + 1
        saved = start.results and read_results(workdir)
        self.rows = {
            name: _rows(split)[:known] for name, split in (saved.splits if saved else {}).items()
        }
        self.measures = other_measures({task.name: task.test for task in setup.evaluated})
        self.unchanged = [*saved.unchanged][: known - 1] if saved else []
        self.tokens = _tokens_of(workdir, done) if done else 0
        self.timing = dict(saved.timing) if saved else {}  # of earlier calls too
        self.before = self.timing.get("total", 0.0)
        self.started = time.perf_counter()
        names = [task.name for task in setup.tasks]
        steps, held_out = setup.config.training.steps, [task.name for task in setup.held_out]
        every = setup.config.log.every
        self.progress = Progress(names, steps, held_out=held_out, enabled=self.is_main, every=every)
        self.folder = workdir if self.is_main else workdir / f"processes/{jax.process_index()}"
        where = setup.config.log if self.is_main else LogConfig()  # services get one run
        config = setup.config.to_dict()
        self.log = RunLog(self.folder, resume_step=done, log=where, config=config)
        if self.is_main:
            _forget_beyond(done, of_others=workdir / "processes")
        self.steps = self.traced = 0  # of this call
        self.reported = self.started
        self.open = contextlib.ExitStack()
        dry = [f"dry run: {line}" for line in setup.replaced]
        for note in (*dry, *setup.notes, *start.notes, *self.log.lost):
            self.progress.message(f"note: {note}")

    def __enter__(self) -> Journal:
        self.open.enter_context(self.progress)
        self.open.enter_context(contextlib.closing(self.log))
        self.open.callback(self._end_trace)
        self.open.enter_context(warnings_to(self.folder / "warnings.log", self.progress.message))
        # samplers of evaluation and of training, log-probs, update; and of the base that is made
        expected = 4 + (0 if self.setup.config.model.path else 1)
        programs = self.open.enter_context(Compilations(self.progress.compiling, expected))
        self.open.callback(lambda: self.progress.message(f"programs compiled: {programs}"))
        if not self.rows:  # what is there may be another run's, which saved nothing
            self.write_results("running")
        return self

    def __exit__(self, *error: Any) -> None:
        self.open.__exit__(*error)

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
        self._trace()

    def _trace(self) -> None:
        """Traces `profile` steps, from the third on: the first ones compile."""
        self.steps += 1
        steps, before = self.setup.config.profile, 2
        if steps and self.steps == before:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # of the programs alone; else minutes to write
            folder = str(self.folder / "tb")
            jax.profiler.start_trace(folder, create_perfetto_trace=True, profiler_options=options)
            self.traced = 1
        elif self.traced and self.steps == before + steps:
            self._end_trace()

    def _end_trace(self) -> None:
        was_traced, self.traced = self.traced, 0
        if was_traced:
            jax.profiler.stop_trace()
            folder = self.folder / "tb/plugins/profile"
            self.progress.message(f"trace: {folder} (TensorBoard's Profile page, ui.perfetto.dev)")

    def examples(self, task: int, index: int, examples: Iterable[Mapping[str, Any]]) -> None:
        """Logs examples of step `index` of a task."""
        step = task * self.setup.config.training.steps + index
        place = {"task": self.setup.tasks[task].name, "step": step}
        if self.leads:
            self.log.write_examples({**place, **example} for example in examples)

    def answers(self, row: int, answers: Sequence[Mapping[str, Any]]) -> None:
        """Keeps this process's answers of an evaluation."""
        if self.leads:
            self.log.write_answers(row, answers)

    def left_out(self, problems: Sequence[str]) -> None:
        """Lists the records that are left out, and says how many."""
        if self.is_main:
            file = self.workdir / "left_out.txt"
            write_text(file, "\n".join(problems) + "\n")
            self.progress.message(
                f"{len(problems)} records are left out, see {self.name}/{file.name}"
            )

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
        names = [task.name for task in self.setup.evaluated]
        for split, evaluation in found.items():
            # beside the last step behind it, since a resume hides what was logged at later ones
            step = max((self.matrix_rows - 1) * self.setup.config.training.steps - 1, 0)
            row = dict(zip(names, evaluation.accuracy, strict=True))
            # one row alone is no picture yet, and the headline's split has it
            drawn = split == EVALUATED[-1] and self.matrix_rows > 1 and bool(self.log.writers)
            picture = self._picture(split) if drawn else b""
            self.log.write_row(split, row, self._table(split), step, picture)
        self.progress.end_task(self.matrix_rows - 2, found[EVALUATED[-1]].accuracy)
        self._report()

    def _table(self, split: str) -> str:
        """The accuracy matrix so far, as Markdown."""
        after = ["base", *(f"after {task.name}" for task in self.setup.tasks)]
        rows = [[name, *map(percent, row.accuracy)] for name, row in zip(after, self.rows[split])]  # noqa: B905
        return markdown_table(["%", *(task.name for task in self.setup.evaluated)], rows)

    def _picture(self, split: str) -> bytes:
        """The accuracy matrix so far, of the tasks that are learned, as a PNG."""
        tasks = [task.name for task in self.setup.tasks]
        rows = [row.accuracy for row in self.rows[split]]
        return plots.png(plots.accuracy_matrix(full_matrix(rows, len(tasks), len(tasks)), tasks))

    def _report(self) -> None:
        """Brings the report up to date, unless that was just done; the last comes at the end."""
        now, rows = time.perf_counter(), len(self.setup.tasks) + 1
        if not self.is_main or self.matrix_rows == rows:
            return
        if now - self.reported < self.setup.config.log.every:
            return
        self.reported = now
        with self.timed("report"):
            try:
                write_report(self.workdir)
            except (ValueError, OSError) as error:  # there is another one at the end
                self.progress.message(f"note: the report was not brought up to date: {error}")

    def learned(self, task: int, changed: bool) -> None:
        """Whether a task has changed any parameter; said in the results where it has not."""
        self._end_trace()
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
            measures=self.measures,
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
        self._end_trace()
        self.log.close()
        if self.is_main:
            write_report(self.workdir)
            for line in read_run(self.workdir).warnings:
                self.progress.message(f"warning: {line}")
        self.progress.message(f"report: {self.name}/report.html")
        return results


def _rows(split: SplitResults) -> list[Evaluation]:
    pairs = zip(split.accuracy, split.parse_rate, strict=True)
    return [
        Evaluation(list(accuracy), list(parsed), list(split.count)) for accuracy, parsed in pairs
    ]


def _forget_beyond(done: int, *, of_others: pathlib.Path) -> None:
    """What processes logged after step `done` that this call, on fewer hosts, has no more."""
    for folder in of_others.glob("*"):
        if folder.name.isdigit() and int(folder.name) >= jax.process_count():
            RunLog(folder, resume_step=done).close()


def _tokens_of(workdir: pathlib.Path, done: int) -> int:
    """Tokens of the first `done` steps: what a killed run has logged after them comes again."""
    steps = [row for row in read_steps(workdir) if row["step"] < done]
    return int(steps[-1].get("num_tokens", 0)) if steps else 0


def _versions() -> dict[str, str]:
    packages = ("rdbcl_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers")
    return {"python": platform.python_version(), **{p: metadata.version(p) for p in packages}}
