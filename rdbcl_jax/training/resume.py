"""Where a run goes on: at the newest saved state that is whole, of the run that it is.

States are saved within a task (`step_*`) and at its end (`task_*`, from which the next task starts
afresh). What is read to go on is compared with its manifest first; where that fails, the state
before is taken, which ends in the same bits later.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator

from rdbcl_jax.checkpoint import Checkpoints, fisher_name, memory_name, step_name, task_name
from rdbcl_jax.distributed import on_main
from rdbcl_jax.reporting.run_files import read_steps
from rdbcl_jax.results import RunResults, read_results
from rdbcl_jax.training.identity import (
    FILE,
    Identity,
    differences,
    identity_of,
    more_steps,
    new_tasks,
    read_identity,
    write_identity,
)
from rdbcl_jax.training.setup import Setup


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run begins, or goes on.

    Attributes:
      done: steps behind it.
      read: saved states that it goes on from, found to be whole.
      results: results.json is there, and of all tasks that are evaluated.
      notes: what the user should know.
    """

    done: int = 0
    read: tuple[str, ...] = ()
    results: bool = False
    notes: tuple[str, ...] = ()


def find_start(workdir: pathlib.Path, setup: Setup, checkpoints: Checkpoints) -> Start:
    """Compares the run with what its workdir holds, and keeps what it is. One process reads.

    Raises:
      ValueError: the workdir is another run's, or none of its states is whole.
    """
    found = on_main(lambda: dataclasses.asdict(_find(workdir, setup, checkpoints)))
    start = Start(found["done"], (*found["read"],), found["results"], (*found["notes"],))
    checkpoints.trusted.update(start.read)
    return start


