"""The tiny base model on disk, in the words of the digit tasks.

The directory has the layout of a published checkpoint, weights excepted (`models.save_pretrained`
adds them), so one loading path serves the quickstart and the real models.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from rdbcl_jax.models.registry import family
from rdbcl_jax.rewards.response_format import TAGS
from rdbcl_jax.toy import digits_suite

_TINY = family("qwen2_5_vl").tiny
assert _TINY
TinySize, _write = _TINY.size, _TINY.write


def write_tiny_model(
    path: str | pathlib.Path, size: Any = None, extra_words: Sequence[str] = ()
) -> pathlib.Path:
    """Writes everything of a checkpoint directory but its weights; returns `path`.

    Args:
      size: a `TinySize`; None: its defaults.
      extra_words: beside those of the digit tasks.
    """
    return _write(path, (*digits_suite.words(), *extra_words), tags=TAGS, size=size)
