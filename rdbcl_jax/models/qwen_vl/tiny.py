"""A tiny Qwen2.5-VL on disk: config, word-level tokenizer, chat template and image processor.

The directory has the layout of a published checkpoint, weights excepted (`models.save_pretrained`
adds them), so one loading path serves the quickstart and the real models.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

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
ROLES = ("system", "user", "assistant")

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}
{%- for part in message.content -%}
{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


@dataclasses.dataclass(frozen=True)
class TinySize:
    """Sizes of the tiny model: 0.6 M parameters, and one visual token per digit cell.

    `rope_theta` is small because prompts are short: with the usual 10,000 the frequencies that
    read a visual token's column hardly turn from one column to the next.
    """

    depth: int = 3
    width: int = 128
    mlp_width: int = 256
    heads: int = 4
    kv_heads: int = 2
    rope_theta: float = 10.0
    vision_depth: int = 2
    vision_width: int = 64
    vision_mlp_width: int = 128
    vision_heads: int = 2
    full_attention_layers: tuple[int, ...] = (1,)
    window_size: int = 8  # pixels
    patch_size: int = 4
    merge_size: int = 2


def vocabulary(words: Sequence[str], tags: Sequence[str] = ()) -> list[str]:
    """Every token, in the order of the ids."""
    return list(dict.fromkeys((*SPECIAL, *tags, *ROLES, *words)))


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
    ids = {word: i for i, word in enumerate(vocabulary(words, tags))}
    _write_json(path / "config.json", _config(size, ids))
    _write_json(
        path / "generation_config.json",
        {"eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]},
    )
    _write_json(path / "preprocessor_config.json", _preprocessor(size))
    _tokenizer(ids, tags).save_pretrained(path)
    return path


def _write_json(file: pathlib.Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")


def _tokenizer(ids: dict[str, int], tags: Sequence[str]):
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, special=False) for t in tags])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        padding_side="left",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


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


def _config(size: TinySize, ids: dict[str, int]) -> dict[str, Any]:
    """config.json in the published (flat) layout."""
    half_head = size.width // size.heads // 2
    spatial = 3 * half_head // 8  # the published 16 : 24 : 24 of 64
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "vocab_size": len(ids),
        "hidden_size": size.width,
        "intermediate_size": size.mlp_width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": size.rope_theta,
        "rope_scaling": {
            "type": "mrope",
            "mrope_section": [half_head - 2 * spatial, spatial, spatial],
        },
        "max_position_embeddings": 4096,
        "sliding_window": 4096,
        "use_sliding_window": False,
        "max_window_layers": size.depth,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "use_cache": True,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
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
