"""One workdir, one run: a lock that a killed owner does not leave behind.

The kernel holds it, and gives it back when the owner ends, however that was; on network file
systems it does so between hosts. Where one does not, the file's time tells: the owner touches it
every few seconds, and an owner on another host is taken for dead once it no longer does. On gs://
there are no locks at all: the time alone tells, and a newcomer looks twice whose name stands there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
from typing import Any, TextIO

from rdbcl_jax.json_files import parse_json
from rdbcl_jax.remote import at, is_remote

FILE = "run.lock"
_BEAT, _DEAD = 10.0, 60.0  # seconds between touches, and without one
_TAKEN = (errno.EACCES, errno.EAGAIN)  # what the kernel says of a file that another has locked
_OWN: set[pathlib.Path] = set()  # locks of this process


class Held(ValueError):
    """Another process has the workdir; the message says which."""


def is_held(workdir: pathlib.Path) -> bool:
    """Whether a process has the workdir, this one too. The kernel knows, of one that was killed a
    moment ago too; where it does not, the owner's sign of life is fresh."""
    return _holder(workdir) is not None


def _holder(workdir: pathlib.Path) -> dict[str, Any] | None:
    """What is known of the process that has the workdir; None: `is_held` by none."""
    path = (workdir / FILE).absolute()
    if path in _OWN:  # not opened: to close it would give back this process's own lock
        return _this_process()
    try:
        with open(path, encoding="utf-8") as file:
            is_fresh = time.time() - os.fstat(file.fileno()).st_mtime < _DEAD
            owner = _owner(file)
            try:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # until the file is closed
            except OSError as error:
                held = error.errno in _TAKEN or (bool(owner) and is_fresh)
            else:
                here = socket.gethostname()
                held = owner.get("host", here) != here and is_fresh
            return owner if held else None
    except OSError:
        return None


def check_free(workdir: str | os.PathLike) -> None:
    """For one of several processes, before it joins the others: to join those of a run that goes on
    would end that run.

    Raises:
      Held: another process has the workdir.
    """
    if is_remote(workdir):
        RemoteLock(at(workdir)).check_free()
    elif (owner := _holder(pathlib.Path(workdir))) is not None:
        raise Held(_belongs(workdir, owner))


def is_seen(workdir: pathlib.Path, owner: dict[str, Any], seconds: float) -> bool:
    """Whether this process finds the owner that another wrote, within so many seconds: network file
    systems take some to tell."""
    until = time.monotonic() + seconds
    while True:
        with contextlib.suppress(FileNotFoundError), open(workdir / FILE, encoding="utf-8") as file:
            if _owner(file) == owner:
                return True
        if time.monotonic() > until:
            return False
        time.sleep(0.5)


