"""What `rdbcl prepare` does: published data sets, as downloaded, become records to train on.

Every row is read by its layout, joined with what stands in other files, checked, and written as a
line of JSON that refers to its pictures where they are. Splits that were not published are made.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rdbcl_jax.data import pictures
from rdbcl_jax.data.conventions import IMAGES, asked
from rdbcl_jax.data.pictures import Picture, Stored
from rdbcl_jax.data.published import ALL, DATA_SETS, Copy
from rdbcl_jax.data.sources import Row, open_source
from rdbcl_jax.data.sources.rows import Shards
from rdbcl_jax.data.tasks import SPLITS
from rdbcl_jax.data.values import written
from rdbcl_jax.data.waiting import in_threads, shown
from rdbcl_jax.json_files import read_object
from rdbcl_jax.messages import did_you_mean, line_of
from rdbcl_jax.remote import of_this_machine
from rdbcl_jax.rewards.verifiers import get_verifier

MADE = {"test": 3000, "validation": 1000}  # most records of a split that is made
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5}).*")
SHARE = 10  # into how many parts, one of them such a split, rows are divided at most

Rows = tuple[int, Callable[[int], Row]]  # how many, and each


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What was written.

    Attributes:
      counts: of each task, the records of each split.
      problems: what is wrong with the rows that were left out.
      fragment: the file of what a config needs.
    """

    counts: Mapping[str, Mapping[str, int]]
    problems: Sequence[str]
    fragment: Path


class _Line(NamedTuple):
    """A row as it is written.

    Attributes:
      shows: the hashes of its pictures, or of its question: rows that share one share a split.
      split: the one that the row names; empty where it names none.
      folder: that of its pictures, links followed; empty without any.
    """

    text: str
    shows: tuple[bytes, ...]
    split: str
    folder: str


def prepare(name: str, source: str | Path, out: str | Path, seed: int = 0) -> Prepared:
    """Writes `OUT/TASK/SPLIT.jsonl` for each task of a data set, and `OUT/NAME.py`.

    Splits that are made take whole groups of records that share pictures, in the order of a hash of
    the pictures and the seed: the same ones wherever and however often they are made. A group of
    more than half of the records stays in train.

    Args:
      name: of the data set, in `DATA_SETS`.
      source: the directory that it was downloaded into.
      out: a directory, in which files of these names are replaced.
    Raises:
      ValueError: no such data set, files that are not there (what to fetch, and from where), or a
        split without a record that can be used.
    """
    if name not in DATA_SETS:
        hint = did_you_mean(name, DATA_SETS)
        raise ValueError(f"no data set {name!r}; there are {', '.join(DATA_SETS)}{hint}")
    source = of_this_machine(source, "what is prepared").absolute()
    out = of_this_machine(out, "what is prepared").absolute()
    found = {task: _copy_in(source, copies) for task, copies in DATA_SETS[name].items()}
    counts: dict[str, Mapping[str, int]] = {}
    problems: list[str] = []
    folders: set[str] = set()
    for task, copy in found.items():
        counts[task] = _write_task(copy, source, out / task, seed, problems, folders)
        if not all(counts[task].values()):
            first = f"; the first of {len(problems)} that cannot: {problems[0]}" if problems else ""
            raise ValueError(
                f"prepare {name}: of {task}, records that can be used are {counts[task]}; expected "
                f"some in each split{first}"
            )
    return Prepared(counts, problems, _write_fragment(out / f"{name}.py", counts, folders))


def _copy_in(source: Path, copies: Sequence[Copy]) -> Copy:
    """The copy of a task's data that lies in a directory.

    Raises:
      ValueError: it lacks files.
    """
    needed = [_patterns(copy) for copy in copies]
    lacking = [[lack for pattern in own for lack in _lacking(source, pattern)] for own in needed]
    for copy, missing in zip(copies, lacking, strict=True):
        if not missing:
            return copy
    begun = [i for i in range(len(copies)) if {*needed[i]} - {*lacking[i]}]
    wanted = []
    for i in begun or range(len(copies)):
        note = f" ({copies[i].note})" if copies[i].note else ""
        wanted.append(f"{', '.join(lacking[i])} of {copies[i].of}{note}")
    raise ValueError(f"{source} lacks files; fetch {'; or '.join(wanted)}")


