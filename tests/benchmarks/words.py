"""Prompts as text for the peers, which tokenize: a word for every id, so L words are L tokens."""

from __future__ import annotations

import numpy as np
import transformers
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from tests.benchmarks.workload import Workload

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- endfor -%}
"""


def word_tokenizer(w: Workload) -> transformers.PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(min(w.special.values()))} | w.special
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in w.special])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        padding_side="left",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def word_prompts(w: Workload, count: int) -> list[str]:
    """So many prompts' texts of random words."""
    ids = np.random.default_rng(0).integers(0, min(w.special.values()), (count, w.words))
    return [" ".join(f"w{i}" for i in row) for row in ids]
