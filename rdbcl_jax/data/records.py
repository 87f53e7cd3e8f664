"""Records: one verifiable question each, made of a row of a source.

`rdbcl_jax.data.conventions` says which columns are read as question, answer and images. All others
travel with the record and reach reward functions as keyword arguments. `rdbcl_jax.data.loading`
reads the records of a source, `rdbcl_jax.data.check` looks at each long before anything compiles.

A list of answers means that any of them is right, but for verifiers whose gold answers are lists.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from rdbcl_jax.data import pictures
from rdbcl_jax.data.conventions import IMAGES, USED, asked, chat_of
from rdbcl_jax.data.pictures import Picture, Stored
from rdbcl_jax.data.sources import Row
from rdbcl_jax.data.values import short, written
from rdbcl_jax.messages import line_of
from rdbcl_jax.rewards.verifiers import get_verifier, is_imported

_LARGEST = (10**6, 10**6)  # no picture is
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
      row: its columns as the source has them, without pictures; empty for records that a suite
        has made.
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
    row: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @property
    def chat(self) -> list[dict[str, Any]] | None:
        """The messages that ask the question, where its source has it as a chat."""
        return chat_of(self.row)

    def pictures(self) -> tuple[Image.Image, ...]:
        """Its images, decoded: see `load_images`."""
        return load_images(self)


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


def make_record(row: Row, task: str, verifier: str | None, trusted: Collection[str]) -> Record:
    """The record of a row; arguments as of `rdbcl_jax.data.loading.load_records`.

    Raises:
      ValueError: it is none; the message starts by saying which row.
    """
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
    light = _without_pictures(columns)
    others = {key: value for key, value in light.items() if key not in used}
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
        row=light,
    )


def _without_pictures(columns: Mapping[str, Any]) -> dict[str, Any]:
    """The columns, light enough to be kept: pictures are left where they are."""

    def light(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: light(item) for key, item in value.items()}
        if isinstance(value, list):
            return [light(item) for item in value]
        heavy = isinstance(value, bytes | Image.Image) or (
            isinstance(value, str) and value.startswith("data:image/")
        )
        return None if heavy else value

    return {key: light(value) for key, value in columns.items() if key not in IMAGES}


def _answers(value: Any, reads_lists: bool) -> tuple[str, ...]:
    """The gold answers as texts; `<answer>` tags around one, as in VLM-R1's files, are taken off.

    Args:
      reads_lists: a list is one gold answer.
    """
    if reads_lists or not isinstance(value, list | tuple):
        value = [value]
    if not reads_lists and (objects := [gold for gold in value if isinstance(gold, Mapping)]):
        raise ValueError(
            f"answer: expected a text or a number, found {short(objects[0])}; say in format which "
            "of its fields is the answer, such as answer: 'answer.text'"
        )
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
    judge = get_verifier(verifier)
    try:
        if judge.rescale:  # the size of the picture is known later
            for answer in answers:
                judge.rescale(answer, _LARGEST, _LARGEST)
        else:
            judge.prepared(answers)
    except ValueError as error:
        raise ValueError(
            f"gold answer, for the verifier {verifier!r}: {error}; correct the answer, name "
            "another verifier, or leave the record out"
        ) from error


# --- images --------------------------------------------------------------------------------------


def header_problem(record: Record, root: str | Path) -> str:
    """What is wrong with its images as far as their headers tell; empty: nothing."""
    for position, image in enumerate(record.images):
        try:
            if isinstance(image, Path | Stored):
                _check_place(image if isinstance(image, Path) else image.path, root)
            pictures.check_header(image)
        except ValueError as error:
            missing = isinstance(image, Path) and not image.exists()
            hint = "; paths are relative to the file that names them" if missing else ""
            place = f"{record.where} (id {record.id!r})"
            return f"{place}: image {position} ({_describe(image)}): {error}{hint}"
    return ""


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
