"""Pictures to patches and tokens, on the host: Hugging Face's own image processor, and few sizes,
so that few programs serve."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from rdbcl_jax.batches import fitting_size
from rdbcl_jax.models.config_files import read_image_files, write_image_options
from rdbcl_jax.models.pictures import expanded, per_prompt
from rdbcl_jax.models.qwen_vl import inputs
from rdbcl_jax.models.qwen_vl.config import QwenVLConfig, VisionConfig

# of a prompt's images: patches [rows · columns, C], and (rows, columns) of its grid
Pictures = list[tuple[np.ndarray, tuple[int, int]]]


@dataclasses.dataclass(frozen=True)
class QwenProcessor:
    """The `Processor` of Qwen-VL.

    Attributes:
      patch_slots, images_per_prompt: the sizes S and K that batches may have; empty: what a batch
        needs. With `images_per_prompt=(1,)` batches without images have the others' shapes.
    """

    config: QwenVLConfig
    image_processor: Any
    patch_slots: tuple[int, ...] = ()
    images_per_prompt: tuple[int, ...] = ()
    reads_images: ClassVar[bool] = True

    @classmethod
    def from_pretrained(
        cls,
        path: str | pathlib.Path,
        config: QwenVLConfig,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        patch_slots: Sequence[int] = (),
        images_per_prompt: Sequence[int] = (),
    ) -> QwenProcessor:
        """Reads a checkpoint directory; arguments as in `image_processor` and of the class.

        Raises ValueError as `image_processor`, and for patches of another size than the model's.
        """
        processor = image_processor(path, min_pixels=min_pixels, max_pixels=max_pixels)
        for name in ("patch_size", "merge_size", "temporal_patch_size"):
            made, read = getattr(processor, name), getattr(config.vision, name)
            if made != read:
                raise ValueError(
                    f"{path}: {name} is {made!r} in preprocessor_config.json, where the model of "
                    f"config.json reads {read}"
                )
        return cls(config, processor, tuple(patch_slots), tuple(images_per_prompt))

    def pictures(self, images: Sequence[Sequence[Any]]) -> list[Pictures]:
        """Each prompt's images, as patches."""
        flat = [image for row in images for image in row]
        if not flat:
            return [[] for _ in images]
        out = self.image_processor(flat, return_tensors="np")
        grids = [(int(rows), int(columns)) for _, rows, columns in out["image_grid_thw"]]
        ends = np.cumsum([rows * columns for rows, columns in grids])
        patches = np.split(np.asarray(out["pixel_values"], np.float32), ends[:-1])
        made = list(zip(patches, grids, strict=True))
        return per_prompt(made, images)

    def frame(self, size: tuple[int, int]) -> tuple[int, int]:
        """Qwen2.5-VL counts the pixels of the resized picture; the others count thousandths."""
        if self.config.family != "qwen2_5_vl":
            return 1000, 1000
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        own, (width, height) = self.image_processor, size
        limits = (own.size["shortest_edge"], own.size["longest_edge"])
        rows, columns = smart_resize(height, width, own.patch_size * own.merge_size, *limits)
        return columns, rows

    def written(self, chat: str) -> str:
        return chat

    def expand(self, row: Sequence[int], pictures: Pictures, record: str) -> list[int]:
        """Repeats each image placeholder once per visual token of its image."""
        pad_id, merge = self.config.image_token_id, self.config.vision.merge_size
        sizes = [rows * columns // merge**2 for _, (rows, columns) in pictures]
        return expanded(row, pad_id, [[pad_id] * size for size in sizes], record)

    def model_inputs(
        self,
        tokens: np.ndarray,
        mask: np.ndarray,
        pictures: Sequence[Pictures],
        records: Sequence[str],
    ) -> tuple[inputs.Inputs, np.ndarray]:
        """Positions, and the patches in their slots; the position that follows each row."""
        vision = self.config.vision
        grids = [[grid for _, grid in row] for row in pictures]
        pixels = [[patches for patches, _ in row] for row in pictures]
        counts = [len(row) for row in grids]
        count = fitting_size("images_per_prompt", counts, self.images_per_prompt, records)
        needed = [max((inputs.slots_needed(*g, vision) for g in row), default=0) for row in grids]
        slots = fitting_size("patch_slots", needed, self.patch_slots, records) if count else None
        return inputs.lay_out(
            tokens, mask, pixels, grids, self.config, slots=slots or None, images_per_row=count
        )


def image_processor(
    path: str | pathlib.Path, *, min_pixels: int | None = None, max_pixels: int | None = None
) -> Any:
    """The image processor of a checkpoint directory, of all three families.

    Args:
      min_pixels, max_pixels: an image is resized to an area between them, its aspect ratio kept;
        default: as the checkpoint says.
    Raises:
      ValueError: the one exceeds the other.
    """
    limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    given = {name: value for name, value in limits.items() if value is not None}
    processor = read_image_files("qwen2_vl", "Qwen2VL", path, **given)
    low, high = processor.size["shortest_edge"], processor.size["longest_edge"]
    if high < low:
        theirs = [name for name, value in limits.items() if value is None]
        whose = f", of which {theirs[0]} is the checkpoint's own: set it too" if theirs else ""
        raise ValueError(f"max_pixels is {high}, less than min_pixels, {low}{whose} ({path})")
    return processor


def save_limits(
    path: str | pathlib.Path, *, min_pixels: int | None = None, max_pixels: int | None = None
) -> None:
    """Writes limits of an image's area into the files that image processors read, under the names
    of older and of newer ones."""
    size = dict(image_processor(path, min_pixels=min_pixels, max_pixels=max_pixels).size)
    size = {name: size[name] for name in ("shortest_edge", "longest_edge")}
    low, high = size.values()
    write_image_options(path, size=size, min_pixels=low, max_pixels=high)


def slot_sizes(config: VisionConfig, largest: int, *, growth: float = 1.5) -> tuple[int, ...]:
    """Numbers of patch slots to pad images to: whole windows, each about `growth` times the last.

    Images of any size then compile at most one program per number, and at most `growth` times the
    slots needed are computed. `QwenProcessor.patch_slots` takes the smallest that fits a batch.

    Args:
      largest: at least the slots of the largest image (`inputs.slots_needed`).
    """
    window = max(config.window_units, 1) ** 2 * config.merge_size**2
    windows, sizes = 1, []
    while windows * window < largest:
        sizes.append(windows * window)
        windows = max(windows + 1, int(windows * growth))
    return (*sizes, windows * window)
