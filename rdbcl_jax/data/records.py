"""Records: one verifiable question each, read from JSONL, Parquet or TFDS and checked at once.

Three conventions are read alike, by the names of their columns:

| convention | question | answer | images |
|---|---|---|---|
| TRL | `prompt` (text or chat messages) | `answer` or `solution` | `image` or `images` |
| EasyR1 | `problem` | `answer` | `images` |
| VLM-R1 | `conversations`, first turn | its second turn, or `solution` | `image` |

An image is a path relative to its file, encoded bytes, or `{"bytes": …, "path": …}`; a row has one
or several. All other columns travel with the record and reach reward functions as keyword
arguments. Everything is checked when read, long before anything compiles; images are decoded when
needed.
"""

from __future__ import annotations

import collections
import dataclasses
import glob
import io
import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from rdbcl_jax.rewards.verifiers import get_verifier, is_imported

IMAGE_MARK = "<image>"  # where in a prompt an image stands
PROMPTS = ("prompt", "problem", "question", "conversations")
ANSWERS = ("answer", "solution")
IMAGES = ("images", "image")
_GOLD_BLOCK = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Record:
    """One question with a verifiable answer.

    Attributes:
      id: unique among the records of a source.
      task: the name of its task.
      prompt: the question. It holds `<image>` once per image, or not at all: then images go first.
      images: PIL images, paths or encoded bytes, as `load_images` reads them.
      answer: the gold answer, as the verifier parses it.
      verifier: its name, see `rdbcl_jax.rewards.verifiers`.
      columns: all else that was known, for reward functions and tables.
      system: the system message of a chat; empty without one.
    """

    id: str
    task: str
    prompt: str
    images: tuple[Image.Image | Path | bytes, ...]
    answer: str
    verifier: str
    columns: dict[str, Any] = dataclasses.field(default_factory=dict)
    system: str = ""


def load_records(
    source: str | Path, *, task: str, verifier: str | None = None, trusted: Collection[str] = ()
) -> list[Record]:
    """Reads and checks all records of a source.

    Args:
      source: a `.jsonl` or `.parquet` file, a pattern such as `data/train-*.parquet` (sorted by
        name), or `tfds:name/split` through TensorFlow Datasets.
      task: the name of the records' task.
      verifier: of all records; None: each row's `verifier` column, else `exact`.
      trusted: verifiers of the form `package.module:function` that rows may name. Others are
        refused: no data file says what is imported.

    Raises:
      FileNotFoundError: no such file.
      ImportError: a `tfds:` source without TensorFlow Datasets.
      ValueError: the first record that is wrong: which one, what was found, what was expected.
    """
    records: list[Record] = []
    seen: dict[str, str] = {}  # id: where
    for where, folder, default_id, row in _rows(str(source)):
        record = _record(row, where, folder, default_id, task, verifier, trusted)
        if record.id in seen:
            raise ValueError(
                f"{where}: id {record.id!r} was already used at {seen[record.id]}; "
                "give each record its own id, or none of them"
            )
        seen[record.id] = where
        records.append(record)
    if not records:
        raise ValueError(f"{source}: holds no records")
    return records


def load_images(record: Record) -> tuple[Image.Image, ...]:
    """The record's images, decoded, in RGB.

    Raises:
      ValueError: an image that cannot be decoded; it names the record.
    """
    images = []
    for position, image in enumerate(record.images):
        try:
            with _open(image) as opened:
                images.append(opened.convert("RGB"))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"record {record.id!r}: image {position} ({_describe(image)}) cannot be decoded: "
                f"{error}; replace it or leave the record out"
            ) from error
    return tuple(images)


# --- rows of the file formats --------------------------------------------------------------------

_Row = tuple[str, Path, str, Mapping[str, Any]]  # where, folder of its images, default id, columns


