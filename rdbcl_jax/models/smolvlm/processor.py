"""Pictures to tiles and tokens, on the host: Hugging Face's own image processor, and few sizes, so
that few programs serve."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from rdbcl_jax.models import tiles
from rdbcl_jax.models.config_files import (
    read_image_files,
    read_tokenizer_files,
    write_image_options,
)
from rdbcl_jax.models.pictures import expanded
from rdbcl_jax.models.smolvlm import inputs
from rdbcl_jax.models.smolvlm.config import SmolVLMConfig

_IMAGE, _AROUND, _WHOLE = "<image>", "<fake_token_around_image>", "<global-img>"


class Pictures(NamedTuple):
    """What a prompt's images are to the model."""

    tiles: inputs.Tiles | None  # None: it has no image
    grids: list[tuple[int, int]]  # of each image, (rows, columns) of tiles; (0, 0): it is one tile


@dataclasses.dataclass(frozen=True)
class SmolVLMProcessor:
    """The `Processor` of SmolVLM and Idefics3.

    An image is cut into a grid of tiles, and the whole of it makes one more, the last.

    Attributes:
      patch_slots, images_per_prompt: the sizes that batches may have, of patches of an image (all
        its tiles together) and of images; empty: what a batch needs. With `images_per_prompt=(1,)`
        batches without images have the others' shapes.
    """

    config: SmolVLMConfig
    image_processor: Any
    tokenizer: Any
    patch_slots: tuple[int, ...] = ()
    images_per_prompt: tuple[int, ...] = ()
    reads_images: ClassVar[bool] = True

    @classmethod
    def from_pretrained(
        cls,
        path: str | pathlib.Path,
        config: SmolVLMConfig,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        patch_slots: Sequence[int] = (),
        images_per_prompt: Sequence[int] = (),
    ) -> SmolVLMProcessor:
        """Reads a checkpoint directory; arguments as in `image_processor` and of the class.

        Raises ValueError for limits that cannot be kept, and for tiles or a tokenizer of another
        model than the config's.
        """
        processor = image_processor(path, min_pixels=min_pixels, max_pixels=max_pixels)
        tile, size = processor.max_image_size["longest_edge"], config.vision.image_size
        if tile != size:
            raise ValueError(
                f"{path}: preprocessor_config.json makes tiles of {tile} × {tile} pixels, expected "
                f"{size} × {size}, vision_config.image_size of config.json"
            )
        tokenizer = read_tokenizer_files(path)
        if (found := tokenizer.convert_tokens_to_ids(_IMAGE)) != config.image_token_id:
            raise ValueError(
                f"{path}: the tokenizer's id of {_IMAGE} is {found}, expected "
                f"{config.image_token_id}, image_token_id of config.json"
            )
        return cls(config, processor, tokenizer, tuple(patch_slots), tuple(images_per_prompt))

    def pictures(self, images: Sequence[Sequence[Any]]) -> list[Pictures]:
        """Each prompt's images, as tiles."""
        return [self._pictures(row) for row in images]

    def _pictures(self, images: Sequence[Any]) -> Pictures:
        if not images:
            return Pictures(None, [])
        out = self.image_processor([list(images)], return_row_col_info=True, return_tensors="np")
        pixels = np.asarray(out["pixel_values"][0], np.float32)
        grids = list(zip(out["rows"][0], out["cols"][0], strict=True))
        return Pictures(inputs.tiles_of(pixels, None, self.config), grids)

    def frame(self, size: tuple[int, int]) -> tuple[int, int]:
        return size

    def written(self, chat: str) -> str:
        return chat

    def expand(self, row: Sequence[int], pictures: Pictures, record: str) -> list[int]:
        """Writes each image placeholder out: its tiles with their rows and columns, each as many
        placeholders as it makes visual tokens, and the whole image."""
        placeholder = self.config.image_token_id
        written = [
            self.tokenizer(self._written_out(*grid), add_special_tokens=False)["input_ids"]
            for grid in pictures.grids
        ]
        return expanded(row, placeholder, written, record)

    def _written_out(self, rows: int, columns: int) -> str:
        """An image in the text. It begins and ends with special tokens, so its tokens are the same
        alone as between others."""

        def tile(name: str) -> str:
            return _AROUND + name + _IMAGE * self.config.tile_tokens

        whole = tile(_WHOLE) + _AROUND
        if not rows:
            return whole
        names = [[f"<row_{r + 1}_col_{c + 1}>" for c in range(columns)] for r in range(rows)]
        lines = ["".join(map(tile, row)) + "\n" for row in names]
        return "".join(lines) + "\n" + whole

    def model_inputs(
        self,
        tokens: np.ndarray,
        mask: np.ndarray,
        pictures: Sequence[Pictures],
        records: Sequence[str],
    ) -> tuple[inputs.Inputs, np.ndarray]:
        """The tiles in their slots; the position that follows each row."""
        slots = tiles.room(
            [[rows * columns + 1 for rows, columns in own.grids] for own in pictures],
            self.config.vision.side**2,
            records,
            patch_slots=self.patch_slots,
            images_per_prompt=self.images_per_prompt,
        )
        own = inputs.lay_out(tokens, mask, [p.tiles for p in pictures], self.config, slots=slots)
        return own, mask.sum(1, dtype=np.int32)


def image_processor(
    path: str | pathlib.Path, *, min_pixels: int | None = None, max_pixels: int | None = None
) -> Any:
    """The image processor of a checkpoint directory, of all these models.

    Args:
      max_pixels: of the largest square that an image is resized to fit in, before it is cut into
        whole tiles; default, and at most: as the checkpoint says.
    Raises:
      ValueError: `min_pixels`, since every image is resized to the same length; a `max_pixels`
        below one tile.
    """
    if min_pixels is not None:
        raise ValueError(
            "model.min_pixels does not apply: images of all sizes get the same longest edge; "
            "set model.max_pixels, or leave both at 0"
        )
    processor = read_image_files("smolvlm", "SmolVLM", path)
    if max_pixels is None:
        return processor
    tile = processor.max_image_size["longest_edge"]
    if max_pixels < tile**2:
        raise ValueError(f"model.max_pixels is {max_pixels}, expected {tile**2}, one tile, or more")
    edge = min(processor.size["longest_edge"], math.isqrt(max_pixels) // tile * tile)
    return read_image_files("smolvlm", "SmolVLM", path, size={"longest_edge": edge})


def save_limits(
    path: str | pathlib.Path, *, min_pixels: int | None = None, max_pixels: int | None = None
) -> None:
    """Writes limits of an image's area into the files that image processors read."""
    size = image_processor(path, min_pixels=min_pixels, max_pixels=max_pixels).size
    write_image_options(path, size={"longest_edge": size["longest_edge"]})
