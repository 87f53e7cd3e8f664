"""The same weights in torch's own implementation and here, and how far two results differ."""

from __future__ import annotations

import atexit
import dataclasses
import pathlib
import shutil
import tempfile

import numpy as np
import torch
import transformers

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TEXT_IDS = 90  # ids below are plain text
SIZES = dict(  # of the tiny text models
    vocab_size=128,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    bos_token_id=0,
    eos_token_id=1,
)


def checkpoint(model) -> pathlib.Path:
    path = pathlib.Path(tempfile.mkdtemp(prefix="checkpoint_"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    model.save_pretrained(path)
    return path


@dataclasses.dataclass(frozen=True)
class Pair:
    """The same weights in torch and here."""

    torch_model: torch.nn.Module
    path: pathlib.Path
    model: object
    params: dict


def worst(found, expected, mask=None) -> float:
    """Largest difference relative to the expected values' scale, where `mask` is true."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    error = np.abs(found - expected)
    if mask is not None:
        error = error[np.asarray(mask).astype(bool)]
    return error.max() / max(np.abs(expected).max(), 1e-30)
