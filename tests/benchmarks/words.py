"""Prompts as text for the peers, which tokenize: a word for every id, so L words are L tokens."""

from __future__ import annotations

import numpy as np
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.benchmarks.workload import Workload

SPECIAL = 8  # the last ids of the vocabulary are set apart


def word_tokenizer(w: Workload) -> transformers.PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(w.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=f"w{w.vocab_size - 1}",
        eos_token=f"w{w.vocab_size - 2}",
        padding_side="left",
    )


def word_prompts(w: Workload, count: int) -> list[str]:
    """So many prompts of L random words."""
    rows = np.random.default_rng(0).integers(0, w.vocab_size - SPECIAL, (count, w.prompt_length))
    return [" ".join(f"w{i}" for i in row) for row in rows]
