"""Pictures to tiles and tokens, on the host: Hugging Face's own image processor, and few sizes, so
that few programs serve."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from rdbcl_jax.json_files import read_object
from rdbcl_jax.models import tiles
from rdbcl_jax.models.config_files import read_image_files, write_image_options
from rdbcl_jax.models.llava_onevision.config import LlavaConfig, read_config
from rdbcl_jax.models.llava_onevision.inputs import Inputs, Picture, lay_out, layout
from rdbcl_jax.models.pictures import check_size, expanded, per_prompt


@dataclasses.dataclass(frozen=True)
class LlavaProcessor:
    """The `Processor` of LLaVA-OneVision.

    Attributes:
      config: of the checkpoint, with the grids that the limits of pixels leave.
      patch_slots, images_per_prompt: the sizes that batches may have, of patches of an image (the
        whole and its tiles) and of images; empty: what a batch needs. With `images_per_prompt=(1,)`
        batches without images have the others' shapes.
    """

    config: LlavaConfig
    image_processor: Any
    patch_slots: tuple[int, ...] = ()
    images_per_prompt: tuple[int, ...] = ()
    reads_images: ClassVar[bool] = True

    @classmethod
    def from_pretrained(
        cls,
        path: str | pathlib.Path,
        config: LlavaConfig,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        patch_slots: Sequence[int] = (),
        images_per_prompt: Sequence[int] = (),
    ) -> LlavaProcessor:
        """Reads a checkpoint directory.

        Args:
          min_pixels, max_pixels: only grids of an area between them are taken; default: all that
            the checkpoint has.
          patch_slots, images_per_prompt: as of the class.
        Raises:
          ValueError: limits that leave no grid, and a preprocessor_config.json that does not fit
            config.json.
        """
        processor = image_processor(path, config)
        grids = _grids_between(config, min_pixels, max_pixels)
        processor.image_grid_pinpoints = [list(grid) for grid in grids]
        config = dataclasses.replace(config, grids=grids)
        return cls(config, processor, tuple(patch_slots), tuple(images_per_prompt))

    def pictures(self, images: Sequence[Sequence[Any]]) -> list[list[Picture]]:
        """Each prompt's images, as tiles."""
        groups = [list(row) for row in images if row]
        if not groups:
            return [[] for _ in images]
        out = self.image_processor(groups, do_pad=False)
        shown = [tiles.patches_of(one, self.config.vision) for one in out["pixel_values"]]
        sizes = [(int(height), int(width)) for height, width in out["image_sizes"]]
        alone = [len(row) == 1 for row in images for _ in row]
        made = [Picture(*one) for one in zip(shown, sizes, alone, strict=True)]
        return per_prompt(made, images)

    def frame(self, size: tuple[int, int]) -> tuple[int, int]:
        return size

    def written(self, chat: str) -> str:
        return chat

    def expand(self, row: Sequence[int], pictures: list[Picture], record: str) -> list[int]:
        """Repeats each image placeholder as often as its image's visual tokens and newlines are."""
        pad_id = self.config.image_token_id
        lengths = [len(layout(p.size, p.alone, self.config).sources) for p in pictures]
        return expanded(row, pad_id, [[pad_id] * length for length in lengths], record)

    def model_inputs(
        self,
        tokens: np.ndarray,
        mask: np.ndarray,
        pictures: Sequence[list[Picture]],
        records: Sequence[str],
    ) -> tuple[Inputs, np.ndarray]:
        """The tiles in their rows, and what stands where; the position after each row."""
        room = tiles.room(
            [[len(picture.tiles) for picture in row] for row in pictures],
            self.config.vision.side**2,
            records,
            patch_slots=self.patch_slots,
            images_per_prompt=self.images_per_prompt,
        )
        return lay_out(tokens, mask, pictures, self.config, room), mask.sum(1, dtype=np.int32)


def image_processor(path: str | pathlib.Path, config: LlavaConfig) -> Any:
    """The image processor of a checkpoint directory.

    Raises ValueError for tiles or grids that are not the model's.
    """
    read = read_image_files("llava_onevision", "LlavaOnevision", path)
    check_size(path, read, config.vision.image_size)
    if (grids := tuple(map(tuple, read.image_grid_pinpoints))) != config.grids:
        raise ValueError(
            f"{path}: image_grid_pinpoints are {grids} in preprocessor_config.json and "
            f"{config.grids} in config.json; expected the same"
        )
    return read


def _grids_between(
    config: LlavaConfig, min_pixels: int | None, max_pixels: int | None
) -> tuple[tuple[int, int], ...]:
    least, most = min_pixels or 0, max_pixels or float("inf")
    grids = tuple(grid for grid in config.grids if least <= grid[0] * grid[1] <= most)
    if not grids:
        raise ValueError(
            f"no grid of tiles has between min_pixels {min_pixels} and max_pixels {max_pixels}; "
            f"the model's grids (height, width) are {config.grids}"
        )
    return grids


def save_limits(
    path: str | pathlib.Path, *, min_pixels: int | None = None, max_pixels: int | None = None
) -> None:
    """Writes the grids that limits of an image's area leave into the files that image processors
    and, for it arranges the tiles, the model read."""
    grids = [list(grid) for grid in _grids_between(read_config(path), min_pixels, max_pixels)]
    write_image_options(path, image_grid_pinpoints=grids)
    file = pathlib.Path(path) / "config.json"
    content = read_object(file) | {"image_grid_pinpoints": grids}
    file.write_text(json.dumps(content, indent=2) + "\n")
