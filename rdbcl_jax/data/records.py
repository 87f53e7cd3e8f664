"""Records: one verifiable question each, read from a source and checked at once.

`rdbcl_jax.data.conventions` says which columns are read as question, answer and images. All others
travel with the record and reach reward functions as keyword arguments. All but the bodies of images
is checked when read, long before anything compiles; `rdbcl_jax.data.check` decodes those too.

A list of answers means that any of them is right, but for verifiers whose gold answers are lists.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from rdbcl_jax.data import pictures
from rdbcl_jax.data.conventions import USED, asked
from rdbcl_jax.data.pictures import Picture
from rdbcl_jax.data.sources import Row, open_source, rows_of
from rdbcl_jax.data.values import line_of, short, written
from rdbcl_jax.data.waiting import shown
from rdbcl_jax.rewards.verifiers import get_verifier, is_imported

_GOLD_BLOCK = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Record:
    """One question with a verifiable answer.

    Attributes:
      id: unique among the records of a source.
      task: the name of its task.
      prompt: the question. It holds `<image>` once per image, or not at all: then images go first.
      images: as `load_images` reads them.
      answer: the gold answer, as the verifier parses it; of several the most frequent.
      verifier: its name, see `rdbcl_jax.rewards.verifiers`.
      columns: all else that was known, for reward functions and tables.
      system: the system message of a chat; empty without one.
      where: file and line, or row; empty for records that a suite has made.
      answers: all gold answers of a record that has several; empty otherwise.
    """

    id: str
    task: str
    prompt: str
    images: tuple[Picture, ...]
    answer: str
    verifier: str
    columns: dict[str, Any] = dataclasses.field(default_factory=dict)
    system: str = ""
    where: str = dataclasses.field(default="", compare=False)
    answers: tuple[str, ...] = ()


def load_records(
    source: str | Path,
    *,
    task: str,
    verifier: str | None = None,
    trusted: Collection[str] = (),
    image_root: str | Path = "",
    problems: list[str] | None = None,
) -> list[Record]:
    """Reads and checks all records of a source.

    Args:
      source: as `rdbcl_jax.data.sources.open_source` takes it.
      task: the name of the records' task.
      verifier: of all records; None: each row's `verifier` column, else `exact`.
      trusted: verifiers of the form `package.module:function` that rows may name. Others are
        refused: no data file says what is imported.
      image_root: the directory in which all images lie, links followed; empty: that of the file
        that names them.
      problems: where given, records that are wrong are left out, and what is wrong with each is
        appended.

    Raises:
      FileNotFoundError: no such file.
      ImportError: the library that a source needs is not installed.
      ValueError: the first record that is wrong: which one, what was found, what was expected. A
        file that is not readable at all. No record is left.
    """
    records: list[Record | str] = []  # or what is wrong
    roots: list[str | Path] = []
    seen: dict[str, str] = {}  # id: where
    for row in rows_of(open_source(str(source))):
        roots.append(image_root or row.folder)
        try:
            record = _record(row, task, verifier, trusted)
            if record.id in seen:
                raise ValueError(
                    f"{row.where}: id {record.id!r} was already used at {seen[record.id]}; "
                    "give each record its own id, or none of them"
                )
            seen[record.id] = row.where
            records.append(record)
        except ValueError as error:
            records.append(str(error))
    shows = any(isinstance(record, Record) and record.images for record in records)
    with ThreadPoolExecutor() as pool:  # files may be far away
        found = (pool.map if shows else map)(_with_headers, records, roots)
        return good(shown(found, len(records), f"reading {task!r}"), str(source), problems)


def good(
    found: Iterable[Record | str], source: str, problems: list[str] | None = None
) -> list[Record]:
    """The records among them; the others say what is wrong, which goes to `problems`.

    Raises:
      ValueError: a record is wrong, and there are no `problems`; none is left.
    """
    found = list(found)
    wrong = [problem for problem in found if isinstance(problem, str)]
    if wrong and problems is None:
        more = f" (and {len(wrong) - 1} more: rdbcl check lists all)" if len(wrong) > 1 else ""
        raise ValueError(wrong[0] + more)
    if problems is not None:
        problems += wrong
    if len(wrong) == len(found):
        first = f" that can be used; the first: {wrong[0]}" if wrong else ""
        raise ValueError(f"{source}: holds no records{first}")
    return [record for record in found if isinstance(record, Record)]


def load_images(record: Record) -> tuple[Image.Image, ...]:
    """The record's images as people see them, decoded, in RGB; see `pictures.decode`.

    Raises:
      ValueError: an image that cannot be decoded; it names the record.
    """
    images = []
    for position, image in enumerate(record.images):
        try:
            images.append(pictures.decode(image))
        except ValueError as error:
            raise ValueError(
                f"record {record.id!r}: image {position} ({_describe(image)}): {error}; replace it "
                "or leave the record out"
            ) from error
    return tuple(images)


# --- from a row to a record ----------------------------------------------------------------------


def _record(row: Row, task: str, verifier: str | None, trusted: Collection[str]) -> Record:
    """Builds a record; every error starts by saying which one it is."""
    if row.problem:
        raise ValueError(f"{row.where}: {row.problem}")
    columns, name = row.columns, row.id
    try:
        name = _id(columns, row.id)
        found = asked(columns, row.folder)
        judge = verifier or _named_verifier(columns, trusted)
        answers = _answers(found.answer, get_verifier(judge).reads_lists)
        _check_gold(judge, answers)
    except ValueError as error:
        raise ValueError(f"{row.where} (id {name!r}): {error}") from error
    used = {"id", "task", "verifier", *USED}
    others = {key: value for key, value in columns.items() if key not in used}
    if found.system:
        others["system"] = found.system
    return Record(
        id=name,
        task=task,
        prompt=found.prompt,
        images=found.images,
        answer=collections.Counter(answers).most_common(1)[0][0],
        verifier=judge,
        columns=others,
        system=found.system,
        where=row.where,
        answers=answers if len(answers) > 1 else (),
    )


def _answers(value: Any, reads_lists: bool) -> tuple[str, ...]:
    """The gold answers as texts; `<answer>` tags around one, as in VLM-R1's files, are taken off.

    Args:
      reads_lists: a list is one gold answer.
    """
    if reads_lists or not isinstance(value, list | tuple):
        value = [value]
    if not (golds := [gold for gold in value if gold is not None]):
        raise ValueError("answer: found an empty list, expected at least one answer")
    try:
        return tuple(map(_gold, golds))
    except ValueError as error:
        raise ValueError(f"answer: {error}") from None


def _gold(value: Any) -> str:
    text = written(value)
    block = _GOLD_BLOCK.search(text)
    return (block[1] if block else text).strip()


def _id(columns: Mapping[str, Any], default: str) -> str:
    given = columns.get("id")
    if isinstance(given, list | dict):
        raise ValueError(f"id: expected a text or a number, found {short(given)}")
    return default if given is None else written(given)


def _named_verifier(row: Mapping[str, Any], trusted: Collection[str]) -> str:
    name = row.get("verifier") or "exact"
    if not isinstance(name, str):
        raise ValueError(f"verifier: expected a name, found {short(name)}")
    if is_imported(name) and name not in trusted:
        raise ValueError(
            f"its verifier is {name!r}, and a data file cannot name code to import; name it as the "
            "verifier of a task in config.tasks, or register it"
        )
    return name


def _check_gold(verifier: str, answers: tuple[str, ...]):
    try:
        get_verifier(verifier).prepared(answers)
    except ValueError as error:
        raise ValueError(
            f"gold answer, for the verifier {verifier!r}: {error}; correct the answer, name "
            "another verifier, or leave the record out"
        ) from error


# --- images --------------------------------------------------------------------------------------


def _with_headers(record: Record | str, root: str | Path) -> Record | str:
    """The record, or what is wrong with its images as far as their headers tell."""
    if isinstance(record, str):
        return record
    for position, image in enumerate(record.images):
        try:
            if isinstance(image, Path):
                _check_place(image, root)
            pictures.check_header(image)
        except ValueError as error:
            missing = isinstance(image, Path) and not image.exists()
            hint = "; paths are relative to the file that names them" if missing else ""
            place = f"{record.where} (id {record.id!r})"
            return f"{place}: image {position} ({_describe(image)}): {error}{hint}"
    return record


def _check_place(path: Path, root: str | Path) -> None:
    try:
        real = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a zero byte
        raise ValueError(f"it cannot be read ({line_of(error)})") from None
    if not real.is_relative_to(Path(root).resolve()):
        raise ValueError(
            f"it lies outside {root} (at {real}); move it, or name a directory that holds all "
            "images as data.image_root (/ allows any)"
        )


def _describe(image: Picture) -> str:
    text = f"{len(image)} bytes" if isinstance(image, bytes) else str(image)
    return text if text.isprintable() else repr(text)
