"""Records read as a run will read them, long before it does: pictures decoded and resized, prompts
encoded and measured against the sizes allowed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL.Image import Image

from rdbcl_jax.data.prompts import PromptEncoder
from rdbcl_jax.data.records import Record, load_images
from rdbcl_jax.data.values import line_of
from rdbcl_jax.data.waiting import shown

Check = Callable[[Sequence[Record]], list[Record | str]]  # or what is wrong with it
_BYTES = 16  # of a digest


def check_records(
    records: Sequence[Record], encoder: PromptEncoder | None = None, key: str = ""
) -> list[Record | str]:
    """Reads each record as training will, in threads.

    Records that were good are known again by their content: their digests are kept in a file in
    `cache_folder()`. Records that a suite has made are taken as they are.

    Args:
      encoder: None: images are decoded, and that is all.
      key: names all that the encoder depends on; empty: nothing is kept.
    Returns:
      Each record, or what is wrong with it, in one line that says where it is.
    """
    if encoder:
        _problem(records[0], encoder)  # a tokenizer is set up by its first call, and by one thread
    known = _Known(key)

    def check(record: Record) -> tuple[str, bytes]:
        if not record.where:
            return "", b""
        digest = _digest(record) if key else b""
        if digest and digest in known.digests:
            return "", b""
        problem = _problem(record, encoder)
        return problem, b"" if problem else digest

    with ThreadPoolExecutor() as pool:
        what = f"checking {records[0].task!r}"
        found = [*shown(pool.map(check, records), len(records), what)]
    known.add(digest for _, digest in found if digest)
    return [problem or record for record, (problem, _) in zip(records, found, strict=True)]


def cache_folder() -> Path:
    """$RDBCL_CACHE_DIR, else `rdbcl_jax` in the user's cache directory."""
    if own := os.environ.get("RDBCL_CACHE_DIR"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rdbcl_jax"


def _problem(record: Record, encoder: PromptEncoder | None) -> str:
    try:
        if encoder is None:
            load_images(record)
        else:
            encoder.encode([record])
    except Exception as error:  # whatever it is, it would end a run
        text = line_of(error)
        named = text.startswith(f"record {record.id!r}")
        return f"{record.where}: {text}" if named else f"{record.where} (id {record.id!r}): {text}"
    return ""


def _digest(record: Record) -> bytes:
    """Of all that its encoding depends on; empty where that cannot be read."""
    content = hashlib.blake2b(digest_size=_BYTES)
    content.update(repr((record.system, record.prompt, len(record.images))).encode())
    for image in record.images:
        if isinstance(image, Image):
            return b""  # of a suite
        try:
            raw = image.read_bytes() if isinstance(image, Path) else image
        except OSError:
            return b""
        content.update(hashlib.blake2b(raw).digest())
    return content.digest()


class _Known:
    """Digests of records that were good, in a file of their own for each key. The file is a help
    and no more: without it, or where it cannot be written, all is checked again."""

    def __init__(self, key: str):
        self.file = cache_folder() / "checked" / key if key else None
        content = b""
        if self.file and self.file.is_file():
            content = self.file.read_bytes()
        starts = range(0, len(content) - _BYTES + 1, _BYTES)
        self.digests = {content[start : start + _BYTES] for start in starts}

    def add(self, digests: Iterable[bytes]) -> None:
        new = {*digests} - self.digests
        if not self.file or not new:
            return
        draft = self.file.with_name(f"{self.file.name}.{os.getpid()}")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(b"".join(sorted(self.digests | new)))
            draft.replace(self.file)
        except OSError:
            draft.unlink(missing_ok=True)