def _lacking(source: Path, pattern: str) -> list[str]:
    """The pattern, where no file fits it; else the shards that are not there of those that are."""
    files = sorted(source.glob(pattern))
    shards = collections.defaultdict(set)
    for found in (_SHARD.fullmatch(str(file.relative_to(source))) for file in files):
        if found:
            shards[found[1], int(found[3])].add(int(found[2]))
    missing = [
        f"{name}-{number:05}-of-{count:05}"
        for (name, count), numbers in shards.items()
        for number in sorted({*range(count)} - numbers)
    ]
    return missing if files else [pattern]


def _patterns(copy: Copy) -> list[str]:
    """Of all files that the copy needs."""
    others = [copy.class_names] if copy.class_names else []
    return [*copy.files.values(), *copy.pictures.values(), *copy.captions.values(), *others]


def _write_fragment(path: Path, tasks: Iterable[str], folders: Collection[str]) -> Path:
    """What a config needs in order to name the tasks, whose pictures are in `folders`, after those
    that it describes already."""
    described = {
        task: {split: str(path.parent / task / f"{split}.jsonl") for split in SPLITS}
        for task in tasks
    }
    text = f'''"""Written by rdbcl prepare: the tasks of {path.stem}."""

import os

TASKS = {{
{"".join(f"    {task!r}: {files!r},{chr(10)}" for task, files in described.items())}}}
PICTURES = {os.path.commonpath(folders) if folders else ""!r}


def add_tasks(config):
    """Puts the tasks behind those of the config; one folder holds the pictures of all."""
    others = [name for name in config.sequence if name in config.tasks and name not in TASKS]
    for name, files in TASKS.items():
        config.tasks[name] = files
    config.sequence = (*others, *TASKS)
    if PICTURES:
        root = config.data.image_root
        config.data.image_root = os.path.commonpath([root, PICTURES]) if root else PICTURES
'''
    path.write_text(text, encoding="utf-8")
    return path


# --- one task ------------------------------------------------------------------------------------


def _write_task(
    copy: Copy, source: Path, out: Path, seed: int, problems: list[str], folders: set[str]
) -> Mapping[str, int]:
    """Writes the files of a task's splits; returns how many records each has. What is wrong with
    the others is added to `problems`, where pictures are to `folders`."""
    out.mkdir(parents=True, exist_ok=True)
    drafts = {part: out / f"{part}.jsonl.new" for part in copy.files}
    parts: dict[str, list[tuple[tuple[bytes, ...], str]]] = {}  # what a line shows, its split
    for part, draft in drafts.items():
        parts[part] = []
        with draft.open("w", encoding="utf-8") as file:
            for line in _lines(copy, part, source, out):
                if isinstance(line, str):
                    problems.append(line)
                else:
                    file.write(line.text + "\n")
                    parts[part].append((line.shows, line.split))
                    folders |= {line.folder} - {""}
    counts: collections.Counter[str] = collections.Counter()
    files = {split: (out / f"{split}.jsonl.whole").open("w", encoding="utf-8") for split in SPLITS}
    for part, splits in _splits_of(parts, seed).items():
        with drafts[part].open(encoding="utf-8") as lines:
            for line, split in zip(lines, splits, strict=True):
                files[split].write(line)
                counts[split] += 1
        drafts[part].unlink()
    for split, file in files.items():
        file.close()
        Path(file.name).replace(out / f"{split}.jsonl")
    return {split: counts[split] for split in SPLITS}


