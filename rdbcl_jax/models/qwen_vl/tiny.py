"""A tiny Qwen2.5-VL on disk: config, word-level tokenizer, chat template and image processor.

The directory has the layout of a published checkpoint, weights excepted (`models.save_pretrained`
adds them), so one loading path serves the quickstart and the real models.
"""

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
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<unk>",
)


@dataclasses.dataclass(frozen=True)
class TinySize(Size):
    """Sizes of the tiny model: 0.6 M parameters, and one visual token per digit cell."""

    full_attention_layers: tuple[int, ...] = (1,)
    window_size: int = 8  # pixels
    merge_size: int = 2


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
    files = {"config.json": _config(size, ids), "preprocessor_config.json": _preprocessor(size)}
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    return write_checkpoint(path, files, ids, SPECIAL, tags, image)


def _preprocessor(size: TinySize) -> dict[str, Any]:
    unit = size.patch_size * size.merge_size
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "patch_size": size.patch_size,
        "merge_size": size.merge_size,
        "temporal_patch_size": 2,
        "min_pixels": unit**2,
        "max_pixels": 64 * unit**2,
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def _config(size: TinySize, ids: Mapping[str, int]) -> dict[str, Any]:
    """config.json in the published (flat) layout."""
    half_head = size.width // size.heads // 2
    spatial = 3 * half_head // 8  # the published 16 : 24 : 24 of 64
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        **decoder_config(size, ids),
        "rope_scaling": {
            "type": "mrope",
            "mrope_section": [half_head - 2 * spatial, spatial, spatial],
        },
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|image_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": {
            "depth": size.vision_depth,
            "hidden_act": "silu",
            "hidden_size": size.vision_width,
            "intermediate_size": size.vision_mlp_width,
            "num_heads": size.vision_heads,
            "in_chans": 3,
            "out_hidden_size": size.width,
            "patch_size": size.patch_size,
            "spatial_merge_size": size.merge_size,
            "spatial_patch_size": size.patch_size,
            "temporal_patch_size": 2,
            "window_size": size.window_size,
            "fullatt_block_indexes": list(size.full_attention_layers),
            "tokens_per_second": 2,
        },
    }
