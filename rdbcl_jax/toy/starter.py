"""`rdbcl init`: a config, a reward and ten records to start from."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from PIL import Image

from rdbcl_jax.toy.digits_suite import make_records

FILES = Path(__file__).with_name("starter_files")
SPLITS = {"train": 6, "validation": 2, "test": 2}  # records


def write_starter(directory: str | os.PathLike) -> list[Path]:
    """Writes config.py, my_rewards.py and records/; returns the files that a reader looks into.

    Raises:
      ValueError: there is something in the directory already.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"{directory} is there already; rdbcl init writes to a new directory")
    records = directory / "records"
    (records / "pictures").mkdir(parents=True)
    written = [Path(shutil.copy(path, directory)) for path in sorted(FILES.glob("*.py"))]
    for split, count in SPLITS.items():
        file = records / f"{split}.jsonl"
        file.write_text("".join(_row(records, split, index) + "\n" for index in range(count)))
        written.append(file)
    return written


def _row(folder: Path, split: str, index: int) -> str:
    """A line of JSON; its picture is written beside."""
    *_, record = make_records("sum", split, index + 1, seed=0)
    (picture,) = record.images
    assert isinstance(picture, Image.Image)
    name = f"pictures/{split}-{index}.png"
    picture.save(folder / name)
    row = {"id": f"{split}-{index}", "prompt": record.prompt, "image": name}
    return json.dumps({**row, "answer": record.answer})
