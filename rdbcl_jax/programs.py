"""Compiled programs, kept between runs: one that was compiled here before is read from disk."""

from __future__ import annotations

import hashlib
import os
import pathlib

import jax

OFF = "off"
_LEAST_SECONDS = 0.2  # programs that compile faster are not kept
_MOST_BYTES = 4 * 2**30  # then those go that were read longest ago


def keep(folder: str | pathlib.Path) -> None:
    """From here on, compiled programs are kept in a folder; `OFF`: they are not, if it is not
    JAX's own setting (JAX_COMPILATION_CACHE_DIR), which stands.

    Every kind of processor, and number of cores, has a folder of its own in there: XLA makes other
    programs for them, whose last bits differ, and does not tell them apart when it looks for one.
    """
    if folder == OFF or jax.config.values["jax_compilation_cache_dir"]:
        return
    place = pathlib.Path(folder).expanduser() / _machine()
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    jax.config.update("jax_compilation_cache_max_size", _MOST_BYTES)


def _machine() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    digest = hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:8]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{digest}-{cores}-cores"
