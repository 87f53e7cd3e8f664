"""A tiny LLaVA-OneVision on disk: config, word-level tokenizer, chat template, image processor."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rdbcl_jax.models.tiny_files import Size, decoder_config, vocabulary, write_checkpoint

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>", "<unk>")


@dataclasses.dataclass(frozen=True)
class TinySize(Size):
    """Sizes of the tiny model: 0.6 M parameters, and 16 visual tokens per tile.

    `most_tiles` is the number of tiles whose visual tokens a larger grid is shrunk to.
    """

    image_size: int = 16  # pixels, of a tile's side
    longest: int = 3  # tiles along a side of the largest grid
    most_tiles: int = 4


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
    ids = vocabulary(SPECIAL, words, tags)
    files = {
        "config.json": _config(size, ids),
        "preprocessor_config.json": _preprocessor(size),
        "processor_config.json": _processor(size),
    }
    return write_checkpoint(path, files, ids, SPECIAL, tags, "<image>")


def _grids(size: TinySize) -> list[list[int]]:
    sides = [size.image_size * n for n in range(1, size.longest + 1)]
    return [list(grid) for grid in itertools.product(sides, sides)]


def _processor(size: TinySize) -> dict[str, Any]:
    return {
        "processor_class": "LlavaOnevisionProcessor",
        "num_image_tokens": (size.image_size // size.patch_size) ** 2,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": f"anyres_max_{size.most_tiles}",
        "image_token": "<image>",
        "video_token": "<video>",
    }


def _preprocessor(size: TinySize) -> dict[str, Any]:
    return {
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "processor_class": "LlavaOnevisionProcessor",
        "size": {"height": size.image_size, "width": size.image_size},
        "image_grid_pinpoints": _grids(size),
        "do_convert_rgb": True,
        "do_pad": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def _config(size: TinySize, ids: Mapping[str, int]) -> dict[str, Any]:
    """config.json in the published layout."""
    return {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "model_type": "llava_onevision",
        "image_token_index": ids["<image>"],
        "video_token_index": ids["<video>"],
        "image_grid_pinpoints": _grids(size),
        "vision_aspect_ratio": f"anyres_max_{size.most_tiles}",
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "text_config": {"model_type": "qwen2", **decoder_config(size, ids)},
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": size.vision_width,
            "intermediate_size": size.vision_mlp_width,
            "num_hidden_layers": size.vision_depth,
            "num_attention_heads": size.vision_heads,
            "image_size": size.image_size,
            "patch_size": size.patch_size,
            "vision_use_head": False,
        },
    }
