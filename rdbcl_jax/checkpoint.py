"""What a resume needs, saved with orbax: the train state, and the policy after every task.

    WORKDIR/checkpoints/task_02/       parameters after the second task: a KL reference
    WORKDIR/checkpoints/fisher_02/     what EWC keeps after the second task
    WORKDIR/checkpoints/memory_02/     what a method's tracker takes from it into the next
    WORKDIR/checkpoints/step_00000120/ the train state after 120 steps, with what the host carries
                                       through a task; only the latest few are kept
    WORKDIR/checkpoints/manifests/     sizes and hashes of the files of each of them

Batches and random keys are pure functions of a number, so the numbers stand for both. A save holds
its caller while the arrays are copied to the host, and no longer: files are written and hashed in
the background. A manifest says first that its state is unfinished, and is replaced last, by what
the files are: only then does the state count, and only then are older ones removed. Whatever is
read is first compared with it. Workdirs from before there were manifests have no `manifests/`;
theirs are read as they are.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from rdbcl_jax.integrity import damage, manifest, read_manifest
from rdbcl_jax.json_files import read_json, write_json
from rdbcl_jax.remote import at, is_remote

MANIFESTS = "manifests"
_AT_ONCE = 2**29  # bytes of a state that are in hand to be written
_PATIENCE = 24 * 3600  # seconds in which a state is written; orbax's own are 1,200
UNFINISHED = {"unfinished": True}  # a manifest, while its state is written
_NAME = re.compile(r"(?:task|fisher|memory)_\d\d+|step_\d{8}")
# what a save of ours may leave; a copy that somebody has made beside it is theirs
_LIKE_OURS = re.compile(r"(?:task|fisher|memory|step)_\d+(?:\.orbax-checkpoint-tmp.*)?")


class Damaged(ValueError):
    """A saved state that is not what was saved; the message names it and the file."""


def task_name(task: int) -> str:
    """`task` counts from 1: the number of tasks learned."""
    return f"task_{task:02}"


def fisher_name(task: int) -> str:
    return f"fisher_{task:02}"


def memory_name(task: int) -> str:
    return f"memory_{task:02}"


def step_name(step: int) -> str:
    return f"step_{step:08}"


class Checkpoints:
    """The saved states of a workdir, each by its name. At the end of a `with` block all that was
    saved is whole.

    Args:
      keep: how many train states are kept.
      verify: hashes are compared, and not sizes alone: a state is read twice then.
      background: what is saved is written while the caller goes on; else before it does.
      first: called, in the background too, when a state has been written and before it counts.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        *,
        keep: int = 2,
        verify: bool = True,
        background: bool = True,
        first: Callable[[], None] = lambda: None,
    ):
        workdir = at(workdir) if is_remote(workdir) else pathlib.Path(workdir).resolve()
        self.directory: Any = workdir / "checkpoints"
        self.first = first
        self.keep, self.verify, self.background = keep, verify, background
        self.trusted: set[str] = set()  # compared with their manifests already
        self._writer = concurrent.futures.ThreadPoolExecutor(1)  # one after another
        self._writing: list[concurrent.futures.Future[None]] = []

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.wait()
        except Exception as failed:
            if not isinstance(error, Exception):  # a stop says that all is saved
                raise
            error.add_note(str(failed))

    def wait(self) -> None:
        """Returns when all that was saved is whole.

        Raises:
          OSError: something could not be written; with its path.
        """
        writing, self._writing = self._writing, []
        concurrent.futures.wait(writing)
        for saved in writing:
            saved.result()

    # ------------------------------------------------------------------ saving and restoring

    def save_task(self, task: int, params: Any) -> None:
        self._save(task_name(task), params)

    def restore_task(self, task: int, like: Any) -> Any:
        return self._restore(task_name(task), like)

    def save_fisher(self, task: int, fisher: Any) -> None:
        self._save(fisher_name(task), fisher)

    def restore_fisher(self, task: int, like: Any) -> Any:
        return self._restore(fisher_name(task), like)

    def save_memory(self, task: int, memory: Any) -> None:
        self._save(memory_name(task), memory)

    def restore_memory(self, task: int, like: Any) -> Any:
        return self._restore(memory_name(task), like)

    def save_step(self, step: int, state: Any) -> None:
        """Saves the state after `step` steps, once all before it is whole; then drops those before
        the last few."""
        self.wait()
        earlier = [known for known in self.steps() if known != step]
        beyond = earlier[: -self.keep + 1] if self.keep > 1 else earlier
        self._save(step_name(step), state, then_drop=[*map(step_name, beyond)])

    def restore_step(self, step: int, like: Any) -> Any:
        return self._restore(step_name(step), like)

    def names_of_step(self, step: int) -> set[str]:
        """Names of the arrays of a saved state, such as `train/params/lm_head/kernel`."""
        self.check(step_name(step))
        return set(_shapes(self._metadata(step_name(step))))

    # ------------------------------------------------------------------ what is there

    def steps(self) -> list[int]:
        """Steps behind each saved train state, ascending, whatever condition it is in."""
        return self._numbers("step")

    def tasks(self) -> list[int]:
        """Tasks behind each saved policy, likewise."""
        return self._numbers("task")

    def strays(self) -> list[str]:
        """Names of what is no saved state, but looks like one, such as a save that was cut short.
        Whatever else lies there is somebody's, and left alone."""
        names = [p.name for p in self.directory.glob("*")]
        others = {n for n in names if _LIKE_OURS.fullmatch(n) and not _NAME.fullmatch(n)}
        return sorted(others.union(filter(self._unfinished, self._names())))

    @property
    def unverified(self) -> bool:
        """Whether the states are from before there were manifests."""
        return not (self.directory / MANIFESTS).is_dir() and any(self.directory.glob("*"))

    def problem(self, name: str) -> str:
        """What is wrong with a saved state, in words that follow its name; empty: nothing."""
        if self._unfinished(name):
            return "was never finished"
        if name in self.trusted:
            return ""
        path, file = self.directory / name, self._manifest(name)
        if self.unverified:
            return "" if path.is_dir() and any(path.iterdir()) else "is not there, or is empty"
        if not file.exists():
            found = "has no manifest, so it was never finished, or somebody removed that"
            return found if path.exists() else "is not there"
        try:
            saved = read_manifest(file)
        except (ValueError, IsADirectoryError):  # any other OSError may pass, and nothing is lost
            return f"has a damaged manifest, {MANIFESTS}/{file.name}"
        found = damage(path, saved, hashed=self.verify)
        if not found:
            self.trusted.add(name)
        return found

    def check(self, name: str) -> None:
        """Raises Damaged where something is wrong with a saved state."""
        if problem := self.problem(name):
            raise Damaged(f"{self.directory / name} {problem}")

    def drop(self, names: Iterable[str]) -> None:
        """Removes saved states, and what is left of such."""
        if jax.process_index() == 0:
            for name in names:
                self._manifest(name).unlink(missing_ok=True)
                _remove(self.directory / name)

    def adopt(self) -> None:
        """Gives states from before there were manifests one, as they are now."""
        if jax.process_index() == 0 and self.unverified:
            names = [p.name for p in self.directory.glob("*") if _NAME.fullmatch(p.name)]
            for name in names:
                self._write_manifest(name)

    # ------------------------------------------------------------------ within

    def _numbers(self, kind: str) -> list[int]:
        found = self._names(kind)
        return sorted(int(n[len(kind) + 1 :]) for n in found if not self._unfinished(n))

    def _names(self, kind: str = "*") -> set[str]:
        found = {p.name for p in self.directory.glob(f"{kind}_*")}
        found |= {p.stem for p in (self.directory / MANIFESTS).glob(f"{kind}_*.json")}
        return {*filter(_NAME.fullmatch, found)}

    def _unfinished(self, name: str) -> bool:
        """Whether its save was begun and has not come to its end, or never did."""
        try:
            return read_json(self._manifest(name), None) == UNFINISHED
        except (ValueError, IsADirectoryError):
            return False

    def _manifest(self, name: str) -> Any:
        return self.directory / MANIFESTS / f"{name}.json"

    def _write_manifest(self, name: str) -> None:
        self._manifest(name).parent.mkdir(exist_ok=True)
        files = manifest(self.directory / name, hashed=self.verify)
        write_json(self._manifest(name), {"files": files}, indent=1)

    def _save(self, name: str, tree: Any, then_drop: Sequence[str] = ()) -> None:
        path = self.directory / name
        with self._storage(name):
            if jax.process_index() == 0:
                self._manifest(name).parent.mkdir(parents=True, exist_ok=True)
                write_json(self._manifest(name), UNFINISHED)
            self.trusted.discard(name)
            with _how_written(tree):
                written = ocp.save_async(path, tree, overwrite=True)
        self._writing.append(self._writer.submit(self._finish, name, written, then_drop))
        if not self.background:
            self.wait()

    def _finish(self, name: str, written: Any, then_drop: Sequence[str]) -> None:
        with self._storage(name):
            self.first()
            written.result()
            if jax.process_index() == 0:
                self._write_manifest(name)
        self.drop(then_drop)

    def _restore(self, name: str, like: Any) -> Any:
        """`like`: arrays or ShapeDtypeStructs with shardings, the exact structure saved."""
        self.wait()
        path = self.directory / name
        if not path.is_dir() and self.unverified:
            raise FileNotFoundError(f"{path} is not there")
        self.check(name)
        _check_structure(path, self._metadata(name), like)
        with self._readable(name):
            return ocp.load(path, like)

    def _metadata(self, name: str) -> Any:
        with self._readable(name):
            return ocp.metadata(self.directory / name).metadata

    @contextlib.contextmanager
    def _storage(self, name: str) -> Iterator[None]:
        """A write that fails is an OSError with its path, and leaves no half-written files behind:
        they would take the room that the next attempt needs."""
        path = self.directory / name
        try:
            yield
        except Exception as error:
            if jax.process_index() == 0:  # others may still write, or have come to their end
                for rest in [path, *path.parent.glob(f"{path.name}.orbax-checkpoint-tmp*")]:
                    _remove(rest)
            if isinstance(error, OSError):
                code, what = error.errno or errno.EIO, error.strerror or error
                raise OSError(code, f"{what}, while saving", str(path)) from error
            full = re.search(r"No space left|quota|RESOURCE_EXHAUSTED", str(error), re.IGNORECASE)
            if not full:
                raise
            code = errno.EDQUOT if "quota" in full[0].lower() else errno.ENOSPC
            raise OSError(code, f"{os.strerror(code)}, while saving", str(path)) from error

    @contextlib.contextmanager
    def _readable(self, name: str) -> Iterator[None]:
        """Where there is no manifest, or no hash in it, damage shows only here."""
        try:
            yield
        except Exception as error:
            if "RESOURCE_EXHAUSTED" in str(error):  # the state is whole, and finds no room
                raise
            first = str(error).strip().split("\n")[0][:300]
            raise Damaged(f"{self.directory / name} cannot be read: {first}") from error


