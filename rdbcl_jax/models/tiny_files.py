"""What the families' tiny checkpoints have in common: words, a tokenizer that knows them, a chat
template in ChatML, a Qwen2 decoder."""

from __future__ import annotations

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


def vocabulary(
    special: Sequence[str], words: Sequence[str], tags: Sequence[str] = ()
) -> dict[str, int]:
    """The id of every token; the roles of a chat are words too."""
    tokens = dict.fromkeys((*special, *tags, *ROLES, *words))
    return {token: i for i, token in enumerate(tokens)}


def write_json(file: pathlib.Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")


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


def write_generation_config(path: pathlib.Path, ids: Mapping[str, int]) -> None:
    write_json(
        path / "generation_config.json",
        {"eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]},
    )


def decoder_config(size: Any, ids: Mapping[str, int]) -> dict[str, Any]:
    """Fields of a Qwen2 decoder as transformers 4 published them.

    Args:
      size: with `depth`, `width`, `mlp_width`, `heads`, `kv_heads` and `rope_theta`.
    """
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
