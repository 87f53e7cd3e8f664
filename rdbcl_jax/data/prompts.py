"""Records to model inputs: chat template, image processing, padding to a few fixed shapes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from rdbcl_jax.batches import PromptBatch
from rdbcl_jax.data.records import IMAGE_MARK, Record, load_images
from rdbcl_jax.models.qwen_vl import inputs
from rdbcl_jax.models.qwen_vl.config import QwenVLConfig


class SupervisedBatch(NamedTuple):
    """Prompts with G given responses each; `mask` covers the end token, nothing after it."""

    prompts: PromptBatch
    tokens: Int[np.ndarray, "P G T"]
    mask: Bool[np.ndarray, "P G T"]


class PromptEncoder:
    """Turns records into a `PromptBatch` of numpy arrays.

    Args:
      lengths, slots, images_per_row, response_lengths: the sizes L, S, K and T that batches may
        have, each a list of which the smallest that fits is taken, so that a run compiles few
        programs. Empty: exactly what a batch needs. With `images_per_row=(1,)` batches without
        images have the same shapes as the others.
      system_prompt: a system message before every prompt; None for none.
      template: the text of the user's message; `{prompt}` stands for the record's.
    """

    def __init__(
        self,
        tokenizer: Any,
        image_processor: Any,
        config: QwenVLConfig,
        *,
        lengths: Sequence[int] = (),
        slots: Sequence[int] = (),
        images_per_row: Sequence[int] = (),
        response_lengths: Sequence[int] = (),
        system_prompt: str | None = None,
        template: str = "{prompt}",
    ):
        self.tokenizer, self.image_processor, self.config = tokenizer, image_processor, config
        self.lengths, self.slots = tuple(lengths), tuple(slots)
        self.images_per_row, self.response_lengths = tuple(images_per_row), tuple(response_lengths)
        self.system_prompt, self.template = system_prompt, template

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
          prefixes: per record, the beginning of a response that the model shall continue.
        Raises:
          ValueError: naming the record whose images do not match its placeholders, or whose
            prompt or image exceeds the largest size allowed.
        """
        pixels, grids = self._process_images(records)
        rows = self._tokenize(records, grids, prefixes)
        lengths = [len(row) for row in rows]
        tokens, mask = pad(rows, self._pick("lengths", lengths, records), self._pad_id, left=True)
        images, indices = self._place(pixels, grids, records)
        positions, following = inputs.rope_positions(tokens, mask, grids, self.config)
        return PromptBatch(
            tokens=tokens,
            mask=mask,
            positions=positions,
            next_position=following,
            image_slots=inputs.image_slots(tokens, mask, indices, self.config),
            images=images,
            record_ids=np.asarray(range(len(records)) if ids is None else ids, np.int32),
        )

    def encode_supervised(
        self,
        records: Sequence[Record],
        responses: Sequence[str | Sequence[str]],
        ids: Sequence[int] | None = None,
    ) -> SupervisedBatch:
        """Prompts with given responses: one text per record, or the same number G of texts."""
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
        """Tokens and mask of one given response per record, the end token included.

        Raises ValueError naming the record whose response is longer than any length allowed, or
        holds what the tokenizer has no token for (published ones have one for every byte).
        """
        rows = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        unknown, unknown_id = self.tokenizer.unk_token, self.tokenizer.unk_token_id
        for record, text, row in zip(records, texts, rows, strict=True):
            # a policy may have said the token itself
            if unknown_id in row and row.count(unknown_id) > text.count(unknown):
                raise ValueError(
                    f"record {record.id!r}: the tokenizer has no token for a part of its response "
                    f"{text!r}; write it in words that it knows (what stands for no reasoning is "
                    "demonstrations.no_reasoning)"
                )
        rows = [[*row, self.tokenizer.eos_token_id] for row in rows]
        length = self._pick("response_lengths", [len(row) for row in rows], records)
        return pad(rows, length, self._pad_id)

    # ------------------------------------------------------------ pieces

    @property
    def _pad_id(self) -> int:
        pad_id = self.config.pad_token_id
        return self.tokenizer.eos_token_id if pad_id is None else pad_id

    def messages(self, record: Record) -> list[dict[str, Any]]:
        """The record as a chat: images where `<image>` marks them, else before the text."""
        text = self.template.replace("{prompt}", record.prompt)
        if IMAGE_MARK not in text:
            text = IMAGE_MARK * len(record.images) + text
        first, *others = text.split(IMAGE_MARK)
        parts = [{"type": "text", "text": first}]
        for other in others:
            parts += [{"type": "image"}, {"type": "text", "text": other}]
        parts = [part for part in parts if part.get("text", "image")]
        chat = [{"role": "user", "content": parts}]
        if self.system_prompt is not None:
            chat.insert(0, {"role": "system", "content": self.system_prompt})
        return chat

    def _process_images(self, records):
        """Per record, per image: patches [rows · columns, C] and (rows, columns) of its grid."""
        flat = [image for record in records for image in load_images(record)]
        if not flat:
            return [[] for _ in records], [[] for _ in records]
        out = self.image_processor(flat, return_tensors="np")
        grids = [(int(rows), int(columns)) for _, rows, columns in out["image_grid_thw"]]
        ends = np.cumsum([rows * columns for rows, columns in grids])
        patches = np.split(np.asarray(out["pixel_values"], np.float32), ends[:-1])
        counts = np.cumsum([0, *(len(record.images) for record in records)])
        bounds = list(itertools.pairwise(counts))
        return [patches[a:b] for a, b in bounds], [grids[a:b] for a, b in bounds]

    def _tokenize(self, records, grids, prefixes) -> list[list[int]]:
        texts = [
            self.tokenizer.apply_chat_template(
                self.messages(record), tokenize=False, add_generation_prompt=True
            )
            for record in records
        ]
        if prefixes is not None:
            texts = [text + prefix for text, prefix in zip(texts, prefixes, strict=True)]
        rows = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [
            self._expand(row, record, image_grids)
            for row, record, image_grids in zip(rows, records, grids, strict=True)
        ]

    def _expand(self, row: list[int], record: Record, grids) -> list[int]:
        """Repeats each image placeholder once per visual token of its image."""
        pad_id, merge = self.config.image_token_id, self.config.vision.merge_size
        if (found := row.count(pad_id)) != len(grids):
            raise ValueError(
                f"record {record.id!r}: {found} image placeholders in its prompt, expected one for "
                f"each of its {len(grids)} images; mark their places by {IMAGE_MARK}, or not at all"
            )
        sizes = iter(rows * columns // merge**2 for rows, columns in grids)
        return [t for token in row for t in [token] * (next(sizes) if token == pad_id else 1)]

    def _place(self, pixels, grids, records):
        vision = self.config.vision
        counts = [len(row) for row in grids]
        per_row = self._pick("images_per_row", counts, records)
        needed = [max((inputs.slots_needed(*g, vision) for g in row), default=0) for row in grids]
        slots = self._pick("slots", needed, records) if per_row else None
        return inputs.place_images(
            pixels, grids, vision, slots=slots or None, images_per_row=per_row
        )

    def _pick(self, name: str, sizes: Sequence[int], records: Sequence[Record]) -> int:
        """The smallest allowed size that holds all; the error names a record that does not fit."""
        largest = int(np.argmax(sizes))
        allowed = getattr(self, name)
        fitting = [size for size in allowed if size >= sizes[largest]]
        if allowed and not fitting:
            raise ValueError(
                f"record {records[largest].id!r} needs {sizes[largest]} of {name}, at most "
                f"{max(allowed)} allowed; add a larger size to {name} or leave the record out"
            )
        return min(fitting) if allowed else sizes[largest]


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
