"""Directories that hold a data set: what `datasets.save_to_disk` wrote, a copy of a Hugging Face
data set repository, or files side by side. `DIR:SPLIT` names a split, `DIR/CONFIG:SPLIT` that of
one of several configs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rdbcl_jax.json_files import read_json
from rdbcl_jax.messages import line_of

Splits = Mapping[str, Sequence[Path]]  # a split without a name is called ""

_SPLITS = {"train", "training", "validation", "valid", "val", "dev", "test", "testing"}
_SHARD = re.compile(r"(.+?)-(\d{5})-of-(\d{5})(-[0-9a-f]+)?")


def files_of(directory: Path, split: str, suffixes: Sequence[str]) -> Sequence[Path]:
    """The files of a split, in order; of the only one, where `split` is empty.

    Raises:
      FileNotFoundError: no such directory, or config of one.
      ValueError: no such split, or one has to be named.
    """
    splits = _splits_of(directory, suffixes)
    if not split and len(splits) == 1:
        (split,) = splits
    if split not in splits:
        found = f"has no split {split!r}" if split else "has several splits"
        place = directory if directory.is_absolute() else f"./{directory}"  # no suite's name
        names = ", ".join(f"{place}:{name}" if name else str(place) for name in splits)
        raise ValueError(f"{directory}: {found}; expected {names}")
    _check_shards(splits[split])
    return splits[split]


def _check_shards(files: Sequence[Path]) -> None:
    """Raises ValueError for shards of which others are missing, or that were written twice."""
    found: dict[tuple[Path, str], list[re.Match[str]]] = {}
    for file in files:
        if shard := _SHARD.fullmatch(file.stem):
            found.setdefault((file.parent, shard[1]), []).append(shard)
    for (folder, name), shards in found.items():
        numbers, count = {int(shard[2]) for shard in shards}, int(shards[0][3])
        if len(numbers) < len(shards) or len({shard[3] for shard in shards}) > 1:
            names = ", ".join(shard[0] for shard in shards[:8])
            raise ValueError(
                f"{folder}: found shards that were written at different times, {names}, expected "
                "those of one; delete the others, or name a pattern of the files to read"
            )
        if missing := sorted({*range(count)} - numbers):
            names = ", ".join(f"{name}-{number:05}-of-{count:05}" for number in missing[:8])
            raise ValueError(
                f"{folder}: found {len(numbers)} of {count} shards of {name!r}, expected {names} "
                "too; fetch what is missing, or name a pattern of the files to read"
            )


def _splits_of(directory: Path, suffixes: Sequence[str]) -> Splits:
    if not directory.is_dir():
        configs = _configs_of(directory.parent)
        if directory.name not in configs:
            raise FileNotFoundError(f"no file or directory at {str(directory)!r}")
        return configs[directory.name]
    if (listed := directory / "dataset_dict.json").is_file():
        return {name: _saved(directory / name) for name in _list_in(listed, "splits")}
    if (directory / "state.json").is_file():
        return {"": _saved(directory)}
    if configs := _configs_of(directory):
        if len(configs) > 1 and "default" not in configs:
            names = ", ".join(f"{directory}/{name}" for name in configs)
            raise ValueError(f"{directory}: has several configs; expected one of {names}")
        return configs.get("default") or next(iter(configs.values()))
    return _by_name(directory, suffixes) or {"": _side_by_side(directory, suffixes)}


def _saved(directory: Path) -> list[Path]:
    """The files that `datasets.save_to_disk` wrote."""
    files = _list_in(directory / "state.json", "_data_files")
    return [directory / file["filename"] for file in files]


def _list_in(path: Path, key: str) -> list[Any]:
    held = read_json(path, {})
    if not isinstance(held, dict) or not isinstance(held.get(key), list):
        raise ValueError(f"{path} is damaged, it has no list {key!r}")
    return held[key]


def _configs_of(directory: Path) -> dict[str, Splits]:
    """The configs that the card of a repository describes, and of which files are there."""
    from huggingface_hub import metadata_load

    card = directory / "README.md"
    try:
        fields = metadata_load(card) if card.is_file() else None
    except Exception as error:  # whatever its YAML is
        raise ValueError(f"{card}: its header cannot be read ({line_of(error)})") from None
    configs = fields.get("configs") if isinstance(fields, dict) else None
    found = {
        str(config.get("config_name", "default")): _described(directory, config["data_files"])
        for config in configs or ()
        if isinstance(config, dict) and config.get("data_files")
    }
    return {name: splits for name, splits in found.items() if splits}


def _described(directory: Path, data_files: Any) -> Splits:
    """The files that patterns name: of one split, or each with the split that it belongs to."""
    entries = data_files if isinstance(data_files, list) else [data_files]
    splits: dict[str, list[Path]] = {}
    for entry in entries:
        entry = entry if isinstance(entry, dict) else {"split": "train", "path": entry}
        path = entry.get("path", ())
        for pattern in [path] if isinstance(path, str) else path:
            files = sorted(directory.glob(str(pattern)))
            splits.setdefault(str(entry.get("split")), []).extend(files)
    return {name: files for name, files in splits.items() if files}


def _by_name(directory: Path, suffixes: Sequence[str]) -> Splits:
    """`SPLIT-00000-of-00002.parquet` and the like, in the directory or in its `data/`; else
    `train.jsonl` beside `test.jsonl`, where all files are called after a split."""
    splits: dict[str, list[Path]] = {}
    for folder in (directory, directory / "data"):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            shard = _SHARD.fullmatch(path.stem)
            if path.suffix in suffixes and shard:
                splits.setdefault(shard[1], []).append(path)
    own = {path.stem: [path] for path in sorted(directory.iterdir()) if path.suffix in suffixes}
    named = not splits and len(own) > 1 and {*own} <= _SPLITS
    return own if named else splits


def _side_by_side(directory: Path, suffixes: Sequence[str]) -> list[Path]:
    found = sorted(path for path in directory.iterdir() if path.suffix in suffixes)
    if not found or len({path.suffix for path in found}) > 1:
        raise ValueError(
            f"{directory}: expected files of one of {', '.join(suffixes)}, found "
            f"{sorted(path.name for path in directory.iterdir())[:8]}; name a file, or a pattern"
        )
    return found
