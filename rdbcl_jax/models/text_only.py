"""What families without vision share: the shared decoder is their whole model, and a prompt has no
inputs but its tokens."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from rdbcl_jax.models.decoder import DecoderConfig


@dataclasses.dataclass(frozen=True)
class TextModelConfig:
    text: DecoderConfig
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    raw: str = dataclasses.field(default="", repr=False)  # config.json, word for word
    forbidden_token_ids: ClassVar[tuple[int, ...]] = ()

    @property
    def vocab_size(self) -> int:
        return self.text.vocab_size


@dataclasses.dataclass(frozen=True)
class TextProcessor:
    """The `Processor` of a model that reads no images."""

    config: TextModelConfig
    reads_images: ClassVar[bool] = False

    @classmethod
    def from_pretrained(
        cls, path: str | pathlib.Path, config: TextModelConfig, **of_images: Any
    ) -> TextProcessor:
        """Reads nothing: `of_images`, limits and sizes, do not apply."""
        return cls(config)

    def pictures(self, images: Sequence[Sequence[Any]]) -> list[None]:
        return [None] * len(images)

    def frame(self, size: tuple[int, int]) -> tuple[int, int]:
        return size

    def written(self, chat: str) -> str:
        return chat

    def expand(self, row: list[int], pictures: None, record: str) -> list[int]:
        return row

    def model_inputs(
        self,
        tokens: np.ndarray,
        mask: np.ndarray,
        pictures: Sequence[None],
        records: Sequence[str],
    ) -> tuple[tuple[()], np.ndarray]:
        return (), mask.sum(1, dtype=np.int32)
