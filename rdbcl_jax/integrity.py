"""Whether files are what they were: their sizes and SHA-256, and what differs from those."""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rdbcl_jax.json_files import read_object
from rdbcl_jax.remote import at, files_below

Manifest = Mapping[str, Sequence]  # file, relative: (bytes, SHA-256 or None where it was left out)

_THREADS = 4  # hashing releases the interpreter


def manifest(
    directory: pathlib.Path, patterns: Sequence[str] = ("**/*",), *, hashed: bool = True
) -> dict[str, tuple[int, str | None]]:
    """Of the files below a directory that fit one of the patterns. `hashed=False`: sizes alone."""
    sizes = files_below(directory)
    if isinstance(directory, pathlib.Path):
        fitting = {p for pattern in patterns for p in directory.glob(pattern)}
        sizes = {name: size for name, size in sizes.items() if directory / name in fitting}
    digests = _hashes([directory / name for name in sizes]) if hashed else [None] * len(sizes)
    return {name: (sizes[name].size, digest) for name, digest in zip(sizes, digests, strict=True)}


def read_manifest(file: pathlib.Path) -> Manifest:
    """What a file of ours lists under "files".

    Raises:
      ValueError: it lists none, or not as `manifest` does.
      FileNotFoundError: there is no file.
    """
    saved: Any = read_object(file).get("files")
    if not is_manifest(saved):
        raise ValueError(f"{file} is damaged, it does not list files with their sizes and hashes")
    return saved


def is_manifest(saved: Any) -> bool:
    """Whether what JSON holds is one."""
    if not isinstance(saved, Mapping):
        return False
    entries = [entry for entry in saved.values() if isinstance(entry, list) and len(entry) == 2]
    fits = all(isinstance(n, int) and isinstance(h, str | None) for n, h in entries)
    return fits and len(entries) == len(saved)


def damage(directory: pathlib.Path, saved: Manifest, *, hashed: bool = True) -> str:
    """The first file that is not as its manifest says, and what is wrong with it; empty: none.
    Sizes are compared first: they cost nothing. Files that the manifest does not name may be there.
    """
    if not directory.is_dir():
        return "is not there"
    there = files_below(directory)
    for name, (size, _) in saved.items():
        if name not in there:
            return f"{name} is not there"
        if (found := there[name].size) != size:
            return f"{name} has {found:,} bytes, expected {size:,}"
    known = {name: digest for name, (_, digest) in saved.items() if digest and hashed}
    now = _hashes([directory / name for name in known])
    for (name, expected), digest in zip(known.items(), now, strict=True):
        if digest != expected:
            return f"{name} is damaged: its SHA-256 is {digest[:12]}…, expected {expected[:12]}…"
    return ""


def _hashes(files: Sequence[pathlib.Path]) -> list[str]:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(file_hash, files))


@functools.cache
def code_hash() -> str:
    """SHA-256 of this package's own files, by their names: other code may find other things."""
    digest, root = hashlib.sha256(), pathlib.Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)} {file_hash(path)}".encode())
    return digest.hexdigest()


def file_hash(path: str | os.PathLike) -> str:
    """SHA-256 of a file's content."""
    with at(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
