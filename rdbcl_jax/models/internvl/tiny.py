"""A tiny InternVL 3 on disk: config, word-level tokenizer, chat template and image processor."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rdbcl_jax.models.tiny_files import Size, decoder_config, vocabulary, write_checkpoint

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<video>",
    "<unk>",
)


@dataclasses.dataclass(frozen=True)
class TinySize(Size):
    """Sizes of the tiny model: 0.5 M parameters, and four visual tokens per tile."""

    image_size: int = 16  # pixels, of a tile's side
    max_tiles: int = 6


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
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    return write_checkpoint(
        path, files, ids, SPECIAL, tags, "<IMG_CONTEXT>", extra_special_tokens=names
    )


def _tile_tokens(size: TinySize) -> int:
    return (size.image_size // size.patch_size // 2) ** 2


def _processor(size: TinySize) -> dict[str, Any]:
    return {"processor_class": "InternVLProcessor", "image_seq_length": _tile_tokens(size)}


def _preprocessor(size: TinySize) -> dict[str, Any]:
    return {
        "image_processor_type": "GotOcr2ImageProcessor",
        "processor_class": "InternVLProcessor",
        "size": {"height": size.image_size, "width": size.image_size},
        "crop_to_patches": False,  # as published; the processor asks for it all the same
        "min_patches": 1,
        "max_patches": size.max_tiles,
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }


def _config(size: TinySize, ids: Mapping[str, int]) -> dict[str, Any]:
    """config.json in the published layout."""
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "image_token_id": ids["<IMG_CONTEXT>"],
        "image_seq_length": _tile_tokens(size),
        "downsample_ratio": 0.5,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "text_config": {"model_type": "qwen2", **decoder_config(size, ids)},
        "vision_config": {
            "model_type": "internvl_vision",
            "hidden_size": size.vision_width,
            "intermediate_size": size.vision_mlp_width,
            "num_hidden_layers": size.vision_depth,
            "num_attention_heads": size.vision_heads,
            "attention_bias": True,
            "use_qk_norm": False,
            "norm_type": "layer_norm",
            "layer_norm_eps": 1e-6,
            "layer_scale_init_value": 0.1,
            "image_size": [size.image_size, size.image_size],
            "patch_size": [size.patch_size, size.patch_size],
            "use_mean_pooling": True,
            "hidden_act": "gelu",
        },
    }
