"""Pictures to tiles and tokens, on the host: Hugging Face's own image processor, and few sizes, so
that few programs serve."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from rdbcl_jax.models import tiles
from rdbcl_jax.models.config_files import (
    read_image_files,
    read_tokenizer_files,
    write_image_options,
)
from rdbcl_jax.models.internvl.config import InternVLConfig, read_config
from rdbcl_jax.models.internvl.model import Inputs, lay_out
from rdbcl_jax.models.pictures import check_size, expanded, per_prompt

MOST_TILES = 256  # of a picture: how they could lie is tried out, in the square of their number
Pictures = list[np.ndarray]  # of a prompt's images: the tiles of each, [n, S, C]


@dataclasses.dataclass(frozen=True)
class InternVLProcessor:
    """The `Processor` of InternVL.

    Attributes:
      around: the tokens before and after an image's visual tokens.
      patch_slots, images_per_prompt: the sizes that batches may have, of patches of an image (a
        picture's tiles, and a small copy of the whole) and of images; empty: what a batch needs.
        With `images_per_prompt=(1,)` batches without images have the others' shapes.
    """

    config: InternVLConfig
    image_processor: Any
    around: tuple[int, int]
    patch_slots: tuple[int, ...] = ()
    images_per_prompt: tuple[int, ...] = ()
    reads_images: ClassVar[bool] = True

    @classmethod
    def from_pretrained(
        cls,
        path: str | pathlib.Path,
        config: InternVLConfig,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        patch_slots: Sequence[int] = (),
        images_per_prompt: Sequence[int] = (),
    ) -> InternVLProcessor:
        """Reads a checkpoint directory; arguments as in `image_processor` and of the class.

        Raises ValueError as `image_processor`, and for a tokenizer that does not name the tokens.
        """
        tokenizer = read_tokenizer_files(path)
        names = ("start_image_token_id", "end_image_token_id")
        if not all(isinstance(getattr(tokenizer, name, None), int) for name in names):
            raise ValueError(
                f"{path}: the tokenizer has no start_image_token and end_image_token; expected a "
                "directory in transformers' own format, such as those whose names end in -hf"
            )
        around = tokenizer.start_image_token_id, tokenizer.end_image_token_id
        processor = image_processor(path, config, min_pixels=min_pixels, max_pixels=max_pixels)
        return cls(config, processor, around, tuple(patch_slots), tuple(images_per_prompt))

    def pictures(self, images: Sequence[Sequence[Any]]) -> list[Pictures]:
        """Each prompt's images, as tiles."""
        flat = [image for row in images for image in row]
        if not flat:
            return [[] for _ in images]
        out = self.image_processor(flat, return_tensors="np")
        patches = tiles.patches_of(out["pixel_values"], self.config.vision)
        made = np.split(patches, np.cumsum(out["num_patches"])[:-1])
        return per_prompt(made, images)

    def frame(self, size: tuple[int, int]) -> tuple[int, int]:
        """Thousandths."""
        return 1000, 1000

    def written(self, chat: str) -> str:
        return chat

    def expand(self, row: Sequence[int], pictures: Pictures, record: str) -> list[int]:
        """Repeats each image placeholder once per visual token of its tiles, between the tokens
        that begin and end an image."""
        pad_id = self.config.image_token_id
        begin, end = self.around
        counts = [len(image) * self.config.tile_tokens for image in pictures]
        return expanded(row, pad_id, [[begin, *[pad_id] * n, end] for n in counts], record)

    def model_inputs(
        self,
        tokens: np.ndarray,
        mask: np.ndarray,
        pictures: Sequence[Pictures],
        records: Sequence[str],
    ) -> tuple[Inputs, np.ndarray]:
        """The tiles in their rows, and where their tokens stand; the position after each row."""
        room = tiles.room(
            [[len(image) for image in row] for row in pictures],
            self.config.vision.side**2,
            records,
            patch_slots=self.patch_slots,
            images_per_prompt=self.images_per_prompt,
        )
        rows = [[tile for image in row for tile in image] for row in pictures]
        return lay_out(tokens, mask, rows, self.config, room), mask.sum(1, dtype=np.int32)


def image_processor(
    path: str | pathlib.Path,
    config: InternVLConfig,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> Any:
    """The image processor of a checkpoint directory, as Hugging Face's processor calls it: pictures
    are cut into tiles, whatever `crop_to_patches` says in the file.

    Args:
      min_pixels, max_pixels: the area of the tiles that an image is cut into (without the small
        copy of the whole) lies between them; default: as the checkpoint says.
    Raises:
      ValueError: limits between which there is no number of tiles, or too many of them, and tiles
        of another size than the model's.
    """
    read = read_image_files("got_ocr2", "GotOcr2", path, crop_to_patches=True)
    side = config.vision.image_size
    check_size(path, read, side)
    area = side**2
    least = read.min_patches if min_pixels is None else -(-min_pixels // area)
    most = read.max_patches if max_pixels is None else max_pixels // area
    if not 1 <= least <= most <= MOST_TILES:
        raise ValueError(
            f"{path}: min_pixels {min_pixels} and max_pixels {max_pixels} allow {least} to {most} "
            f"tiles of {side}² = {area} pixels; expected at least 1, the smaller number first, and "
            f"{MOST_TILES} at most"
        )
    read.min_patches, read.max_patches = least, most
    return read


def save_limits(
    path: str | pathlib.Path, *, min_pixels: int | None = None, max_pixels: int | None = None
) -> None:
    """Writes limits of an image's area into the files that image processors read."""
    made = image_processor(path, read_config(path), min_pixels=min_pixels, max_pixels=max_pixels)
    write_image_options(path, min_patches=made.min_patches, max_patches=made.max_patches)
