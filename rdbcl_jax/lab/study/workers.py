"""Processes that train: each has its share of the CPU and does one job after another.

A worker keeps its imports and its compiled programs from job to job, and finds other workers'
programs where `rdbcl_jax.programs` keeps them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import multiprocessing
import os
import pathlib
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NamedTuple

from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class Job:
    """A piece of work, and the file that takes what it prints."""

    name: str
    group: tuple[str, ...]
    work: Callable[[ConfigDict, pathlib.Path], None]  # of a module: it travels by its name
    config: ConfigDict
    workdir: pathlib.Path
    log: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Done:
    """A job that is over; `error` is empty where it went well."""

    job: Job
    seconds: float
    error: str


def default_workers() -> int:
    """One per core of a CPU; one in all where there is an accelerator, which it then owns."""
    if os.environ.get("JAX_PLATFORMS") != "cpu":
        # asked elsewhere: a process that has asked holds the accelerator
        code = "import jax; print(jax.default_backend())"
        asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        if asked.stdout.strip() != "cpu":
            return 1
    return len(_cores())


class Workers:
    """A pool of processes: `start` a job on an idle one, `wait` for one that is over."""

    def __init__(self, count: int, prepare: Callable[[], None], compilation_cache: str = ""):
        """`prepare` is called in each process before its first job: it travels by its name.
        `compilation_cache`: as in `programs.keep`."""
        self._prepare = functools.partial(_prepared, prepare, compilation_cache)
        self._context = multiprocessing.get_context("spawn")
        self._environment = {
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        }
        self._shares = share(_cores(), count)
        self._workers = [_Worker(self._open, cores) for cores in self._shares]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.close()

    @property
    def running(self) -> list[Job]:
        return [worker.job for worker in self._workers if worker.job]

    @property
    def idle(self) -> list[_Worker]:
        return [worker for worker in self._workers if not worker.job]

    def wait(self, seconds: float) -> list[Done]:
        """Jobs that are over by now, or the first that is within some seconds."""
        links = {worker.link: worker for worker in self._workers if worker.job and worker.link}
        over = wait([link.connection for link in links], seconds)
        return [worker.receive() for link, worker in links.items() if link.connection in over]

    def _open(self, cores: Sequence[int]) -> _Link:
        """A process that starts, and stays, on its cores: libraries count them when imported."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._prepare))
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(len(cores)))
        with _environment({**self._environment, **threads}), _on(cores):
            process.start()
        theirs.close()
        return _Link(process, ours)


class _Link(NamedTuple):
    """A process, and our end of the pipe to it."""

    process: BaseProcess
    connection: Connection


class _Worker:
    """One process, started with its first job and again if it died."""

    def __init__(self, open: Callable[[Sequence[int]], _Link], cores: Sequence[int]):
        self._open, self._cores = open, cores
        self.link: _Link | None = None
        self._current: tuple[Job, float] | None = None  # and when it was started
        self.group: tuple[str, ...] | None = None  # of its last job

    @property
    def job(self) -> Job | None:
        """What it works on; None: it is idle."""
        return self._current[0] if self._current else None

    def start(self, job: Job) -> None:
        if self.link is None or not self.link.process.is_alive():
            self.link = self._open(self._cores)
        self._current, self.group = (job, time.monotonic()), job.group
        self.link.connection.send(job)

    def receive(self) -> Done:
        assert self.link and self._current, "it was started"
        (job, started), self._current = self._current, None
        try:
            error = self.link.connection.recv()
        except (EOFError, ConnectionResetError):
            self.link.process.join()
            error = f"the worker died with exit code {self.link.process.exitcode}"
            self.link = None
        return Done(job, time.monotonic() - started, error)

    def close(self) -> None:
        if self.link and self.link.process.is_alive():
            self.link.process.kill() if self.job else self.link.process.terminate()
            self.link.process.join()


# ------------------------------------------------------------------------------ in the worker


def _prepared(prepare: Callable[[], None], compilation_cache: str) -> None:
    from rdbcl_jax import programs

    if note := programs.keep(compilation_cache):
        print(f"note: {note}")
    prepare()


def _serve(connection: Connection, prepare: Callable[[], None]) -> None:
    prepare = functools.cache(prepare)  # again for the next job where it fails
    threading.Thread(target=_die_with_parent, daemon=True).start()
    for noisy in ("absl", "orbax", "grain", "jax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    while True:
        connection.send(_do(connection.recv(), prepare))


def _do(job: Job, prepare: Callable[[], None]) -> str:
    """Returns what went wrong: nothing that a job does or meets ends the worker."""
    try:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with _output(job.log):
            try:
                prepare()
                job.work(job.config, job.workdir)
            except Exception:
                traceback.print_exc()
                raise
    except Exception as problem:
        return f"{type(problem).__name__}: {problem}"
    return ""


def _die_with_parent() -> None:
    """No orphan may write to a workdir that the next study continues."""
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


@contextlib.contextmanager
def _output(path: pathlib.Path) -> Iterator[None]:
    """All that the process prints, its libraries too, goes to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    with open(path, "a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, stream)
            os.close(copy)


# ------------------------------------------------------------------------------ shares


def share(cores: Sequence[int], count: int) -> list[list[int]]:
    """Cores of each of `count` workers: disjoint and as even as can be; with more workers than
    cores, some share one."""
    if count > len(cores):
        return [[cores[i % len(cores)]] for i in range(count)]
    return [
        list(cores[i * len(cores) // count : (i + 1) * len(cores) // count]) for i in range(count)
    ]


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):  # Linux
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextlib.contextmanager
def _on(cores: Sequence[int]) -> Iterator[None]:
    """A process started within keeps to these cores."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """A process started within has these variables."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
