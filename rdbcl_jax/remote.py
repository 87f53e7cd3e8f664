"""What lies on gs://: read and written through etils.epath.

    gs://BUCKET/runs/a     a workdir: `Store`. Checkpoints are written there; everything else to a
                           folder of this machine, which is brought up to date there
    gs://BUCKET/model      a model, a data set: `local`, a copy in the cache, of what has changed
                           since. A picture is copied when it is looked at: `fetched`

Whatever maps a file into memory, appends to it or locks it needs one of this machine's.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

SCHEME = "gs://"
_DRAFT, _DEAD = ".draft", 3600.0  # seconds after which a draft that nobody writes is a dead one's
# pictures, of which a data set may hold more than a disk does
_LAZY = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


class Stat(NamedTuple):
    size: int  # bytes
    changed: int  # seconds since 1970


def is_remote(name: str | os.PathLike) -> bool:
    """Raises ValueError for any other place than gs:// and this machine's files."""
    text = os.fspath(name)
    scheme, there, _ = text.partition("://")
    if there and scheme.isalnum() and f"{scheme}://" != SCHEME:
        raise ValueError(f"{text}: expected a file of this machine, or {SCHEME}BUCKET/…")
    return text.startswith(SCHEME)


def at(name: str | os.PathLike) -> Any:
    """A path: pathlib's, or etils.epath's, which has the same methods as far as they are used."""
    return _epath()(os.fspath(name)) if is_remote(name) else Path(name)


def _epath() -> Any:
    try:
        import fsspec
        import gcsfs  # noqa: F401
        from etils import epath
    except ImportError as error:
        raise ImportError(
            f"{SCHEME} needs the extra gs ({error}): pip install 'rdbcl_jax[gs]'"
        ) from None
    # others write there as well: what was listed once may be another by now
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.Path


def cache_folder() -> Path:
    """$RDBCL_CACHE_DIR, else `rdbcl_jax` in the user's cache directory."""
    if own := os.environ.get("RDBCL_CACHE_DIR"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rdbcl_jax"


def files_below(folder: Any) -> dict[str, Stat]:
    """Of each file, by its name from there on: size and time of the last change."""
    return {name: _stat(folder / name) for name in _names_below(folder)}


def _names_below(folder: Any) -> list[str]:
    if isinstance(folder, Path):
        return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    top = str(folder).removeprefix(SCHEME).rstrip("/")
    names = (
        f"{root}/{name}".removeprefix(SCHEME).removeprefix(f"{top}/")
        for root, _, files in folder.walk()
        for name in files
    )
    return sorted(filter(None, names))


def _stat(path: Any) -> Stat:
    found = path.stat()
    if isinstance(path, Path):
        return Stat(found.st_size, int(found.st_mtime))
    return Stat(found.length, found.mtime)


# ---------------------------------------------------------------------- models and data


def copy_of(name: str | os.PathLike) -> Path:
    """Where the copy lies, whether it is there or not. What is no `gs://` is its own."""
    if not is_remote(name):
        return Path(name)
    return _copies() / os.fspath(name).removeprefix(SCHEME)


def _copies() -> Path:
    return cache_folder().absolute() / "gs"


def local(name: str | os.PathLike, *, pictures: bool = True) -> Path:
    """A file, a folder or a pattern (`*` in a file's name) as this machine has it: itself, or its
    copy, brought up to date. What is not there has none, and its path is returned all the same.

    Args:
      pictures: copies them as well.
    Raises:
      OSError: the disk has too little room.
    """
    if not is_remote(name):
        return Path(name)
    there, here = at(name), copy_of(name)
    if any(mark in there.name for mark in "*?["):
        for file in there.parent.iterdir():
            if fnmatch.fnmatch(file.name, there.name):
                _fetch(file, here.parent / file.name, _stat(file))
    elif there.is_dir():
        names = _names_below(there)
        kept = [file for file in names if pictures or not file.lower().endswith(_LAZY)]
        wanted = {file: _stat(there / file) for file in kept}
        here.mkdir(parents=True, exist_ok=True)
        for file in {*_names_below(here)} - {*names}:  # gone there
            if not _is_being_written(here / file):
                (here / file).unlink(missing_ok=True)
        _check_room(here, sum(stat.size for stat in wanted.values()), os.fspath(name))
        for file, stat in wanted.items():
            _fetch(there / file, here / file, stat)
    elif there.exists():
        _fetch(there, here, _stat(there))
    return here


def fetched(path: Path) -> bool:
    """Whether a path below the copies stands for a file that is there; it is copied then."""
    copies = _copies()
    if not path.is_relative_to(copies):
        return False
    there = at(SCHEME + str(path.relative_to(copies)))
    if not there.exists() or there.is_dir():
        return False
    _fetch(there, path, _stat(there))
    return True


def _check_room(folder: Path, needed: int, name: str) -> None:
    there = sum(stat.size for stat in files_below(folder).values())
    free = shutil.disk_usage(folder).free
    if needed - there > free:
        raise OSError(
            f"{name} has {needed / 1e9:.1f} GB, and where its copy goes, {folder}, "
            f"{free / 1e9:.1f} GB are free; set RDBCL_CACHE_DIR to a larger disk"
        )


def _is_being_written(file: Path) -> bool:
    """Whether it is a draft of another process that shares the copies, and no dead one's."""
    with contextlib.suppress(FileNotFoundError):
        return file.name.endswith(_DRAFT) and time.time() - file.stat().st_mtime < _DEAD
    return False


def _fetch(there: Any, here: Path, stat: Stat) -> None:
    """Copies a file in one move, unless the copy is that already."""
    with contextlib.suppress(FileNotFoundError):
        if _stat(here) == stat:
            return
    here.parent.mkdir(parents=True, exist_ok=True)
    own = f"{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}"
    draft = here.with_name(f"{here.name}.{own}{_DRAFT}")
    try:
        with there.open("rb") as source, draft.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 24)
        os.utime(draft, (stat.changed, stat.changed))
        draft.replace(here)
    finally:
        draft.unlink(missing_ok=True)


