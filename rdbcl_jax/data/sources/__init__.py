"""Sources of records: what a name stands for, opened. A kind of source is one line of a table here
and one file beside this one."""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping
from pathlib import Path

from rdbcl_jax.data.sources.directories import files_of
from rdbcl_jax.data.sources.hub import HubRows
from rdbcl_jax.data.sources.json_rows import json_file, json_lines
from rdbcl_jax.data.sources.rows import Row as Row
from rdbcl_jax.data.sources.rows import Shards, Source
from rdbcl_jax.data.sources.rows import rows_of as rows_of
from rdbcl_jax.data.sources.tables import ArrowRows, ParquetRows
from rdbcl_jax.data.sources.tfds import TfdsRows
from rdbcl_jax.remote import is_remote, local

FILES: Mapping[str, Callable[[Path], Source]] = {
    ".jsonl": json_lines,
    ".json": json_file,
    ".parquet": ParquetRows,
    ".arrow": ArrowRows,
}
LIBRARIES: Mapping[str, Callable[[str], Source]] = {"hf": HubRows, "tfds": TfdsRows}
_KINDS = f"{', '.join(FILES)}, a pattern of files or a directory"


def open_source(name: str) -> Source:
    """What a name stands for:

    | | |
    |---|---|
    | `FILE` | `.jsonl`, `.json`, `.parquet` or `.arrow` |
    | `data/train-*.parquet` | files, by their names in order |
    | `DIR`, `DIR:SPLIT` | with a slash (`./mine:train`); see `rdbcl_jax.data.sources.directories` |
    | `gs://BUCKET/…` | any of these, but for the next two |
    | `hf:NAME[/CONFIG]:SPLIT` | through the `datasets` library |
    | `tfds:NAME/SPLIT` | through TensorFlow Datasets |

    Raises:
      FileNotFoundError: no such file.
      ImportError: a library that is not installed; it names the extra.
      ValueError: a file of another format, or so damaged that no row can be found; a split of what
        has none.
    """
    name = _here(name) if is_remote(name) else name
    kind = name.partition(":")[0]
    if kind in LIBRARIES and not Path(name).exists():
        return LIBRARIES[kind](name)
    path, split = Path(name), ""
    if not path.exists() and not glob.glob(name):
        before, _, after = name.rpartition(":")
        if before:
            path, split = Path(before), after
    plain = [] if path.is_dir() else [path] if path.is_file() else sorted(glob.glob(str(path)))
    if plain:
        files = [Path(file) for file in plain]
    elif path.is_dir() or (not path.suffix and path.parent.joinpath("README.md").is_file()):
        files = [*files_of(path, split, [*FILES])]
    else:
        raise FileNotFoundError(f"no file at {name!r}; expected {_KINDS}")
    if split and plain:
        raise ValueError(
            f"{name!r}: found the split {split!r} behind a file or a pattern, expected it behind a "
            f"directory; name the file of that split, or leave ':{split}' out"
        )
    for file in files:
        if file.suffix not in FILES or not file.is_file():
            raise ValueError(f"{file}: expected a file of one of {', '.join(FILES)}")
    opened = [FILES[file.suffix](file) for file in files]
    return opened[0] if len(opened) == 1 else Shards(opened)


def _here(name: str) -> str:
    """A name on gs:// as one of this machine, with copies of the files."""
    before, _, split = name.rpartition(":")
    for place, end in ((name, ""), (before, f":{split}")):
        here = local(place, pictures=False) if is_remote(place) else None
        if here and (here.exists() or glob.glob(str(here))):
            return f"{here}{end}"
    raise FileNotFoundError(f"no file at {name!r}; expected {_KINDS}")
