"""Running a study: bases first, then every run once, several at a time; then its report.

With a gate no run starts from a base that has not passed, and the first that fails ends the study.

WORKDIR/study.md, study.json, *.png    the report
WORKDIR/runs/SETTING/ARM/POINT/seedN   one workdir per run, with its log.txt and config.json
WORKDIR/bases/, cache/                 base models, one per seed; compiled programs
WORKDIR/gates/                         what the gate found of each base, where it was asked for
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from rdbcl_jax.json_files import read_json
from rdbcl_jax.lab.study.declare import Study, execute, point_name
from rdbcl_jax.lab.study.jobs import (
    base_name,
    finished,
    gate_base,
    gate_name,
    make_base,
    train_run,
)
from rdbcl_jax.lab.study.plan import Plan, Run, at_chosen, blocked, make_plan, ready, run_name
from rdbcl_jax.lab.study.progress import StudyProgress
from rdbcl_jax.lab.study.report import Cell, Gate, Record, Tuning, write_study_report
from rdbcl_jax.lab.study.results import StudyResults
from rdbcl_jax.lab.study.workers import Done, Job, Workers, default_workers
from rdbcl_jax.results import read_results

LOG = "log.txt"
BASE, GATE = ("base",), ("gate",)  # groups of the jobs that runs wait for


def run_study(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    *,
    name: str,
    workers: int | None = None,
    gate: bool = False,
    config_file: str = "",
) -> StudyResults:
    """Runs a study, or what is left of it, and writes its report.

    A finished run is never run again, one that a kill cut short goes on where it was, and one that
    failed is tried once more. Runs that fail do not stop the others.

    Args:
      config: of `study_config`.
      name: for the report's title.
      workers: processes; None: one per core, or one where there is an accelerator; 0: runs
        nothing, and writes the report of what is there.
      gate: every base must pass `lab.faithfulness` before a run starts from it; the first that does
        not ends the study, jobs that run then are cut short, and `stopped` says so.
      config_file: FILE or FILE:FORM that `config` is from; each worker runs it before its first
        job, for what it registers.
    Returns:
      What study.json holds; `failed` is {name of a run: error}, `stopped` why the study did.
    Raises:
      ValueError: a declaration that cannot be run, or a workdir where a study runs already.
    """
    study, workdir = Study(config), pathlib.Path(workdir).resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    with _locked(workdir):
        runner = _Runner(study, workdir, name, gate, config_file)
        if workers != 0:
            runner.work(workers or default_workers())
        return write_study_report(runner.record(), workdir)


@contextlib.contextmanager
def _locked(workdir: pathlib.Path) -> Iterator[None]:
    """Two studies in one workdir would write the same runs."""
    with open(workdir / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process runs a study in {workdir}; wait for it") from None
        yield


class _Runner:
    def __init__(
        self, study: Study, workdir: pathlib.Path, name: str, gate: bool, config_file: str
    ):
        self.study, self.workdir, self.name, self.gate = study, workdir, name, gate
        self.config_file = config_file
        self.stopped = ""  # which base did not pass
        self.runs = workdir / "runs"
        self.scores: dict[str, float] = {}  # of runs that are over; NaN: failed
        self.errors: dict[str, str] = {}  # of runs and bases
        while self._look(self.plan()):
            pass

    def _look(self, plan: Plan) -> bool:
        """Scores of the runs that earlier calls have finished; True where there were any, since a
        choice among them may lead to more."""
        before = len(self.scores)
        for name, run in plan.runs.items():
            if name not in self.scores and finished(self.runs / name, run.config):
                self._score(name)
        return len(self.scores) > before

    def plan(self) -> Plan:
        return make_plan(self.study, self.scores, self.runs)

    def _score(self, name: str) -> None:
        value = read_results(self.runs / name).metrics("validation").get(self.study.metric)
        if value is None:
            self._fail(name, f"its results.json has no metric {self.study.metric!r}")
        else:
            self.scores[name] = value

    def _fail(self, name: str, error: str) -> None:
        self.errors[name], self.scores[name] = error, math.nan

    # ------------------------------------------------------------------ the loop

    def work(self, workers: int) -> None:
        """Runs all that is wanted and not there yet."""
        with (
            StudyProgress(self.name, workers) as progress,
            Workers(
                workers, self.workdir / "cache", functools.partial(execute, self.config_file)
            ) as pool,
        ):
            while True:
                plan = self.plan()
                lost = blocked(plan, self.scores) | self._without_base(plan)
                for name, error in lost.items():
                    self._fail(name, error)
                if lost or self._look(plan):
                    continue
                for worker in pool.idle:
                    if self.stopped:
                        return
                    job = self._next(plan, pool, worker.group)
                    if job:
                        worker.start(job)
                        progress.started(job.name)
                total = len(plan.runs) + plan.undecided
                progress.show(total, len(self.scores), len(self.errors))
                if not pool.running:
                    return
                # planning takes the configs of all runs: only anew when one is over
                while not (over := pool.wait(1.0)):
                    progress.show(total, len(self.scores), len(self.errors))
                for done in over:
                    self._settle(done)
                    counts = len(self.scores), len(self.errors)
                    progress.finished(done.job.name, done.seconds, done.error, *counts)

    def _next(self, plan: Plan, pool: Workers, group: tuple[str, ...] | None) -> Job | None:
        """Bases and gates first; then preferably a run whose programs this worker has compiled,
        else one whose programs no other worker is compiling."""
        busy = {job.name for job in pool.running}
        others = {job.group for job in pool.running}
        jobs = [job for run in ready(plan, self.scores, busy) if (job := self._job(run, busy))]
        return min(
            jobs,
            key=lambda job: (
                job.group not in (BASE, GATE),
                job.group != group,
                job.group in others,
            ),
            default=None,
        )

    def _job(self, run: Run, busy: set[str]) -> Job | None:
        """The run, or what it waits for: its base or that one's gate; None while that is made."""
        workdir, name = self.runs / run.name, base_name(run.config)
        base = self.workdir / name if name else None
        job = Job(
            run.name,
            run.group,
            functools.partial(train_run, base=base),
            run.config,
            workdir,
            workdir / LOG,
        )
        if base and not base.exists():
            job = self._preparation(name, BASE, make_base, run.config)
        elif self.gate and (gate := gate_name(run.config)):
            passed = self._passed(gate)
            if passed is None:
                job = self._preparation(
                    gate, GATE, functools.partial(gate_base, base=base), run.config
                )
            elif not passed:
                self.stopped = self.stopped or self._refused(gate)
                return None
        return None if job.name in busy else job

    def _preparation(self, name: str, group: tuple[str], work, config: ConfigDict) -> Job:
        path = self.workdir / name
        return Job(name, group, work, config, path, path.with_name(f"{path.name}.{LOG}"))

    def _passed(self, gate: str) -> bool | None:
        """None: not known yet."""
        return read_json(self.workdir / gate / "gate.json", {}).get("passed")

    def _refused(self, gate: str) -> str:
        checks = read_json(self.workdir / gate / "gate.json", {})["models"]["base"]
        failed = [check for check in checks if not check["passed"]]
        return (
            f"{gate}: {len(failed)} of {len(checks)} checks failed, see "
            f"{self.workdir / gate / 'gate.md'}; change the base, the tasks or what "
            "config.run.gate asks, or leave out --gate"
        )

    def _without_base(self, plan: Plan) -> dict[str, str]:
        bases = {
            name: base_name(run.config)
            for name, run in plan.runs.items()
            if name not in self.scores
        }
        return {
            name: f"its base failed: {self.errors[base]}"
            for name, base in bases.items()
            if base in self.errors
        }

    def _settle(self, done: Done) -> None:
        name, group = done.job.name, done.job.group
        if done.error:
            log = done.job.log.relative_to(self.workdir)
            error = f"{done.error} (see {log})"
            if group == BASE:
                self.errors[name] = error
            elif group == GATE:
                self.stopped = f"{name} could not be run: {error}"
            else:
                self._fail(name, error)
        elif group not in (BASE, GATE):
            self._score(name)

    # ------------------------------------------------------------------ what the report is about

    def record(self) -> Record:
        """Every arm and every point of a curve, with the workdirs of its finished runs."""
        study, plan = self.study, self.plan()
        places = [(setting, arm) for setting in study.settings for arm in study.arms]
        arms = [self._cell(plan, *place, {}) for place in places]
        curves = [
            (curve.name, x, self._cell(plan, setting, curve.arm, point))
            for curve in study.curves
            for setting in study.settings
            for x, point in curve.points.items()
        ]
        return Record(
            name=self.name,
            metric=study.metric,
            baseline=study.baseline,
            tuning_seeds=study.tuning_seeds,
            report_seeds=study.report_seeds,
            arms=arms,
            curves=curves,
            tuning=[self._tuning(plan, *place) for place in places if _tuned(study, place[1])],
            failed=self.errors,
            gates=self._gates(),
            stopped=self.stopped,
        )

    def _gates(self) -> list[Gate]:
        """All that were ever asked for in this workdir."""
        files = sorted(self.workdir.glob("gates/*/gate.json"))
        found = {str(file.parent.relative_to(self.workdir)): read_json(file, {}) for file in files}
        return [Gate(name, gate["passed"], gate["models"]["base"]) for name, gate in found.items()]

    def _cell(self, plan: Plan, setting: str, arm: str, point: Mapping[str, Any]) -> Cell:
        full = at_chosen(self.study.arms[arm], point, plan.points.get((setting, arm)))
        names = {
            seed: run_name(setting, arm, full, seed)
            for seed in self.study.report_seeds
            if full is not None
        }
        return Cell(
            setting=setting,
            arm=arm,
            point="not chosen" if full is None else point_name(full),
            runs={s: self.runs / n for s, n in names.items() if math.isfinite(self._of(n))},
            failed={s: self.errors[n] for s, n in names.items() if n in self.errors},
        )

    def _of(self, name: str) -> float:
        return self.scores.get(name, math.nan)

    def _tuning(self, plan: Plan, setting: str, arm: str) -> Tuning:
        points = self.study.arms[arm].grid
        scores = [
            [self._of(run_name(setting, arm, p, seed)) for seed in self.study.tuning_seeds]
            for p in points
        ]
        choice = plan.choices.get((setting, arm))
        return Tuning(setting, arm, [point_name(p) for p in points], scores, choice)


def _tuned(study: Study, arm: str) -> bool:
    return len(study.arms[arm].grid) > 1