def forget_beyond(checkpoints: Checkpoints, start: Start, steps: int) -> None:
    """Removes what a run that goes on will make again, and what a kill has left half done."""
    tasks = [k for k in checkpoints.tasks() if k > start.done // steps]
    checkpoints.drop([step_name(step) for step in checkpoints.steps() if step > start.done])
    names = [name(k) for name in (task_name, fisher_name, memory_name) for k in tasks]
    checkpoints.drop([*names, *checkpoints.strays()])
    checkpoints.adopt()


def _find(workdir: pathlib.Path, setup: Setup, checkpoints: Checkpoints) -> Start:
    saved, now, results = read_identity(workdir), identity_of(setup), _results(workdir)
    steps = setup.config.training.steps
    notes: list[str] = []
    longer = more_steps(saved, setup) if saved else 0
    states = _states(checkpoints, setup, longer)
    finished = results is not None and results.status == "done"
    there = bool(states) or finished or (longer and bool(checkpoints.tasks()))
    if there and saved is None:
        raise ValueError(
            f"{workdir} holds saved states, but neither {FILE} nor results.json, so that nothing "
            "says of which run; use a new workdir"
        )
    if saved and (differing := differences(saved, setup, now)):
        if there:
            raise ValueError(
                f"{workdir} holds {_held(states, finished)} of another config; use a new workdir, "
                "or that config:\n  " + "\n  ".join(differing)
            )
        notes.append("an earlier run here had other settings and saved nothing: it is replaced")
        saved = None
    if saved and longer and there and not states:
        raise ValueError(
            f"{workdir}: training.steps: {longer} in the workdir, {steps} now; a longer run goes "
            "another way from the end of the first task on, and no state from before that end is "
            "kept; use a new workdir"
        )
    done, read, problems = _newest_whole(checkpoints, states, workdir)
    notes += problems + _strays(checkpoints, setup)
    if saved:
        gone = _of_log(workdir, saved, checkpoints, done, finished, setup)
        notes += [] if problems else gone
        notes += _of_code(saved, now)
        if not now.base:
            now = dataclasses.replace(now, base=saved.base)
    if done and results and (other := differences(Identity(results.config), setup, now)):
        notes.append(f"results.json is of another run ({other[0]}): its rows are evaluated again")
        results = None
    elif done and results is None:
        notes.append("results.json is not there, or damaged: its rows are evaluated again")
    if done and checkpoints.unverified:
        notes.append("saved states are from before there were manifests: read without comparing")
    write_identity(workdir, now)
    grown = saved is not None and new_tasks(saved, setup)
    return Start(done, read, bool(done and saved and results and not grown), tuple(notes))


def _held(states: list[tuple[int, list[str]]], finished: bool) -> str:
    return f"{states[0][0]} steps" if states else "finished results" if finished else "a run"


def _results(workdir: pathlib.Path) -> RunResults | None:
    try:
        return read_results(workdir)
    except ValueError as error:
        if "schema_version" in str(error):
            raise
        return None  # damaged: its rows are found again


def _states(checkpoints: Checkpoints, setup: Setup, longer: int) -> list[tuple[int, list[str]]]:
    """(steps behind it, names of what is read to go on from there) of each state, newest first.
    `longer`: only those that a run of more steps shares, within the old first task."""
    steps, method = setup.config.training.steps, setup.method

    def needed(done: int) -> Iterator[str]:
        task = done // steps
        if done % steps:
            yield step_name(done)
        if task:
            first = 1 if method.reference == "ema" else task
            yield from map(task_name, range(first, task + 1))
            if method.consolidation:
                yield fisher_name(task)
            if method.tracker and method.tracker.carried:
                yield memory_name(task)

    within = [step for step in checkpoints.steps() if step % steps and step < (longer or step + 1)]
    ends = [] if longer else [task * steps for task in checkpoints.tasks()]
    return [(done, [*needed(done)]) for done in sorted({*within, *ends}, reverse=True)]


def _newest_whole(
    checkpoints: Checkpoints, states: list[tuple[int, list[str]]], workdir: pathlib.Path
) -> tuple[int, tuple[str, ...], list[str]]:
    """(steps, names) of the newest state all of which is as it was saved, and what is wrong with
    those after it."""
    problems: dict[str, str] = {}
    for done, names in states:
        found = {name: problem for name in names if (problem := checkpoints.problem(name))}
        problems |= found
        if not found:
            notes = [f"checkpoints/{name} {problem}" for name, problem in problems.items()]
            return done, tuple(names), notes
    if states:
        lines = [f"checkpoints/{name} {problem}" for name, problem in problems.items()]
        raise ValueError(
            f"{workdir}: no saved state is whole; restore one of them from a copy, or use a new "
            "workdir:\n  " + "\n  ".join(lines)
        )
    return 0, (), []


def _strays(checkpoints: Checkpoints, setup: Setup) -> list[str]:
    """What lies among the states and is none."""
    steps, tasks = setup.config.training.steps, checkpoints.tasks()
    # at the end of a task nothing but the policy was saved; a state too, once
    ends = [
        step for step in checkpoints.steps() if step % steps == 0 and step // steps not in tasks
    ]
    strays = checkpoints.strays()
    return [
        f"checkpoints/{name} is no finished state: it is left out, and removed"
        for name in [*strays, *map(step_name, ends)]
        if name.partition(".")[0] not in strays or "." not in name  # said of its state already
    ]


def _of_log(
    workdir: pathlib.Path,
    saved: Identity,
    checkpoints: Checkpoints,
    done: int,
    finished: bool,
    setup: Setup,
) -> list[str]:
    """What the log says of states that are gone.

    Raises:
      ValueError: states were saved, and none is left.
    """
    if setup.method.responses == "none":
        return []
    training = saved.config.get("training", {})
    steps, every = training.get("steps", 0), training.get("checkpoint_every", 0)
    logged = max((row["step"] for row in read_steps(workdir)), default=-1) + 1
    # a state that is due after n steps was begun before the row of step n, the one after, was
    due = [
        n for n in range(done + 1, logged) if n % steps == 0 or (every and n % steps % every == 0)
    ]
    cut_short = checkpoints.strays()
    due = [n for n in due if _state_of(n, steps) not in cut_short]
    if not done and (due or finished):
        what = "finished results" if finished else f"the log of {logged} steps"
        raise ValueError(
            f"{workdir} holds {what}, but no saved state: its checkpoints were removed, and to go "
            "on would be to start again; use a new workdir"
        )
    if due:
        return [
            f"the log goes to step {logged}, so a state after step {due[-1]} was saved: it is gone"
        ]
    return []


def _state_of(done: int, steps: int) -> str:
    return step_name(done) if done % steps else task_name(done // steps)


def _of_code(saved: Identity, now: Identity) -> list[str]:
    if saved.code and saved.code["sources"] != now.code["sources"]:
        return ["the code of rdbcl_jax was changed since this run began: its numbers may differ"]
    return []
