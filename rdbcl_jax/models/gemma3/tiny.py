"""A tiny Gemma 3 on disk: config, word-level tokenizer, chat template, image processor."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rdbcl_jax.models.tiny_files import Size, vocabulary, write_checkpoint

_START, _IMAGE, _END = "<start_of_image>", "<image_soft_token>", "<end_of_image>"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", _START, _IMAGE, _END, "<unk>")


@dataclasses.dataclass(frozen=True)
class TinySize(Size):
    """Sizes of the tiny model. Every image becomes `image_size` × `image_size` pixels."""

    head_dim: int = 32
    window: int = 32  # tokens that all layers but each `pattern`-th see back
    pattern: int = 3
    image_size: int = 32  # pixels
    image_tokens: int = 16


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
    processor = {"processor_class": "Gemma3Processor", "image_seq_length": size.image_tokens}
    files = {
        "config.json": _config(size, ids),
        "preprocessor_config.json": _preprocessor(size),
        "processor_config.json": processor,
    }
    named = {"boi_token": _START, "image_token": _IMAGE, "eoi_token": _END}
    return write_checkpoint(path, files, ids, SPECIAL, tags, _START, extra_special_tokens=named)


def _preprocessor(size: TinySize) -> dict[str, Any]:
    return {
        "image_processor_type": "Gemma3ImageProcessor",
        "processor_class": "Gemma3Processor",
        "size": {"height": size.image_size, "width": size.image_size},
        "do_convert_rgb": None,
        "do_pan_and_scan": None,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
    }


def _config(size: TinySize, ids: Mapping[str, int]) -> dict[str, Any]:
    """config.json in the published layout."""
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "boi_token_index": ids[_START],
        "eoi_token_index": ids[_END],
        "image_token_index": ids[_IMAGE],
        "eos_token_id": [ids["<|im_end|>"]],
        "mm_tokens_per_image": size.image_tokens,
        "torch_dtype": "float32",
        "text_config": {
            "model_type": "gemma3_text",
            "vocab_size": len(ids),
            "hidden_size": size.width,
            "intermediate_size": size.mlp_width,
            "num_hidden_layers": size.depth,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads,
            "head_dim": size.head_dim,
            "query_pre_attn_scalar": size.head_dim,
            "sliding_window": size.window,
            "sliding_window_pattern": size.pattern,
            "rope_theta": size.rope_theta,
            "rope_local_base_freq": size.rope_theta,
            "max_position_embeddings": 4096,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
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
