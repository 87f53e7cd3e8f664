"""A tiny SmolVLM on disk: config, word-level tokenizer, chat template and image processor.

The directory has the layout of a published checkpoint, weights excepted.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rdbcl_jax.models.tiny_files import Size, decoder_config, vocabulary, write_checkpoint


@dataclasses.dataclass(frozen=True)
class TinySize(Size):
    """Sizes of the tiny model. An image is at most `tiles` × `tiles` tiles, and one more."""

    image_size: int = 16  # pixels, of a tile
    scale: int = 2
    tiles: int = 2


def write_tiny(
    path: str | pathlib.Path,
    words: Sequence[str],
    *,
    tags: Sequence[str] = (),
    size: TinySize | None = None,
) -> pathlib.Path:
    """Writes everything of a checkpoint directory but its weights; returns `path`.

    Args:
      words: those that the tokenizer knows.
      tags: words that it finds even without spaces around them.
    """
    size = size or TinySize()
    special = _special(size)
    ids = vocabulary(special, words, tags)
    seen = (size.image_size // size.patch_size // size.scale) ** 2
    files = {
        "config.json": _config(size, ids),
        "preprocessor_config.json": _preprocessor(size),
        "processor_config.json": {"processor_class": "SmolVLMProcessor", "image_seq_len": seen},
    }
    return write_checkpoint(path, files, ids, special, tags, "<image>")


def _special(size: TinySize) -> list[str]:
    at = range(1, size.tiles + 1)
    return [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<image>",
        "<fake_token_around_image>",
        "<global-img>",
        *(f"<row_{row}_col_{column}>" for row in at for column in at),
        "<unk>",
    ]


def _preprocessor(size: TinySize) -> dict[str, Any]:
    return {
        "image_processor_type": "SmolVLMImageProcessor",
        "processor_class": "SmolVLMProcessor",
        "do_convert_rgb": True,
        "do_image_splitting": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "max_image_size": {"longest_edge": size.image_size},
        "resample": 1,
        "rescale_factor": 1 / 255,
        "size": {"longest_edge": size.tiles * size.image_size},
    }


def _config(size: TinySize, ids: Mapping[str, int]) -> dict[str, Any]:
    return {
        "architectures": ["SmolVLMForConditionalGeneration"],
        "model_type": "smolvlm",
        "image_token_id": ids["<image>"],
        "scale_factor": size.scale,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "text_config": {**decoder_config(size, ids), "model_type": "llama"},
        "vision_config": {
            "model_type": "smolvlm_vision",
            "num_hidden_layers": size.vision_depth,
            "hidden_size": size.vision_width,
            "intermediate_size": size.vision_mlp_width,
            "num_attention_heads": size.vision_heads,
            "num_channels": 3,
            "image_size": size.image_size,
            "patch_size": size.patch_size,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
        },
    }