def _rows(source: str) -> Iterator[_Row]:
    if source.startswith("tfds:"):
        yield from _tfds_rows(source)
        return
    paths = [source] if Path(source).exists() else sorted(glob.glob(source))
    if not paths:
        raise FileNotFoundError(f"no file at {source!r}; expected .jsonl or .parquet, or a pattern")
    for path in map(Path, paths):
        if path.suffix not in _READERS:
            raise ValueError(f"{path}: expected a .jsonl or a .parquet file")
        for number, row in _READERS[path.suffix](path):
            place = "line" if path.suffix == ".jsonl" else "row"
            yield f"{path}, {place} {number}", path.parent, f"{path.name}:{number}", row


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: expected an object, found {_short(row)}")
            yield number, row


def _parquet_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import pyarrow.parquet as pq

    number = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=256):  # whole files of images are large
            for row in batch.to_pylist():
                yield number, row
                number += 1


_READERS = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows}


def _tfds_rows(source: str) -> Iterator[_Row]:
    """Rows of `tfds:name/split` (ArrayRecord, random access), images left encoded.

    Checked with tensorflow-datasets 4.9.10, which needs no TensorFlow for this.
    """
    name, _, split = source.removeprefix("tfds:").rpartition("/")
    if not name or not split:
        raise ValueError(f"{source!r}: expected tfds:name/split, such as tfds:ai2dcaption/test")
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"{source!r} needs TensorFlow Datasets: pip install 'rdbcl_jax[tfds]'"
        ) from error
    features = tfds.builder(name).info.features
    pictures = [key for key, value in features.items() if isinstance(value, tfds.features.Image)]
    skip = {key: tfds.decode.SkipDecoding() for key in pictures}
    for number, row in enumerate(tfds.data_source(name, split=split, decoders=skip)):
        where = f"{source}, row {number}"
        yield where, Path(), f"{name}/{split}:{number}", {k: _python(v) for k, v in row.items()}


def _python(value):
    """NumPy values as plain ones, UTF-8 bytes as text."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _python(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_python(item) for item in value]
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:  # an encoded image
        return value


# --- from a row to a record ----------------------------------------------------------------------


def _record(
    row: Mapping[str, Any],
    where: str,
    folder: Path,
    default_id: str,
    task: str,
    verifier: str | None,
    trusted: Collection[str],
) -> Record:
    """Builds and checks one record; every error starts by saying which record it is."""
    given = row.get("id")
    record_id = default_id if given is None else str(given)
    try:
        prompt, second_turn, inline, system = _question(row)
        images = _images(_first(row, IMAGES) or inline, folder)
        _check_marks(prompt, images)
        name = verifier or _named_verifier(row, trusted)
        answer = _answer(row, second_turn)
        _check_gold(name, answer)
    except ValueError as error:
        raise ValueError(f"{where} (id {record_id!r}): {error}") from error
    used = {"id", "task", "verifier", "answer", *PROMPTS, *IMAGES}
    columns = {key: value for key, value in row.items() if key not in used}
    if system:
        columns["system"] = system
    return Record(record_id, task, prompt, images, answer, name, columns, system)


def _named_verifier(row: Mapping[str, Any], trusted: Collection[str]) -> str:
    name = str(row.get("verifier") or "exact")
    if is_imported(name) and name not in trusted:
        raise ValueError(
            f"its verifier is {name!r}, and a data file cannot name code to import; name it as the "
            "verifier of a task in config.tasks, or register it"
        )
    return name


def _first(row: Mapping[str, Any], names: tuple[str, ...]):
    """The first of these columns that holds something, else None."""
    return next((row[name] for name in names if row.get(name) is not None), None)


def _question(row) -> tuple[str, str | None, list, str]:
    """The question, the second turn, images inside messages, and the system message."""
    value = _first(row, PROMPTS)
    if value is None:
        raise ValueError(
            f"found the columns {sorted(row)}; expected a question in one of {', '.join(PROMPTS)}"
        )
    if isinstance(value, str):
        return value, None, [], ""
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise ValueError(f"question: expected text or a list of messages, found {_short(value)}")
    turns = collections.defaultdict(list)
    images: list = []
    for turn in value:
        role = str(turn.get("role", turn.get("from")))
        content = turn.get("content", turn.get("value"))
        text = _content(content, images)
        turns[{"human": "user", "gpt": "assistant"}.get(role, role)].append(text)
    roles = {role: len(texts) for role, texts in turns.items()}
    if roles.pop("user", 0) != 1 or any(roles.pop(r, 0) > 1 for r in ("system", "assistant")):
        raise ValueError(
            f"found messages of {[str(t.get('role', t.get('from'))) for t in value]}; expected one "
            "of the user, with at most one of the system and one of the assistant (the answer); "
            "join a longer conversation into one question"
        )
    if roles:
        raise ValueError(f"found messages of {sorted(roles)}; expected user, system, assistant")
    second = turns["assistant"][0] if turns["assistant"] else None
    return turns["user"][0], second, images, "".join(turns["system"])


def _content(content, images: list) -> str:
    """A message's text, images marked; images that come with the message are appended to `images`.

    Parquet unifies the fields of all parts, so absent ones are None rather than missing.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise ValueError(f"message: expected text or a list of parts, found {_short(content)}")
    texts = []
    for part in content:
        if part.get("type") == "image":
            if part.get("image") is not None:
                images.append(part["image"])
            texts.append(IMAGE_MARK)
        elif isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise ValueError(f"message part: expected a text or an image, found {_short(part)}")
    return "".join(texts)