class WorkdirLock:
    """Held within a `with` block.

    Raises:
      Held: by another process.
      OSError: the workdir cannot be made, or written to.
    """

    def __init__(self, workdir: pathlib.Path):
        self.workdir, self.path = workdir, workdir / FILE
        self.owner: dict[str, Any] = {}  # what stands in the file
        self._file: TextIO | None = None
        self._over = threading.Event()

    def __enter__(self) -> WorkdirLock:
        if self.workdir.exists() and not self.workdir.is_dir():
            raise NotADirectoryError(
                errno.ENOTDIR, "is a file, expected a directory", str(self.workdir)
            )
        self.workdir.mkdir(parents=True, exist_ok=True)
        file = open(self.path, "a+", encoding="utf-8")
        try:
            self._take(file)
        except BaseException:
            file.close()
            raise
        self._file = file
        _OWN.add(self.path.absolute())
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        _OWN.discard(self.path.absolute())
        if self._file:
            self._file.truncate(0)  # not removed: somebody may be waiting for this very file
            self._file.close()

    def _take(self, file: TextIO) -> None:
        held, known = False, True
        try:
            # POSIX: of the process, so that its children do not keep it alive
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (*_TAKEN, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            held = known = error.errno in _TAKEN
        owner = _owner(file)
        elsewhere = "host" in owner and owner["host"] != socket.gethostname()
        seen = time.time() - os.fstat(file.fileno()).st_mtime
        if held:
            raise Held(_belongs(self.workdir, owner))
        # the kernel tells of this host's processes, unless the file system has no locks
        if owner and (elsewhere or not (known or _has_ended(owner))) and seen < _DEAD:
            raise Held(_belongs(self.workdir, owner, seen))
        file.truncate(0)
        self.owner = _this_process()
        json.dump(self.owner, file)
        file.flush()

    def _beat(self) -> None:
        while not self._over.wait(_BEAT):
            try:
                os.utime(self.path)
            except FileNotFoundError:
                return  # removed by hand: nothing to keep alive
            except OSError:
                pass  # the next one may get through


class RemoteLock:
    """The same on gs://.

    Args:
      local: where the run keeps its files meanwhile: `is_held` there, too.
    Raises:
      Held: by another process.
    """

    SETTLED = 1.0  # seconds after which the last of several newcomers has written its name

    def __init__(self, workdir: Any, local: pathlib.Path | None = None):
        self.workdir, self.path = workdir, workdir / FILE
        self._here = {(local / FILE).absolute()} if local else set()
        self.owner = _this_process() | {"token": f"{time.time_ns():x}-{os.getpid()}"}
        self._over = threading.Event()

    def __enter__(self) -> RemoteLock:
        self.check_free()
        self._write(json.dumps(self.owner))
        time.sleep(self.SETTLED)
        self.check_free()
        _OWN.update(self._here)
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        _OWN.difference_update(self._here)
        if self._read() == self.owner:
            self._write("")

    def check_mine(self) -> None:
        """Raises Held where another run has taken the workdir meanwhile, which it may once this one
        has given no sign of life for a while."""
        if (owner := self._read()) and owner != self.owner:
            raise Held(f"{_belongs(self.workdir, owner)}: it has taken over this one's workdir")

    def check_free(self) -> None:
        """Raises Held where another has it; takes nothing."""
        owner = self._read()
        if not owner or owner == self.owner or _has_ended(owner):
            return
        seen = time.time() - self.path.stat().mtime
        if seen < _DEAD:
            raise Held(_belongs(self.workdir, owner, seen))

    def _read(self) -> dict[str, Any]:
        return _object(self.path.read_text()) if self.path.exists() else {}

    def _write(self, text: str) -> None:
        self.path.write_text(text)

    def _beat(self) -> None:
        while not self._over.wait(_BEAT):
            with contextlib.suppress(Exception):  # the next one may get through
                if self._read() == self.owner and not self._over.is_set():
                    self._write(json.dumps(self.owner))


def _belongs(workdir: Any, owner: dict[str, Any], seen: float | None = None) -> str:
    """What is said of a workdir that another has; `seen`: seconds since its last sign of life,
    where that is all that is known."""
    advice = "wait for it, stop it, or use another workdir"
    if seen is not None:
        advice += f" (its last sign of life was {seen:.0f} s ago; from {_DEAD:.0f} s on it is "
        advice += "taken for dead)"
    return (
        f"{workdir} belongs to another run: process {owner.get('pid', '?')} on "
        f"{owner.get('host', '?')}, since {owner.get('since', '?')}; {advice}"
    )


def _this_process() -> dict[str, Any]:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": since}


def _has_ended(owner: dict[str, Any]) -> bool:
    """Whether it was a process of this host that is no more."""
    pid = owner.get("pid")
    if owner.get("host") != socket.gethostname() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _owner(file: TextIO) -> dict[str, Any]:
    file.seek(0)
    return _object(file.read())


def _object(text: str) -> dict[str, Any]:
    try:
        found = parse_json(text or "{}")
    except ValueError:  # of a write that was cut short
        return {}
    return found if isinstance(found, dict) else {}
