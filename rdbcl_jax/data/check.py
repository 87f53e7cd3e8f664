"""Records looked at as a run will read them, long before it does, and known again: by the stamps of
their files as a whole, else one by one by what they hold."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL.Image import Image

from rdbcl_jax.batches import measured
from rdbcl_jax.data.indexed import Facts, Records
from rdbcl_jax.data.pictures import Stored
from rdbcl_jax.data.prompts import PromptEncoder
from rdbcl_jax.data.records import Record, header_problem, load_images
from rdbcl_jax.data.waiting import in_threads, shown
from rdbcl_jax.integrity import code_hash
from rdbcl_jax.json_files import read_json
from rdbcl_jax.messages import line_of
from rdbcl_jax.remote import cache_folder
from rdbcl_jax.rewards.verifiers import get_verifier

Level = Literal["full", "headers"]
SIZES = ("prompt_lengths", "patch_slots", "images_per_prompt")
_BYTES = 16  # of a digest


@dataclasses.dataclass(frozen=True)
class Check:
    """How records are looked at.

    Attributes:
      level: "headers": questions, gold answers, and the headers of pictures; "full": pictures are
        decoded too, and prompts encoded, where there is an encoder.
      encoder: makes one, once a record of a file is there; None: of a model that is not known.
      key: names all that the encoder depends on but sizes; empty: nothing is kept.
      sizes: those that batches may have, by their names in `SIZES`; any where there are none.
    """

    level: Level = "full"
    encoder: Callable[[], PromptEncoder] | None = None
    key: Callable[[], str] = str
    sizes: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)

    def allows(self, needs: Sequence[int]) -> bool:
        """Whether a batch may have all that a record needs."""
        allowed = [self.sizes.get(name) for name in SIZES]
        return all(not own or need <= max(own) for own, need in zip(allowed, needs, strict=True))


HEADERS = Check("headers")


def examine(
    records: Records,
    check: Check,
    *,
    task: str,
    source: str,
    root: str | Path = "",
    problems: list[str] | None = None,
    settings: str | None = None,
) -> Records:
    """Looks at all records, or knows them again.

    Args:
      task, source: what they are called.
      root: the directory in which all images lie; empty: that of the file that names them.
      problems: where given, records that are wrong are left out, and what is wrong with each is
        appended.
      settings: all that the records depend on besides the files; None: nothing is kept.
    Returns:
      Those that are good, with the facts.

    Raises:
      ValueError: a record is wrong, and there are no `problems`; none is left.
    """
    kept = _Kept(check, settings, records)
    found = kept.read()
    if found is None:
        found, stamps = _looked_at(records, check, task, root)
        kept.write(found, stamps)
    if found.problems and problems is None:
        more = len(found.problems) - 1
        hint = f" (and {more} more: rdbcl check lists all)" if more else ""
        raise ValueError(found.problems[0] + hint)
    if problems is not None:
        problems += found.problems
    if not len(found.rows):
        first = found.problems[:1]
        reason = f" that can be used; the first: {first[0]}" if first else ""
        raise ValueError(f"{source}: holds no records{reason}")
    return Records(records.source, records.make, found.rows, found.facts)


# --- looking -------------------------------------------------------------------------------------


class _Found(NamedTuple):
    rows: np.ndarray  # of the good records
    problems: list[str]
    facts: Facts


class _Seen(NamedTuple):
    """What one look at a record found.

    Attributes:
      problem: empty: it is good.
      id, where: its own.
      ours: the code that read its gold answer is a part of this package.
      said: all that it says, its images by name and size, or content.
      digest: of all that its encoding depends on; empty: that was not read.
      files: that hold its images.
      needs: sizes of batches, in the order of `SIZES`.
      asked: tells its question and pictures from others.
      verifier: judges it.
    """

    problem: str = ""
    id: str = ""
    where: str = ""
    ours: bool = True
    said: str = ""
    digest: bytes = b""
    files: tuple[str, ...] = ()
    needs: tuple[int, ...] = (0, 0, 0)
    asked: int = 0
    verifier: str = ""


def _looked_at(
    records: Records, check: Check, task: str, root: str | Path
) -> tuple[_Found, list[str] | None]:
    """What was found, and the files that hold pictures; None: by a verifier whose code may change
    without a sign, so that nothing is to be kept."""
    known = _Known(check.key() if len(records) and check.level == "full" else "")
    encoder = check.encoder() if check.encoder and len(records) else None
    if encoder and check.level == "full":
        _first_call(records, encoder)
    look = functools.partial(_look, records, check, encoder, known, root)
    seen = shown(in_threads(look, records.rows), len(records), f"checking {task!r}")
    good, problems, needs = [], list[str](), set[tuple[int, ...]]()
    asked, verifiers = list[int](), set[str]()
    ids: dict[str, str] = {}
    files: dict[str, None] = {}
    said, held, ours = hashlib.sha256(), hashlib.sha256(), True
    for row, one in zip(records.rows, seen, strict=True):
        files |= dict.fromkeys(one.files)
        problem = one.problem
        if not problem and one.id in ids:
            problem = (
                f"{one.where}: id {one.id!r} was already used at {ids[one.id]}; give each record "
                "its own id, or none of them"
            )
        if problem:
            problems.append(problem)
            continue
        ids[one.id] = one.where
        good.append(int(row))
        asked.append(one.asked)
        verifiers.add(one.verifier)
        needs.add(one.needs)
        said.update(one.said.encode())
        held.update(one.digest)
        known.add(one.digest, one.needs)
        ours = ours and one.ours
    known.write()
    digest = f"{len(good)} records, {said.hexdigest()[:16]}"
    if files and check.level == "full":
        digest += f", pictures {held.hexdigest()[:16]}"
    sizes = {name: sorted({need[k] for need in needs}) for k, name in enumerate(SIZES)}
    measures = SIZES if encoder and check.level == "full" else SIZES[2:]
    needed = {name: sizes[name] for name in measures}
    facts = Facts(digest, needed, asked, sorted(verifiers))
    return _Found(np.array(good, np.int64), problems, facts), [*files] if ours else None


def _first_call(records: Records, encoder: PromptEncoder) -> None:
    """A tokenizer is set up by its first call, and by one thread."""
    for row in records.rows[:8]:
        try:
            encoder.encode([records.make(records.source[int(row)])])
            return
        except Exception:  # found again, and said, when it is looked at
            continue


def _look(
    records: Records,
    check: Check,
    encoder: PromptEncoder | None,
    known: _Known,
    root: str | Path,
    number: int,
) -> _Seen:
    row = records.source[int(number)]
    try:
        record = records.make(row)
    except ValueError as error:
        return _Seen(str(error))
    files = tuple(file for image in record.images if (file := _file(image)))
    if problem := header_problem(record, root or row.folder):
        return _Seen(problem, files=files)
    digest, needs = b"", tuple[int, ...]((0, 0, len(record.images)))
    if check.level == "full":
        digest = _digest(record)
        needs = known.needs.get(digest, ())
        if not needs or not check.allows(needs):
            problem, needs = _read(record, encoder)
    elif encoder:
        problem = _problem(record, lambda: encoder.check([record]))
    ours = get_verifier(record.verifier).prepare.__module__.startswith("rdbcl_jax.")
    said = says(record)
    asked = _number(digest or repr((record.system, record.prompt, _places(record))).encode())
    judge = record.verifier
    return _Seen(problem, record.id, record.where, ours, said, digest, files, needs, asked, judge)


def _number(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())


def _read(record: Record, encoder: PromptEncoder | None) -> tuple[str, tuple[int, ...]]:
    """What is wrong with it, and what it needs."""
    with measured() as sizes:
        read = (lambda: encoder.encode([record])) if encoder else (lambda: load_images(record))
        problem = _problem(record, read)
    return problem, (*(sizes.get(name, 0) for name in SIZES[:2]), len(record.images))


def _problem(record: Record, read: Callable[[], Any]) -> str:
    try:
        read()
    except Exception as error:  # whatever it is, it would end a run
        text = line_of(error)
        named = text.startswith(f"record {record.id!r}")
        return f"{record.where}: {text}" if named else f"{record.where} (id {record.id!r}): {text}"
    return ""


def says(record: Record) -> str:
    """All that a record says, and what tells its images from others: what stands in the row is
    read; a file has its name and size."""
    parts: tuple = (record.id, record.prompt, record.answer, record.verifier, record.system)
    parts += (record.answers,) if record.answers else ()
    images: list[Any] = []
    for image in record.images:
        if isinstance(image, Image):
            images.append((image.size, image.mode, zlib.crc32(image.tobytes())))
        elif file := _file(image):
            path = Path(file)
            place = (image.row, image.column, image.position) if isinstance(image, Stored) else ()
            images.append((path.name, path.stat().st_size if path.exists() else None, *place))
        else:
            images.append(hashlib.sha256(_content(image)).hexdigest())
    return repr((parts, record.columns, images))


def _places(record: Record) -> list[str]:
    """Where its images are, or what they hold."""

    def place(image: Any) -> str:
        if isinstance(image, Image):
            return repr(image)  # is no other
        if _file(image):
            return os.path.abspath(str(image))
        return hashlib.sha256(_content(image)).hexdigest()

    return [*map(place, record.images)]


def digest_of(records: Sequence[Record]) -> str:
    """Tells these records from others; those of a source were read when they were looked at."""
    if isinstance(records, Records) and records.facts and records.facts.digest:
        return records.facts.digest
    digest = hashlib.sha256()
    for record in records:
        digest.update(says(record).encode())
    return f"{len(records)} records, {digest.hexdigest()[:16]}"


def _file(image: Any) -> str:
    """The file that holds it; empty: it is held here, or in its row."""
    image = image.path if isinstance(image, Stored) else image
    return str(image) if isinstance(image, Path) else ""


def _content(image: Any) -> bytes:
    return image if isinstance(image, bytes) else image.read_bytes()


def _digest(record: Record) -> bytes:
    """Of all that its encoding depends on; empty where that cannot be read."""
    content = hashlib.blake2b(digest_size=_BYTES)
    content.update(repr((record.system, record.prompt, len(record.images))).encode())
    for image in record.images:
        if isinstance(image, Image):
            return b""  # of a suite
        try:
            content.update(hashlib.blake2b(_content(image)).digest())
        except (OSError, ValueError):
            return b""
    return content.digest()


# --- what is kept --------------------------------------------------------------------------------


class _Known:
    """Digests of records that were good, with what they need, in a file of their own for each key.
    The file is a help and no more: without it, or where it cannot be written, all is read again."""

    _ENTRY = np.dtype([("digest", f"V{_BYTES}"), ("needs", np.int32, len(SIZES))])

    def __init__(self, key: str):
        self.file = cache_folder() / "records" / key if key else None
        self.needs: dict[bytes, tuple[int, ...]] = {}
        if self.file and self.file.is_file():
            content = self.file.read_bytes()
            whole = len(content) // self._ENTRY.itemsize * self._ENTRY.itemsize
            for digest, needs in np.frombuffer(content[:whole], self._ENTRY):
                self.needs[bytes(digest)] = tuple(needs.tolist())
        self.before = len(self.needs)

    def add(self, digest: bytes, needs: tuple[int, ...]) -> None:
        if digest and self.file:
            self.needs[digest] = needs

    def write(self) -> None:
        if self.file and len(self.needs) > self.before:
            entries = np.array([*self.needs.items()], self._ENTRY)
            _replace(self.file, lambda draft: draft.write_bytes(entries.tobytes()))


class _Kept:
    """What was found of all records of a source, in a file of its own. It stands as long as no file
    that was read has another size or time."""

    def __init__(self, check: Check, settings: str | None, records: Records):
        self.file: Path | None = None
        self.files = [str(file) for file in records.source.files]
        key = check.key() if settings is not None and len(records) else ""
        if key:
            version = records.source.version
            how = (key, check.level, sorted(check.sizes.items()), settings)
            parts = (*how, version, [*map(os.path.abspath, self.files)])
            name = hashlib.sha256(repr((parts, code_hash())).encode()).hexdigest()[:32]
            self.file = cache_folder() / "sources" / f"{name}.json"

    def read(self) -> _Found | None:
        if not self.file:
            return None
        try:
            held = read_json(self.file, None)
            if not held or held["stamps"] != _stamps(held["files"]):
                return None
            facts = Facts(held["digest"], held["needs"], held["asked"], held["verifiers"])
            return _Found(np.array(held["rows"], np.int64), held["problems"], facts)
        except (OSError, ValueError, LookupError, TypeError):  # damaged, or no file of ours
            return None

    def write(self, found: _Found, pictures: list[str] | None) -> None:
        """Keeps it; `pictures`: the files that hold some. None: it is not to be kept."""
        if not self.file or pictures is None:
            return
        files = [*self.files, *pictures]
        held = {
            "rows": found.rows.tolist(),
            "problems": found.problems,
            "stamps": _stamps(files),
            "files": files,
            **dataclasses.asdict(found.facts),
        }
        _replace(self.file, lambda draft: draft.write_text(json.dumps(held)))


def _stamps(files: Sequence[str]) -> list[list[int]]:
    """Size, and times of the last change of content and of anything, of each file; none: empty."""

    def stamp(file: str) -> list[int]:
        try:
            found = os.stat(file)
        except (OSError, ValueError):
            return []
        return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]

    def of_part(start: int) -> list[list[int]]:
        return [stamp(file) for file in files[start : start + 1000]]

    return [one for part in in_threads(of_part, range(0, len(files), 1000)) for one in part]


def _replace(file: Path, write: Callable[[Path], Any]) -> None:
    """Writes a file in one move, if it can be."""
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write(draft)
        draft.replace(file)
    except OSError:
        draft.unlink(missing_ok=True)