def _how_written(tree: Any) -> ocp.Context:
    """Within a `with` block orbax writes so much at a time: what it is about to write lies beside
    the state itself, once more. What several devices hold is divided among them only where that
    divides it among processes: to cut it takes a program for each shape."""
    context = ocp.Context()
    context.asynchronous.timeout_secs = _PATIENCE
    context.array.saving.use_replica_parallel = jax.process_count() > 1
    largest = max((getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(tree)), default=0)
    context.memory.write_concurrent_bytes = max(_AT_ONCE, 2 * largest)  # one array has to fit
    return context


def _remove(folder: Any) -> None:
    if isinstance(folder, pathlib.Path):
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists():
        folder.rmtree()


def _check_structure(path, saved, like) -> None:
    """Orbax silently skips what the template lacks; a resume must not lose anything."""

    found, expected = _shapes(saved), _shapes(like)
    if found != expected:
        keys = sorted(found.keys() | expected.keys())
        differing = [k for k in keys if found.get(k) != expected.get(k)]
        lines = [f"{k}: found {found.get(k)}, expected {expected.get(k)}" for k in differing[:20]]
        raise ValueError(
            f"{path} was saved with another model or optimizer; use a new workdir, or the config "
            "of that run:\n  " + "\n  ".join(lines)
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(k, simple=True, separator="/"): tuple(a.shape) for k, a in leaves}
