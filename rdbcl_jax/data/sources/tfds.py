"""`tfds:NAME/SPLIT`: data sets that TensorFlow Datasets has prepared as ArrayRecord, which is read
without TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rdbcl_jax.data.sources.rows import Row
from rdbcl_jax.data.values import shortest
from rdbcl_jax.messages import line_of


class TfdsRows:
    """Rows of a split, images left encoded."""

    def __init__(self, source: str):
        self.name, _, split = source.removeprefix("tfds:").rpartition("/")
        if not self.name or not split:
            raise ValueError(f"{source!r}: expected tfds:name/split, such as tfds:ai2dcaption/test")
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise ImportError(
                f"{source!r} needs TensorFlow Datasets: pip install 'rdbcl_jax[tfds]'"
            ) from error
        prepare = f"prepare it: tfds build {self.name} --file_format=array_record"
        try:
            builder = tfds.builder(self.name)
        except Exception as error:  # of names, versions and files
            raise ValueError(f"{source!r}: {line_of(error)[:200]}; {prepare}") from None
        info = builder.info
        if split.partition("[")[0] not in info.splits:
            found = ", ".join(info.splits) or "none"
            raise ValueError(
                f"{source!r}: found the splits {found}; name one of them, or {prepare}"
            )
        skip = {key: tfds.decode.SkipDecoding() for key in _pictures(info.features, tfds, source)}
        try:
            self.rows: Any = builder.as_data_source(split=split, decoders=skip)
        except NotImplementedError as error:  # files that have no order
            raise ValueError(f"{source!r}: {line_of(error)[:200]}; {prepare}") from None
        self.source, self.split = source, split
        self.files = [Path(path) for path in info.splits[split.partition("[")[0]].filepaths]
        self.version = f"{source} {info.version}"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Row:
        columns = {key: _python(value) for key, value in self.rows[number].items()}
        own = f"{self.name}/{self.split}:{number}"
        return Row(f"{self.source}, row {number}", Path(), own, columns)


def _pictures(features: Any, tfds: Any, source: str) -> list[str]:
    """Columns of an image.

    Raises:
      ValueError: a column of several: the library decodes them with TensorFlow alone.
    """
    for key, value in features.items():
        if isinstance(getattr(value, "feature", None), tfds.features.Image):
            raise ValueError(
                f"{source!r}: column {key!r} has lists of images, which TensorFlow Datasets reads "
                "with TensorFlow alone; expected one image a column"
            )
    return [key for key, value in features.items() if isinstance(value, tfds.features.Image)]


def _python(value: Any) -> Any:
    """NumPy values as plain ones, UTF-8 bytes as text."""
    if getattr(value, "dtype", None) in (np.float16, np.float32):
        return shortest(value)
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
