"""Records to prompts: chat template, the model's processor, padding to a few fixed shapes."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from jinja2 import TemplateError

from rdbcl_jax.batches import PromptBatch, fitting_size
from rdbcl_jax.data.conventions import IMAGE_MARK
from rdbcl_jax.data.plain_text import Hidden, PlainText, control_tokens
from rdbcl_jax.data.records import Record, load_images
from rdbcl_jax.data.values import short
from rdbcl_jax.messages import line_of
from rdbcl_jax.models.interface import Processor
from rdbcl_jax.rewards.response_format import TAGS

_OPENED = re.compile(rf"{TAGS[0]}\s*\Z")


class SupervisedBatch(NamedTuple):
    """Prompts with G demonstrations each; `mask` covers the end token, nothing after it."""

    prompts: PromptBatch
    tokens: Int[np.ndarray, "P G T"]
    mask: Bool[np.ndarray, "P G T"]


class ReadRecord(NamedTuple):
    """A record whose prompt is tokenized and whose pictures are decoded and resized, of no batch
    yet."""

    name: str
    tokens: Sequence[int]
    pictures: Any  # as the processor has them


class PromptEncoder:
    """Turns records into a `PromptBatch` of numpy arrays.

    Args:
      lengths, response_lengths: the sizes L and T that batches may have; the smallest that fits is
        taken, so that a run compiles few programs. Empty: exactly what a batch needs.
      system_prompt: a system message before the prompts of records that have none of their own;
        empty for none.
      template: the text of the user's message; `{prompt}` stands for the record's.
    """

    def __init__(
        self,
        tokenizer: Any,
        processor: Processor,
        *,
        lengths: Sequence[int] = (),
        response_lengths: Sequence[int] = (),
        system_prompt: str = "",
        template: str = "{prompt}",
    ):
        self.tokenizer, self.processor = tokenizer, processor
        self.lengths, self.response_lengths = tuple(lengths), tuple(response_lengths)
        self.system_prompt, self.template = system_prompt, template

    @functools.cached_property
    def opened(self) -> str:
        """How the prompt begins every response: its `<think>` and the white space after it, where
        the chat template opens the reasoning; else nothing."""
        chat = [{"role": "user", "content": self._content("x")}]
        prompt = self._rendered(chat, "a question", add_generation_prompt=True)
        found = _OPENED.search(prompt)
        return found[0] if found else ""

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end a response: those that the model's files and its tokenizer name, and
        the control token that the chat template writes right after an assistant's turn. Idefics3
        ends its turns with one that none of its files calls an end."""
        rest, tokenizer = self._after_answer.lstrip(), self.tokenizer
        turn = [token for token in control_tokens(tokenizer) if rest.startswith(token)]
        ids = tokenizer.convert_tokens_to_ids(sorted(turn, key=len)[-1:])
        named = {*self.processor.config.eos_token_ids, tokenizer.eos_token_id, *ids}
        return tuple(sorted(named - {None}))  # not every tokenizer names one

    @functools.cached_property
    def end_id(self) -> int:
        """The token that ends a demonstration: of those that end a response the one that the chat
        template writes after an assistant's turn, else the tokenizer's own end.

        Raises ValueError where there is none.
        """
        own, stops = self.tokenizer.eos_token_id, self.stop_ids
        if not stops:
            raise ValueError(
                "no token ends a response: expected eos_token_id in the model's "
                "generation_config.json, or eos_token in its tokenizer_config.json"
            )
        own = min(stops) if own is None else own
        ids = self.tokenizer(self._after_answer, add_special_tokens=False)["input_ids"]
        return next((token for token in ids if token in stops), own)

    @functools.cached_property
    def _after_answer(self) -> str:
        """What the chat template writes after an assistant's turn; nothing where it shows none."""
        said = "said"
        texts = {"user": "asked", "assistant": said}
        chat = [{"role": role, "content": self._content(text)} for role, text in texts.items()]
        try:
            _, found, rest = self._rendered(chat, "an answer").rpartition(said)
        except ValueError:  # a template for questions alone
            return ""
        return rest if found else ""

    @functools.cached_property
    def _responses(self) -> PlainText:
        """Of demonstrations: what stands for pictures or ends a response is text in them. A policy
        may have said any other token."""
        return PlainText(self._never)

    @functools.cached_property
    def _prompts(self) -> PlainText:
        return PlainText(self._never | control_tokens(self.tokenizer))

    @functools.cached_property
    def _never(self) -> set[str]:
        ids = {*self.processor.config.forbidden_token_ids, *self.stop_ids}
        added = self.tokenizer.added_tokens_decoder.items()
        return {token.content for number, token in added if number in ids}

    def _content(self, text: str) -> Any:
        """A message's text as the chat template gets it."""
        return [{"type": "text", "text": text}] if self.processor.reads_images else text

    # ------------------------------------------------------------ batches

    def encode(
        self,
        records: Sequence[Record],
        ids: Sequence[int] | None = None,
        prefixes: Sequence[str] | None = None,
    ) -> PromptBatch:
        """One row per record.

        Args:
          ids: what `record_ids` holds; default 0, 1, ….
          prefixes: per record, the beginning of a response for the model to continue. What the
            prompt itself begins (`opened`) is not said twice.
        Raises:
          ValueError: a record whose images do not match its placeholders, whose prompt or image
            exceeds the largest size allowed, or that has images where the model reads none.
        """
        return self.batch(self.read(records, prefixes), ids)

    def read(
        self, records: Sequence[Record], prefixes: Sequence[str] | None = None
    ) -> list[ReadRecord]:
        """The part of `encode` that takes long, of each record for itself; `batch` is the rest."""
        names = [record.id for record in records]
        self.check(records)
        pictures = self.processor.pictures([load_images(record) for record in records])
        parts = [*zip(self._tokenize(records, prefixes), pictures, names, strict=True)]
        rows = [self.processor.expand(*part) for part in parts]
        self._check_ids(rows, names)
        return [ReadRecord(*found) for found in zip(names, rows, pictures, strict=True)]

    def batch(self, read: Sequence[ReadRecord], ids: Sequence[int] | None = None) -> PromptBatch:
        """One row per record, of a size that holds all of them."""
        names, rows, pictures = ([*parts] for parts in zip(*read, strict=True))
        length = fitting_size("prompt_lengths", [len(row) for row in rows], self.lengths, names)
        tokens, mask = pad(rows, length, self._pad_id, left=True)
        model_inputs, following = self.processor.model_inputs(tokens, mask, pictures, names)
        return PromptBatch(
            tokens=tokens,
            mask=mask,
            next_position=following,
            record_ids=np.asarray(range(len(read)) if ids is None else ids, np.int32),
            model_inputs=model_inputs,
        )

    def encode_supervised(
        self,
        records: Sequence[Record],
        responses: Sequence[str | Sequence[str]],
        ids: Sequence[int] | None = None,
    ) -> SupervisedBatch:
        """Prompts with demonstrations: one text per record, or the same number G of texts."""
        groups = [[r] if isinstance(r, str) else list(r) for r in responses]
        if len({len(group) for group in groups}) != 1:
            raise ValueError(f"responses per record differ: {[len(g) for g in groups]}")
        texts = [text for group in groups for text in group]
        owners = [record for record, group in zip(records, groups, strict=True) for _ in group]
        tokens, mask = self.encode_responses(texts, owners)
        shape = (len(records), -1, tokens.shape[1])
        return SupervisedBatch(
            self.encode(records, ids), tokens.reshape(shape), mask.reshape(shape)
        )

    def encode_responses(
        self, texts: Sequence[str], records: Sequence[Record]
    ) -> tuple[Int[np.ndarray, "R T"], Bool[np.ndarray, "R T"]]:
        """Tokens and mask of one demonstration per record, the end token included: what follows the
        prompt, so without what that has `opened`.

        Raises:
          ValueError: a record whose response is longer than any length allowed, or holds what the
            tokenizer has no token for (published ones have one for every byte).
        """
        texts = [self._unopened(text) for text in texts]
        parts = [self._responses.cut(text, [(0, len(text))]) for text in texts]
        rows = self._ids(parts)
        unknown, unknown_id = self.tokenizer.unk_token, self.tokenizer.unk_token_id
        for record, text, row in zip(records, texts, rows, strict=True):
            # a policy may have said the token itself
            if unknown_id in row and row.count(unknown_id) > text.count(unknown):
                raise ValueError(
                    f"record {record.id!r}: the tokenizer has no token for a part of its response "
                    f"{text!r}; write it in words that it knows (what stands for no reasoning is "
                    "demonstrations.no_reasoning)"
                )
        rows = [[*row, self.end_id] for row in rows]
        lengths, names = [len(row) for row in rows], [record.id for record in records]
        self._check_ids(rows, names)
        length = fitting_size("response_lengths", lengths, self.response_lengths, names)
        return pad(rows, length, self._pad_id)

    # ------------------------------------------------------------ pieces

    @property
    def _pad_id(self) -> int:
        pad_id = self.processor.config.pad_token_id
        return self.end_id if pad_id is None else pad_id

    def messages(self, record: Record, hidden: Hidden) -> list[dict[str, Any]]:
        """The record as a chat: images where `<image>` marks them, else before the text. Its own
        system message goes before the encoder's. The record's texts are hidden."""
        shows = self.processor.reads_images
        pieces = record.prompt.split(IMAGE_MARK) if shows else [record.prompt]
        content: Any = self.template.replace("{prompt}", IMAGE_MARK.join(map(hidden.hide, pieces)))
        system: Any = hidden.hide(record.system) or self.system_prompt
        if shows:
            content = _parts(content, len(record.images))
            # in parts too: some templates for pictures pass over a plain text without a word
            system = system and [{"type": "text", "text": system}]
        chat = [{"role": "user", "content": content}]
        if system:
            chat.insert(0, {"role": "system", "content": system})
        return chat

    def check(self, records: Sequence[Record]) -> None:
        """Raises ValueError for a record with images where the model reads none."""
        for record in records:
            if record.images and not self.processor.reads_images:
                raise ValueError(
                    f"record {record.id!r} has images, but the model reads text only; name one "
                    "with vision in model.path, or leave the record out"
                )

    def _tokenize(
        self, records: Sequence[Record], prefixes: Sequence[str] | None
    ) -> list[list[int]]:
        texts, spans = [], []
        for record in records:
            hidden, name = Hidden(), f"record {record.id!r}"
            chat = self.messages(record, hidden)
            rendered = self._rendered(chat, name, add_generation_prompt=True)
            if lost := hidden.missing(rendered):
                raise ValueError(
                    f"{name}: the model's chat template leaves out {short(lost[0])}; {self._wanted}"
                )
            text, of_record = hidden.show(self.processor.written(rendered))
            texts.append(text)
            spans.append(of_record)
        if prefixes is not None:
            pairs = zip(texts, prefixes, strict=True)
            texts = [text + self._unopened(prefix) for text, prefix in pairs]
        return self._ids([self._prompts.cut(*pair) for pair in zip(texts, spans, strict=True)])

    def _rendered(self, chat: list[dict[str, Any]], name: str, **options: Any) -> str:
        """What the chat template makes of a chat, which errors call `name`."""
        try:
            return self.tokenizer.apply_chat_template(chat, tokenize=False, **options)
        except Exception as error:  # a template raises what it likes
            hint = "" if isinstance(error, TemplateError) else f"; {self._wanted}"
            raise ValueError(
                f"{name}: the model's chat template refuses it: {line_of(error)}{hint}"
            ) from error

    @property
    def _wanted(self) -> str:
        content = "parts, texts and images," if self.processor.reads_images else "plain text"
        return f"expected one that shows messages of every role, whose content is {content} in full"

    def _check_ids(self, rows: Sequence[Sequence[int]], names: Sequence[str]) -> None:
        """Raises ValueError for a token beyond the model's: indexing would take another for it."""
        size = self.processor.config.vocab_size
        for row, name in zip(rows, names, strict=True):
            if (largest := max(row, default=0)) >= size:
                token = self.tokenizer.convert_ids_to_tokens(largest)
                raise ValueError(
                    f"record {name!r}: the tokenizer's id of {token!r} is {largest}, and the model "
                    f"has embeddings of {size} tokens; expected as many as the tokenizer's"
                )

    def _unopened(self, response: str) -> str:
        """What is left to say of a response, or of its beginning, after the prompt."""
        tag = self.opened.rstrip()
        begins = bool(tag) and response.lstrip().startswith(tag)
        return response.lstrip().removeprefix(tag).lstrip() if begins else response

    def _ids(self, parts: Sequence[Sequence[str]]) -> list[list[int]]:
        """Token ids of texts that come in parts."""
        flat = self.tokenizer([*itertools.chain(*parts)], add_special_tokens=False)["input_ids"]
        ids = iter(flat)
        return [[*itertools.chain(*itertools.islice(ids, len(own)))] for own in parts]


def _parts(text: str, images: int) -> list[dict[str, str]]:
    """A message's content: text, and that many images at their marks, or before it."""
    if IMAGE_MARK not in text:
        text = IMAGE_MARK * images + text
    first, *others = text.split(IMAGE_MARK)
    parts = [{"type": "text", "text": first}]
    for other in others:
        parts += [{"type": "image"}, {"type": "text", "text": other}]
    return [part for part in parts if part.get("text", "image")]


def pad(
    rows: Sequence[Sequence[int]], length: int, pad_id: int, *, left: bool = False
) -> tuple[Int[np.ndarray, "R L"], Bool[np.ndarray, "R L"]]:
    """Rows of token ids as one array, and which of its entries are real."""
    tokens = np.full((len(rows), length), pad_id, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for out, real, row in zip(tokens, mask, rows, strict=True):
        at = slice(length - len(row), length) if left else slice(len(row))
        out[at], real[at] = row, True
    return tokens, mask