# ---------------------------------------------------------------------- a workdir


class Store:
    """A workdir, for as long as a `with` block lasts.

    Attributes:
      name: as it was given; checkpoints are written there.
      local: where everything else is read and written: the workdir itself, or, of one on gs://, a
        folder of this machine that is made for the while, one a process.
    """

    BEAT = 60.0  # seconds between bringing what lies there up to date

    def __init__(self, name: str | os.PathLike):
        self.name = os.fspath(name)
        self.there = at(name) if is_remote(name) else None
        self.local = Path(name)
        self._known: dict[str, tuple[int, int]] = {}  # size and time of what is the same there
        self._mine = True
        self._lock, self._over = threading.Lock(), threading.Event()

    def __enter__(self) -> Store:
        if self.there is not None:
            self.local = Path(tempfile.mkdtemp(prefix="rdbcl-"))
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self.there is not None:
            self._over.set()
            if isinstance(error, ValueError | OSError):  # name the workdir, and not its stand-in
                error.args = tuple(self._named(part) for part in error.args)
                if isinstance(error, OSError):
                    error.filename = self._named(error.filename)
            try:
                self.push()
            except Exception as failed:
                failed.add_note(f"what could not be brought to {self.name} is in {self.local}")
                raise
            shutil.rmtree(self.local, ignore_errors=True)

    def pull(self, *, but: tuple[str, ...] = ("checkpoints/", "run.lock")) -> None:
        """Copies what is there, for those who hold its lock: from then on it is kept up to date."""
        if self.there is None:
            return
        for file, stat in files_below(self.there).items():
            if not file.startswith(but):
                _fetch(self.there / file, self.local / file, stat)
        self._known = self._here()

    def keep_up(self) -> None:
        """Brings what is there up to date from time to time."""
        if self.there is not None:
            threading.Thread(target=self._beat, daemon=True).start()

    def let_go(self) -> None:
        """Nothing is brought there any more: somebody else has it."""
        self._mine = False

    def push(self) -> None:
        """Brings what is there up to date: a new file is written before an old one is removed."""
        if self.there is None or not self._mine:
            return
        with self._lock:
            now = self._here()
            for file, stamp in now.items():
                if self._known.get(file) != stamp:
                    with contextlib.suppress(FileNotFoundError):  # replaced by another meanwhile
                        content = (self.local / file).read_bytes()
                        (self.there / file).write_bytes(content)
            for file in self._known.keys() - now.keys():
                (self.there / file).unlink(missing_ok=True)
            self._known = now

    def _named(self, text: Any) -> Any:
        return text.replace(str(self.local), self.name) if isinstance(text, str) else text

    def _here(self) -> dict[str, tuple[int, int]]:
        found = {}
        for path in self.local.rglob("*"):
            if path.suffix != ".tmp" and path.name != "run.lock":
                with contextlib.suppress(FileNotFoundError):
                    stat = path.stat()
                    if path.is_file():
                        found[str(path.relative_to(self.local))] = stat.st_size, stat.st_mtime_ns
        return found

    def _beat(self) -> None:
        while not self._over.wait(self.BEAT):
            with contextlib.suppress(Exception):  # a save tries again, and says why
                self.push()


@contextlib.contextmanager
def opened(name: str | os.PathLike) -> Iterator[Path]:
    """A finished run's workdir, without its checkpoints. What is written to it is kept.

    Raises:
      FileNotFoundError: on gs:// there is none.
    """
    if not is_remote(name):
        yield Path(name)
        return
    if not at(name).is_dir():
        raise FileNotFoundError(f"{name}: there is no such folder")
    with Store(name) as store:
        store.pull()
        yield store.local


def of_this_machine(name: str | os.PathLike, what: str) -> Path:
    """Raises ValueError for what is on gs:// and cannot be."""
    if is_remote(name):
        raise ValueError(f"{name}: {what} is written to a folder of this machine, expected one")
    return Path(name)