def _splits_of(
    parts: Mapping[str, Sequence[tuple[tuple[bytes, ...], str]]], seed: int
) -> dict[str, list[str]]:
    """Of each part, the split of every line."""
    found = {part: [split or part for _, split in lines] for part, lines in parts.items()}
    divided = ALL if ALL in parts else "train"
    named = {*itertools.chain(*found.values())}
    groups = _connected([shows for shows, _ in parts[divided]])
    sizes = collections.Counter(groups)
    large = [group for group in sizes if sizes[group] > len(groups) / 2]  # one at most
    ordered = sorted({*sizes} - {*large}, key=lambda group: _digest(str(seed).encode(), group))
    given: dict[bytes, str] = {}
    for split in MADE:
        if split not in named:
            wanted = most = min(MADE[split], max(1, len(parts[divided]) // SHARE))
            left = [group for group in ordered if group not in given]
            # one that is larger than the split is to be: where there is nothing else, the smallest
            fitting = [group for group in left if sizes[group] <= most]
            for group in fitting or sorted(left, key=sizes.__getitem__)[:1]:
                if wanted > 0:
                    given[group], wanted = split, wanted - sizes[group]
            if split not in given.values() and large:
                raise ValueError(
                    f"prepare: pictures that records share connect {sizes[large[0]]} of "
                    f"{len(groups)} records, and no others are left for {split}; expected groups "
                    f"of at most half: fetch a copy that has a {split} split"
                )
    found[divided] = [
        given.get(group, "train") if split == divided else split
        for group, split in zip(groups, found[divided], strict=True)
    ]
    return found


def _connected(rows: Sequence[Sequence[bytes]]) -> list[bytes]:
    """Of each row the group that it is in with all rows that it shares a hash with, and they with
    others; a group is called by the least of its hashes."""
    above: dict[bytes, bytes] = {}

    def top(one: bytes) -> bytes:
        while (higher := above.setdefault(one, one)) != one:
            above[one] = above[higher]
            one = higher
        return one

    for first, *others in rows:
        for other in others:
            low, high = sorted((top(first), top(other)))
            above[high] = low
    return [top(first) for first, *_ in rows]


def _digest(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"\0".join(parts), digest_size=8).digest()


# --- rows ----------------------------------------------------------------------------------------


def _lines(copy: Copy, part: str, source: Path, out: Path) -> Iterator[_Line | str]:
    """The rows of a part as lines, or what is wrong with them."""
    layout = copy.read_as(part, source)
    joined = _joined(copy, part, source)
    count, row_of = _rows(copy, source, copy.files[part])

    def read(number: int) -> _Line | str:
        raw = row_of(number)
        try:
            row = layout.named(raw._replace(columns=joined(number, raw.columns)))
            if row.problem:
                raise ValueError(row.problem)
            return _line(raw, row, source, out, _named_split(copy, raw.columns))
        except ValueError as error:
            return f"{raw.where}: {error}"

    return shown(in_threads(read, range(count)), count, f"reading {out.name} {part}")


def _rows(copy: Copy, source: Path, pattern: str) -> Rows:
    """Rows of the files of a pattern; of pictures, what their folders say."""
    files = sorted(source.glob(pattern))
    if not copy.class_names:
        opened = Shards([open_source(str(file)) for file in files])
        return len(opened), opened.__getitem__
    named_in = source / copy.class_names
    try:
        lines = named_in.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{named_in}: not UTF-8 ({line_of(error)}); fetch it again") from None
    names = dict(parts for line in lines if len(parts := line.split(maxsplit=1)) == 2)

    def of_picture(number: int) -> Row:
        file = files[number]
        if (named := names.get(file.parent.name)) is None:
            problem = f"{named_in} names no class {file.parent.name!r}"
            return Row(str(file), source, file.name, {}, problem)
        place = f"{file.parent.name}/{file.name}"
        return Row(str(file), source, place, {"image": str(file), "class": named.replace("_", " ")})

    return len(files), of_picture


def _joined(copy: Copy, part: str, source: Path) -> Callable[[int, Mapping[str, Any]], dict]:
    """What a row's columns are once those of other files are beside them; it gets the row's number.

    Raises:
      ValueError: a picture or captions that the row should have are nowhere.
    """
    places = _places(source, copy.pictures[part]) if part in copy.pictures else {}
    captions = _captions(source, copy.captions[part]) if part in copy.captions else {}

    def join(number: int, columns: Mapping[str, Any]) -> dict[str, Any]:
        found = {**columns}
        if copy.picture_id and places:
            if (place := places.get(str(columns.get(copy.picture_id)))) is None:
                raise ValueError(
                    f"there is no good picture {columns.get(copy.picture_id)!r} in "
                    f"{copy.pictures[part]}; fetch all of those files again"
                )
            found["image"] = place
        if captions:
            if number + 1 not in captions:
                raise ValueError(f"{copy.captions[part]} has no captions of image {number + 1}")
            found["answer"] = captions[number + 1]
        return found

    return join


def _places(source: Path, pattern: str) -> dict[str, Mapping[str, Any]]:
    """Where the picture of each id is. All are looked at here, in their order: that of the rows
    that name them would read most row groups once for each of their pictures."""
    found: dict[str, Mapping[str, Any]] = {}
    for path in sorted(source.glob(pattern)):
        opened = open_source(str(path))
        for number in shown(range(len(opened)), len(opened), f"looking at {path.name}"):
            row = opened[number]
            columns = row.columns
            if not row.problem and "id" not in columns:
                raise ValueError(
                    f"{row.where}: found the columns {', '.join(sorted(columns))}, expected id and "
                    "image; fetch the file again"
                )
            with contextlib.suppress(ValueError):  # the rows that name it say that it is missing
                pictures.check_header((columns.get("image") or {}).get("bytes") or b"")
                found[str(columns["id"])] = {"path": str(path), "row": number, "column": "image"}
    return found


def _captions(source: Path, pattern: str) -> dict[int, list[str]]:
    found: dict[int, list[str]] = collections.defaultdict(list)
    for path in sorted(source.glob(pattern)):
        annotations = read_object(path).get("annotations", ())
        try:
            for one in annotations:
                found[int(one["image_id"])].append(str(one["caption"]))
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"{path}: expected annotations, each with image_id and caption; fetch it again"
            ) from None
    return found


def _named_split(copy: Copy, columns: Mapping[str, Any]) -> str:
    """The split that a row says that it is of; empty where it does not."""
    if copy.bounds:
        column, validation, test = copy.bounds
        value = Path(str(columns.get(column))).stem
        return "test" if value >= test else "validation" if value >= validation else "train"
    return ""


def _line(raw: Row, row: Row, source: Path, out: Path, split: str) -> _Line:
    """A row, with its columns as its layout names them, as a record is written.

    Raises:
      ValueError: what is wrong with it.
    """
    found = asked(row.columns, row.folder)
    verifier = get_verifier(row.columns.get("verifier") or "exact")
    golds, several = found.answer, False
    if isinstance(golds, list | tuple) and not verifier.reads_lists:
        golds, several = [written(gold) for gold in golds if gold is not None], True
    verifier.prepared(golds if several else written(golds))
    if not isinstance(golds, list | tuple | Mapping):
        golds = written(golds)
    images: Any = next((row.columns[name] for name in IMAGES if row.columns.get(name)), [])
    given = images if isinstance(images, list | tuple) else [images]
    for position, picture in enumerate(found.images):
        try:
            pictures.check_header(picture)
        except ValueError as error:
            raise ValueError(f"image {position}: {error}") from None
    own = row.columns.get("id")
    fields = {
        "id": raw.id if own is None else written(own),
        "prompt": found.prompt,
        "images": [_reference(*pair, raw, out) for pair in zip(found.images, given, strict=True)],
        "answers" if several else "answer": golds,
        "verifier": verifier.name,
        "source": raw.where,
    } | ({"system": found.system} if found.system else {})
    shows = [_identity(picture, source) for picture in found.images] or [found.prompt.encode()]
    hashes = tuple(map(_digest, shows))
    places = {place for picture in found.images if (place := _place(picture, raw))}
    folder = os.path.commonpath(places) if places else ""
    return _Line(json.dumps(fields, ensure_ascii=False), hashes, split, folder)


def _place(picture: Picture, raw: Row) -> str:
    """The real folder of its file."""
    if isinstance(picture, bytes):
        return os.path.dirname(os.path.realpath(raw.folder / raw.id.rpartition(":")[0]))
    path = picture.path if isinstance(picture, Stored) else picture
    return os.path.dirname(os.path.realpath(str(path)))


def _reference(picture: Picture, given: Any, raw: Row, out: Path) -> Any:
    """How a line in `out` says where a picture is, which the row had as `given`."""
    if isinstance(picture, Path):
        return os.path.relpath(picture, out)
    if isinstance(picture, bytes) and isinstance(given, str):
        return given  # base64
    if not isinstance(picture, Stored):
        name, _, number = raw.id.rpartition(":")
        column, position = next(
            (column, position)
            for column, value in raw.columns.items()
            for position, one in enumerate(value if isinstance(value, list) else [value])
            if one is given
        )
        picture = Stored(raw.folder / name, int(number), column, position)
    fields = dataclasses.asdict(picture)
    return fields | {"path": os.path.relpath(picture.path, out)}


def _identity(picture: Picture, source: Path) -> bytes:
    """The same for the same picture, wherever the data set lies."""
    if isinstance(picture, bytes):
        return _digest(picture)
    if isinstance(picture, Stored):
        place = os.path.relpath(picture.path, source)
        return f"{place}:{picture.row}:{picture.column}:{picture.position}".encode()
    return os.path.relpath(str(picture), source).encode()
