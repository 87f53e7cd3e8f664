"""Pictures to patches and tokens, on the host: Hugging Face's own image processor, and few sizes,
so that few programs serve."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from rdbcl_jax.batches import fitting_size
from rdbcl_jax.models.config_files import read_image_files, read_tokenizer_files
from rdbcl_jax.models.gemma3.config import Gemma3Config
from rdbcl_jax.models.gemma3.model import Inputs, lay_out
from rdbcl_jax.models.pictures import check_size, expanded, per_prompt
from rdbcl_jax.models.siglip import cut

Pictures = list[np.ndarray]  # of a prompt's images: patches [S, C]


@dataclasses.dataclass(frozen=True)
class Gemma3Processor:
    """The `Processor` of Gemma 3.

    Attributes:
      start: the token that begins an image, as text: what chat templates write for one.
      patch_slots, images_per_prompt: the sizes that batches may have, of patches of an image (all
        have as many) and of images; empty: what a batch needs. With `images_per_prompt=(1,)`
        batches without images have the others' shapes.
    """

    config: Gemma3Config
    image_processor: Any
    start: str
    patch_slots: tuple[int, ...] = ()
    images_per_prompt: tuple[int, ...] = ()
    reads_images: ClassVar[bool] = True

    @classmethod
    def from_pretrained(
        cls,
        path: str | pathlib.Path,
        config: Gemma3Config,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        patch_slots: Sequence[int] = (),
        images_per_prompt: Sequence[int] = (),
    ) -> Gemma3Processor:
        """Reads a checkpoint directory.

        Raises ValueError for limits of pixels, which do not apply, and for files that make other
        pictures than the model reads.
        """
        side = config.vision.image_size
        if min_pixels is not None or max_pixels is not None:
            raise ValueError(
                f"model.min_pixels and model.max_pixels do not apply: every image becomes {side} × "
                f"{side} pixels; leave both at 0"
            )
        start = read_tokenizer_files(path).convert_ids_to_tokens(config.image_start_id)
        if not isinstance(start, str):
            raise ValueError(
                f"{path}: the tokenizer has no token {config.image_start_id}, boi_token_index of "
                "config.json"
            )
        processor = image_processor(path, config)
        return cls(config, processor, start, tuple(patch_slots), tuple(images_per_prompt))

    def pictures(self, images: Sequence[Sequence[Any]]) -> list[Pictures]:
        """Each prompt's images, as patches."""
        flat = [image for row in images for image in row]
        if not flat:
            return [[] for _ in images]
        pixels = self.image_processor(flat, return_tensors="np")["pixel_values"]
        made = cut(np.asarray(pixels, np.float32), self.config.vision.patch_size)
        return per_prompt(list(made), images)

    def frame(self, size: tuple[int, int]) -> tuple[int, int]:
        return size

    def written(self, chat: str) -> str:
        """Blank lines around each image: joined with the text's own they make other tokens."""
        return chat.replace(self.start, f"\n\n{self.start}\n\n")

    def expand(self, row: Sequence[int], pictures: Pictures, record: str) -> list[int]:
        """Puts an image's placeholders and its end after each start of one."""
        config = self.config
        start, end = config.image_start_id, config.image_end_id
        image = [start, *[config.image_token_id] * config.image_tokens, end]
        return expanded(row, start, [image] * len(pictures), record)

    def model_inputs(
        self,
        tokens: np.ndarray,
        mask: np.ndarray,
        pictures: Sequence[Pictures],
        records: Sequence[str],
    ) -> tuple[Inputs, np.ndarray]:
        """The images in their rows, and what stands where; the position after each row."""
        counts, patches = [len(row) for row in pictures], self.config.vision.side**2
        room = fitting_size("images_per_prompt", counts, self.images_per_prompt, records)
        needed = [patches if row else 0 for row in pictures]  # the same, whatever more is allowed
        fitting_size("patch_slots", needed, self.patch_slots, records)
        own = lay_out(tokens, mask, pictures, self.config, room=room)
        return own, mask.sum(1, dtype=np.int32)


def image_processor(path: str | pathlib.Path, config: Gemma3Config) -> Any:
    """The image processor of a checkpoint directory.

    Raises ValueError for images of another size than the model's, and for pan-and-scan (crops of
    long images), which transformers' own processor does only where a call asks for it.
    """
    read = read_image_files("gemma3", "Gemma3", path)
    check_size(path, read, config.vision.image_size, made="images")
    if read.do_pan_and_scan:
        raise ValueError(
            f"{path}: do_pan_and_scan of preprocessor_config.json is not supported; expected false"
        )
    return read
