"""A tiny Gemma 3 on disk: config, word-level tokenizer, chat template, image processor."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rdbcl_jax.models.tiny_files import (
    vocabulary,
    write_generation_config,
    write_json,
    write_tokenizer,
)

_START, _IMAGE, _END = "<start_of_image>", "<image_soft_token>", "<end_of_image>"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", _START, _IMAGE, _END, "<unk>")


@dataclasses.dataclass(frozen=True)
class TinySize:
    """Sizes of the tiny model. Every image becomes `image_size` × `image_size` pixels."""

    depth: int = 3
    width: int = 128
    mlp_width: int = 256
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    window: int = 32  # tokens that all layers but each `pattern`-th see back
    pattern: int = 3
    rope_theta: float = 10.0  # small, as prompts are short
    vision_depth: int = 2
    vision_width: int = 64
    vision_mlp_width: int = 128
    vision_heads: int = 2
    image_size: int = 32  # pixels
    patch_size: int = 4
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
    path, size = pathlib.Path(path), size or TinySize()
    path.mkdir(parents=True, exist_ok=True)
    ids = vocabulary(SPECIAL, words, tags)
    write_json(path / "config.json", _config(size, ids))
    write_json(path / "preprocessor_config.json", _preprocessor(size))
    processor = {"processor_class": "Gemma3Processor", "image_seq_length": size.image_tokens}
    write_json(path / "processor_config.json", processor)
    write_generation_config(path, ids)
    named = {"boi_token": _START, "image_token": _IMAGE, "eoi_token": _END}
    write_tokenizer(path, ids, SPECIAL, tags, _START, extra_special_tokens=named)
    return path


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
