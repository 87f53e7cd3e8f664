"""Which tokens of a sampled response are its reasoning, and which its answer.

Portability is a mean over reasoning tokens, so spans are needed per token, on the host, while the
device works. Joined token strings give a text in which the ASCII tags stand as they are, even under
byte-level BPE, where other characters are written in a private alphabet; the length of each token's
string then says where in that text it lies. Nothing is decoded, and there is no loop over tokens.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from rdbcl_jax.rewards.response_format import TAGS


class SpanFinder:
    """Finds reasoning and answer spans in the responses of one tokenizer.

    Args:
      tokenizer: a Hugging Face tokenizer, byte-level BPE or word-level.
      opened: how the prompt has begun every response, such as `<think>` and a newline.
    """

    def __init__(self, tokenizer, opened: str = ""):
        self._opened = opened
        size = len(tokenizer)
        strings = tokenizer.convert_ids_to_tokens(list(range(size)))
        # word-level tokenizers have no decoder: their words are joined by spaces
        backend = getattr(tokenizer, "backend_tokenizer", None)
        separator = " " if backend is not None and backend.decoder is None else ""
        # special tokens are not text, unless a tag itself was made one
        hidden = set(tokenizer.all_special_tokens) - set(TAGS)
        texts = ["" if s is None or s in hidden else s + separator for s in strings]
        # one entry more, empty: for ids beyond the tokenizer (padded embeddings) and masked tokens
        self._texts = np.array([*texts, ""], dtype=object)
        self._lengths = np.array([len(text) for text in self._texts], np.int64)
        self._gap = len(separator)

    def find(
        self, tokens: Int[np.ndarray, "*n T"], mask: Bool[np.ndarray, "*n T"]
    ) -> tuple[Bool[np.ndarray, "*n T"], Bool[np.ndarray, "*n T"]]:
        """Masks of the reasoning tokens and of the answer tokens.

        Reasoning lies between the first `<think>`, the prompt's where that opened one, and the
        next `</think>`; cut off before that, it lasts to the end of the mask, or up to an
        `<answer>`. Without `<think>` it is empty. The
        answer lies between the first `<answer>` after the reasoning and the next `</answer>`,
        else to the end of the mask. A token that holds the end of a tag *and* content (BPE merges
        such as `>\\n`) counts as content; tokens of a tag alone and special tokens never do.

        Args:
          tokens: ids; arbitrary where masked.
          mask: True on response tokens. Nothing is inferred from ids.
        """
        tokens, mask = np.asarray(tokens), np.asarray(mask, bool)
        nothing = len(self._texts) - 1
        known = mask & (tokens >= 0) & (tokens < nothing)
        ids = np.where(known, tokens, nothing).reshape(-1, tokens.shape[-1])
        begun = self._opened
        texts = (begun + "".join(row) for row in self._texts[ids].tolist())
        spans = np.array([_spans(text) for text in texts], np.int64)
        lengths = self._lengths[ids]
        ends = len(begun) + np.cumsum(lengths, axis=1)
        starts, ends = ends - lengths, ends - self._gap
        reasoning, answer = (
            (lengths > 0) & (first < stop) & (ends > first) & (starts < stop)
            for first, stop in spans.reshape(-1, 2, 2, 1).transpose(1, 2, 0, 3)
        )
        return reasoning.reshape(tokens.shape), answer.reshape(tokens.shape)


def _spans(text: str) -> tuple[int, int, int, int]:
    """Where reasoning and answer start and stop in a response: character offsets [start, stop)."""
    think, end_think, answer, end_answer = TAGS
    start, stop = _between(text, think, end_think, 0)
    if stop < 0:  # cut off, or </think> forgotten
        stop = text.find(answer, start)
        stop = len(text) if stop < 0 else stop
    answer_start, answer_stop = _between(text, answer, end_answer, stop)
    return start, stop, answer_start, len(text) if answer_stop < 0 else answer_stop


def _between(text: str, left: str, right: str, begin: int) -> tuple[int, int]:
    """The span after `left` and before `right`: (begin, begin) without `left`, and its stop is −1
    without `right`."""
    if (found := text.find(left, begin)) < 0:
        return begin, begin
    start = found + len(left)
    return start, text.find(right, start)
