"""What the families' tiny checkpoints have in common: words, a tokenizer that knows them, a chat
template in ChatML, a Qwen2 decoder."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

ROLES = ("system", "user", "assistant")
_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}
{%- for part in message.content -%}
{% if part.type == 'image' %}IMAGE{% else %}{{ part.text }}
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
class Size:
    """Sizes that all tiny models have.

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
    patch_size: int = 4


def vocabulary(
    special: Sequence[str], words: Sequence[str], tags: Sequence[str] = ()
) -> dict[str, int]:
    """The id of every token; the roles of a chat are words too."""
    tokens = dict.fromkeys((*special, *tags, *ROLES, *words))
    return {token: i for i, token in enumerate(tokens)}


def write_checkpoint(
    path: str | pathlib.Path,
    files: Mapping[str, Mapping[str, Any]],
    ids: Mapping[str, int],
    special: Sequence[str],
    tags: Sequence[str],
    image: str,
    **options: Any,
) -> pathlib.Path:
    """A checkpoint directory without weights: the family's JSON files by their names,
    generation_config.json, and the tokenizer of `write_tokenizer`. Returns `path`."""
    path = pathlib.Path(path)
    path.mkdir(parents=True, exist_ok=True)
    generation = {"eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]}
    for name, content in {**files, "generation_config.json": generation}.items():
        (path / name).write_text(json.dumps(content, indent=2) + "\n")
    write_tokenizer(path, ids, special, tags, image, **options)
    return path


def write_tokenizer(
    path: pathlib.Path,
    ids: Mapping[str, int],
    special: Sequence[str],
    tags: Sequence[str],
    image: str,
    **options: Any,
) -> None:
    """A tokenizer of whole words, <|im_end|> at the end and <|endoftext|> for padding.

    Args:
      special: tokens that are found anywhere and never split, <unk> among them.
      tags: words that are found even without spaces around them.
      image: what the chat template writes for an image.
      options: further ones of `PreTrainedTokenizerFast`.
    """
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(dict(ids), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in special])
    tokenizer.add_tokens([AddedToken(t, special=False) for t in tags])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        padding_side="left",
        **options,
    )
    fast.chat_template = _TEMPLATE.replace("IMAGE", image)
    fast.save_pretrained(path)


def decoder_config(size: Size, ids: Mapping[str, int]) -> dict[str, Any]:
    """Fields of a Qwen2 decoder as transformers 4 published them."""
    return {
        "vocab_size": len(ids),
        "hidden_size": size.width,
        "intermediate_size": size.mlp_width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": size.rope_theta,
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
    }
