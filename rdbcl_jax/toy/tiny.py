"""The tiny base model on disk, in the words of the digit tasks.

The directory has the layout of a published checkpoint, weights excepted (`models.save_pretrained`
adds them), so one loading path serves the quickstart and the real models.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from rdbcl_jax.models.interface import Tiny
from rdbcl_jax.models.registry import MODEL_TYPES, family
from rdbcl_jax.rewards.response_format import TAGS
from rdbcl_jax.toy import digits_suite

TinySize = family("qwen2_5_vl").tiny.size  # type: ignore[union-attr]


def tiny_of(model_type: str) -> Tiny:
    """How the family with a `model_type` writes a tiny model.

    Raises ValueError for a model type that is not known, and for a family that writes none.
    """
    types = [name for name in MODEL_TYPES if family(name).tiny]
    if model_type not in types:
        raise ValueError(f"model_type is {model_type!r}, expected one of {types}")
    tiny = family(model_type).tiny
    assert tiny
    return tiny


def write_tiny_model(
    path: str | pathlib.Path,
    size: Any = None,
    extra_words: Sequence[str] = (),
    model_type: str = "qwen2_5_vl",
) -> pathlib.Path:
    """Writes everything of a checkpoint directory but its weights; returns `path`.

    Args:
      size: a `TinySize` of the family; None: its defaults.
      extra_words: beside those of the digit tasks.
    """
    words = (*digits_suite.words(), *extra_words)
    return tiny_of(model_type).write(path, words, tags=TAGS, size=size)
