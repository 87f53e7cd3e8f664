"""Which job comes next: bases before their runs, gates between the two."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Collection

from rdbcl_jax.json_files import read_json
from rdbcl_jax.lab.study.jobs import base_name, gate_base, gate_name, make_base, train_run
from rdbcl_jax.lab.study.plan import Plan, Run, ready
from rdbcl_jax.lab.study.standing import Standing
from rdbcl_jax.lab.study.workers import Done, Job

LOG = "log.txt"
BASE, GATE = ("base",), ("gate",)  # groups of the jobs that runs wait for


def next_job(
    standing: Standing,
    plan: Plan,
    running: Collection[Job],
    group: tuple[str, ...] | None,
    gate: bool,
) -> Job | None:
    """Bases and gates first, then seed by seed; of these preferably a run whose programs this
    worker has compiled, else one whose programs no other worker is compiling.

    Args:
      group: of the worker's last job.
      gate: whether a run's base must have passed.
    """
    busy, others = {job.name for job in running}, {job.group for job in running}
    runs = ready(plan, standing.scores, busy)
    wanted = [(_job(standing.workdir, run, gate), run.round) for run in runs]

    def later(choice: tuple[Job, int]) -> tuple:
        job, place = choice
        if job.group in (BASE, GATE):
            return (0,)
        return (1, place, job.group != group, job.group in others)

    free = [choice for choice in wanted if choice[0].name not in busy]
    return min(free, key=later)[0] if free else None


def _job(workdir: pathlib.Path, run: Run, gate: bool) -> Job:
    """The run, or what it waits for: its base or that one's gate."""
    name, check = base_name(run.config), gate_name(run.config) if gate else ""
    base = workdir / name if name else None
    if base and not base.exists():
        return _preparation(workdir / name, name, BASE, make_base, run)
    if check and _verdict(workdir, check) is None:
        return _preparation(
            workdir / check, check, GATE, functools.partial(gate_base, base=base), run
        )
    own, work = workdir / "runs" / run.name, functools.partial(train_run, base=base)
    return Job(run.name, run.group, work, run.config, own, own / LOG)


def _preparation(path: pathlib.Path, name: str, group: tuple[str], work, run: Run) -> Job:
    return Job(name, group, work, run.config, path, path.with_name(f"{path.name}.{LOG}"))


def settle(standing: Standing, done: Done) -> None:
    """Notes a job that is over."""
    name, group = done.job.name, done.job.group
    error = f"{done.error} (see {done.job.log.relative_to(standing.workdir)})" if done.error else ""
    if group == BASE and error:
        standing.errors[name] = error
    elif group == GATE and error:
        standing.stopped = f"{name} could not be run: {error}"
    elif group not in (BASE, GATE):
        standing.fail(name, error) if error else standing.score(name)


def refused(standing: Standing, plan: Plan) -> str:
    """Which base, of those a run would start from now, did not pass; empty where all did."""
    for run in ready(plan, standing.scores, ()):
        gate = gate_name(run.config)
        if gate and _verdict(standing.workdir, gate) is False:
            checks = read_json(standing.workdir / gate / "gate.json", {})["models"]["base"]
            failed = [check for check in checks if not check["passed"]]
            return (
                f"{gate}: {len(failed)} of {len(checks)} checks failed, see "
                f"{standing.workdir / gate / 'gate.md'}; change the base, the tasks or what "
                "config.run.gate asks, or leave out --gate"
            )
    return ""


def _verdict(workdir: pathlib.Path, gate: str) -> bool | None:
    """Whether a base passed its gate; None: not known yet."""
    return read_json(workdir / gate / "gate.json", {}).get("passed")
