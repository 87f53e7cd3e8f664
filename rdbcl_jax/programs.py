"""Compiled programs, kept between runs: one that was compiled here before is read from disk."""

from __future__ import annotations

import hashlib
import os
import pathlib
import tempfile

import jax

from rdbcl_jax.remote import cache_folder

OFF = "off"
_LEAST_SECONDS = 0.2  # programs that compile faster are not kept
_MOST_BYTES = 4 * 2**30  # then those go that were read longest ago
_TIMES = "-atime"  # of the file that says when one was last read


def keep(folder: str | pathlib.Path = "") -> str:
    """From here on, compiled programs are kept in a folder; `OFF`: they are not; empty: in
    `programs` of the user's cache folder. JAX's own setting (JAX_COMPILATION_CACHE_DIR) stands.

    The command line calls this, with `--compilation-cache`; `train` does not, since JAX's settings
    are those of the program that calls it.

    Every kind of processor, and number of cores, has a folder of its own in there: XLA makes other
    programs for them, whose last bits differ, and does not tell them apart when it looks for one.

    Returns:
      Why they are not kept, in a line, where the folder cannot be written to; else nothing.
    """
    own = jax.config.values["jax_compilation_cache_dir"]
    if folder == OFF and not own:
        return ""
    place = own or pathlib.Path(folder or cache_folder() / "programs").expanduser() / _machine()
    if why := _unusable(str(place)):
        jax.config.update("jax_compilation_cache_dir", None)
        return f"compiled programs are not kept: {why}"
    if not own:
        jax.config.update("jax_compilation_cache_dir", str(place))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
        jax.config.update("jax_compilation_cache_max_size", _MOST_BYTES)
    return ""


def forget(name: str) -> bool:
    """Removes the kept program of that name which was looked up last, as JAX cannot read it: it
    would compile it anew in each run, and never replace it. False: there is none, or nothing says
    which was the last."""
    folder = pathlib.Path(jax.config.values["jax_compilation_cache_dir"] or "")
    try:  # JAX notes the time beside each, where the folder's size is limited
        last = max(folder.glob(f"{name}-*{_TIMES}"), key=lambda file: file.stat().st_mtime_ns)
        last.with_name(last.name.removesuffix(_TIMES) + "-cache").unlink()
        last.unlink()
    except (OSError, ValueError):
        return False
    return True


def _unusable(place: str) -> str:
    """Why nothing can be written to a folder of this machine, which is made; empty: it can be."""
    if "://" in place:
        return ""
    try:
        pathlib.Path(place).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return ""
    except OSError as error:
        return f"{place}: {error.strerror}"


def _machine() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    digest = hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:8]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{digest}-{cores}-cores"
