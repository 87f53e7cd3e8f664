"""Running a study: bases first, then every run once, several at a time; then its report.

With a gate no run starts from a base that has not passed, and the first that fails ends the study.

WORKDIR/study.md, study.json, *.png    the report
WORKDIR/runs/SETTING/ARM/POINT/seedN   one workdir per run, with its log.txt and config.json
WORKDIR/bases/                         base models, one per seed
WORKDIR/gates/                         what the gate found of each base, where it was asked for
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import pathlib
from collections.abc import Iterator

from ml_collections import ConfigDict

from rdbcl_jax.lab.study import findings
from rdbcl_jax.lab.study.declare import Study, execute
from rdbcl_jax.lab.study.progress import StudyProgress
from rdbcl_jax.lab.study.report import write_study_report
from rdbcl_jax.lab.study.results import StudyResults
from rdbcl_jax.lab.study.schedule import next_job, refused, settle
from rdbcl_jax.lab.study.standing import Standing, find_standing
from rdbcl_jax.lab.study.workers import Workers, default_workers
from rdbcl_jax.remote import of_this_machine


def run_study(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    *,
    name: str,
    workers: int | None = None,
    gate: bool = False,
    config_file: str = "",
    compilation_cache: str = "",
) -> StudyResults:
    """Runs a study, or what is left of it, and writes its report.

    A finished run is never run again, one that a kill cut short goes on where it was, and one that
    failed is tried once more. Runs that fail do not stop the others; one that has nothing to learn
    from, such as no right rollout, is over, and that is its result.

    Args:
      config: as `study_config` gives it.
      name: for the report's title.
      workers: processes; None: one per core, or one where there is an accelerator; 0: runs
        nothing, and writes the report of what is there.
      gate: every base must pass `lab.faithfulness` before a run starts from it; the first that does
        not ends the study, jobs then running are cut short, and `stopped` says so.
      config_file: FILE or FILE:FORM that `config` comes from; each worker runs it before its first
        job, for what it registers.
      compilation_cache: the folder of compiled programs, see `rdbcl_jax.programs.keep`.
    Returns:
      What study.json holds; `failed` is {name of a run: error}, `lacking` {name: why it had nothing
      to learn from}, `stopped` why the study did.
    Raises:
      ValueError: a declaration that cannot be run, or a workdir where a study runs already.
    """
    workdir = of_this_machine(workdir, "a study").resolve()
    study = Study(config)
    workdir.mkdir(parents=True, exist_ok=True)
    with _locked(workdir):
        standing = find_standing(study, workdir)
        if workers != 0:
            count, prepare = workers or default_workers(), functools.partial(execute, config_file)
            with (
                StudyProgress(name, count) as progress,
                Workers(count, prepare, compilation_cache) as pool,
            ):
                _work(standing, pool, progress, gate)
        return write_study_report(findings.find(standing, name), workdir)


@contextlib.contextmanager
def _locked(workdir: pathlib.Path) -> Iterator[None]:
    """Two studies in one workdir would write the same runs."""
    with open(workdir / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process runs a study in {workdir}; wait for it") from None
        yield


def _work(standing: Standing, pool: Workers, progress: StudyProgress, gate: bool) -> None:
    """Runs all that is wanted and not there yet."""
    while True:
        plan = standing.plan()
        if standing.lose(plan) or standing.look(plan):
            continue
        if gate and not standing.stopped:
            standing.stopped = refused(standing, plan)
        if standing.stopped:
            return
        for worker in pool.idle:
            if job := next_job(standing, plan, pool.running, worker.group, gate):
                worker.start(job)
                progress.started(job.name)
        total = len(plan.runs) + plan.undecided
        progress.show(total, len(standing.scores), len(standing.errors))
        if not pool.running:
            return
        # planning makes the configs of all runs: only anew when one is over
        while not (over := pool.wait(1.0)):
            progress.show(total, len(standing.scores), len(standing.errors))
        for done in over:
            settle(standing, done)
            name, counts = done.job.name, (len(standing.scores), len(standing.errors))
            lack = standing.lacking.get(name, "")
            progress.finished(name, done.seconds, done.error, *counts, lack=lack)
