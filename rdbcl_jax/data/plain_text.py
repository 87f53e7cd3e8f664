"""A record's text stays text: control tokens written in it are encoded as plain characters.

A chat template is rendered with a mark in place of every text of a record, so that no template can
take one for another; then the texts are put in, and the tokenizer gets the whole, cut within each
control token that a text has a share in. Without such, what it gets is exactly what the template
makes of the texts.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Sequence
from typing import Any

# two code points that Unicode keeps for uses like this: no text holds them
_MARK = re.compile("\ufdd0([0-9]+)\ufdd1")
_REGIONS = {"box", "quad", "ref", "point", "poly", "loc", "seg"}
Span = tuple[int, int]  # of characters


@dataclasses.dataclass(frozen=True)
class Hidden:
    """The texts of one prompt, each hidden behind a mark while the chat template is rendered."""

    texts: list[str] = dataclasses.field(default_factory=list)

    def hide(self, text: str) -> str:
        """The mark of a text. White space at its ends stays outside: templates strip it."""
        core = text.strip()
        if not core:
            return text
        start = text.index(core)
        self.texts.append(core)
        return f"{text[:start]}\ufdd0{len(self.texts) - 1}\ufdd1{text[start + len(core) :]}"

    def missing(self, rendered: str) -> list[str]:
        """The texts whose marks a template has left out, or taken apart."""
        there = {int(mark[1]) for mark in _MARK.finditer(rendered)}
        return [text for number, text in enumerate(self.texts) if number not in there]

    def show(self, rendered: str) -> tuple[str, list[Span]]:
        """What a template made of marks, with the texts in their places, and where those lie."""
        parts, spans, length, end = [], [], 0, 0
        for mark in _MARK.finditer(rendered):
            before, text = rendered[end : mark.start()], self.texts[int(mark[1])]
            parts += [before, text]
            spans.append((length + len(before), length + len(before) + len(text)))
            length, end = spans[-1][1], mark.end()
        return "".join([*parts, rendered[end:]]), spans


def control_tokens(tokenizer: Any) -> set[str]:
    """The tokens that a tokenizer calls special: they structure a chat, end it or stand for
    pictures. Without those that mark regions of a picture, which a text may speak of, and without
    what any unknown word becomes."""
    named = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}
    added = tokenizer.added_tokens_decoder.values()
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    return {
        token.content
        for token in added
        if (token.special or token.content in named)
        and token.content != getattr(model, "unk_token", None)
        and not _REGIONS & {*re.split(r"[\W\d_]+", token.content)}
    }


class PlainText:
    """Cuts texts in parts that the tokenizer finds none of some tokens in."""

    def __init__(self, tokens: Collection[str]):
        longest_first = sorted(tokens, key=len, reverse=True)
        self._any = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def cut(self, text: str, spans: Sequence[Span]) -> list[str]:
        """The text in parts, none of which holds a token that reaches into a span: each such is cut
        behind its first character. Encoded one by one, the parts are plain there."""
        cuts, at = [0], 0
        while found := self._any.search(text, at):
            if any(found.start() < end and start < found.end() for start, end in spans):
                at = found.start() + 1
                cuts.append(at)
            else:
                at = found.end()
        return [text[a:b] for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]