def _answer(row, second_turn: str | None) -> str:
    """The gold answer as text; `<answer>` tags around it, as in VLM-R1's files, are taken off."""
    value = _first(row, ANSWERS)
    value = second_turn if value is None else value
    if value is None:
        raise ValueError(
            f"found the columns {sorted(row)}; expected an answer in one of {', '.join(ANSWERS)}, "
            "or a second turn in conversations"
        )
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    block = _GOLD_BLOCK.search(text)
    return (block[1] if block else text).strip()


def _check_gold(verifier: str, answer: str):
    try:
        get_verifier(verifier).prepare(answer)
    except ValueError as error:
        raise ValueError(
            f"gold answer, for the verifier {verifier!r}: {error}; correct the answer, name "
            "another verifier, or leave the record out"
        ) from error


def _check_marks(prompt: str, images: tuple):
    if not prompt.strip():
        raise ValueError("the question is empty")
    marks = prompt.count(IMAGE_MARK)
    if marks not in (0, len(images)):
        raise ValueError(
            f"found {marks} {IMAGE_MARK} in the question and {len(images)} images; expected as "
            f"many as images, or no {IMAGE_MARK} at all (then images go before the text)"
        )


# --- images --------------------------------------------------------------------------------------


def _images(value, folder: Path) -> tuple[Image.Image | Path | bytes, ...]:
    """Images as paths or bytes, each opened once for its header alone."""
    if value is None:
        return ()
    several = value if isinstance(value, list | tuple) else [value]
    images = tuple(_image(item, folder) for item in several)
    for position, image in enumerate(images):
        try:
            with _open(image) as opened:
                width, height = opened.size
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            missing = isinstance(image, Path) and not image.exists()
            what = "there is no such file" if missing else f"cannot be read ({error})"
            raise ValueError(
                f"image {position} ({_describe(image)}): {what}; paths are relative to the file "
                "that names them"
            ) from error
        if width < 1 or height < 1:
            raise ValueError(
                f"image {position} ({_describe(image)}): found {width} x {height} pixels, expected "
                "at least 1 x 1"
            )
    return images


def _image(item, folder: Path) -> Image.Image | Path | bytes:
    if isinstance(item, Mapping):
        item = item.get("path") if item.get("bytes") is None else item["bytes"]
    if isinstance(item, bytes | Image.Image):
        return item
    if isinstance(item, str | Path) and str(item):
        return folder / item
    raise ValueError(f"image: expected a path, bytes or {{bytes, path}}, found {_short(item)}")


def _open(image: Image.Image | Path | bytes) -> Image.Image:
    """A new image object: closing it leaves the record's own untouched."""
    if isinstance(image, Image.Image):
        return image.copy()
    return Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)


def _describe(image) -> str:
    return f"{len(image)} bytes" if isinstance(image, bytes) else str(image)


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
