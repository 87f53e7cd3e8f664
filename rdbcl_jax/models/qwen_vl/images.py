"""Pictures to patches: Hugging Face's own image processor, and sizes that few programs serve."""

from __future__ import annotations

import pathlib
from typing import Any

from rdbcl_jax.models.qwen_vl.config import VisionConfig


def image_processor(
    path: str | pathlib.Path, *, min_pixels: int | None = None, max_pixels: int | None = None
) -> Any:
    """The image processor of a checkpoint directory, of all three families.

    The PIL backend by name: `AutoImageProcessor` would take torchvision's where that is installed,
    and resized pixels would then differ between machines.

    Args:
      min_pixels, max_pixels: an image is resized to an area between them, its aspect ratio kept;
        default: as the checkpoint says.
    """
    from transformers import Qwen2VLImageProcessorPil

    limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    given = {name: value for name, value in limits.items() if value is not None}
    return Qwen2VLImageProcessorPil.from_pretrained(path, **given)


def slot_sizes(config: VisionConfig, largest: int, *, growth: float = 1.5) -> tuple[int, ...]:
    """Numbers of patch slots to pad images to: whole windows, each about `growth` times the last.

    Batches of any image sizes then compile at most one program a size, and at most `growth` times
    the slots needed are computed. What pads a batch takes the smallest that fits
    (`PromptEncoder(slots=...)`).

    Args:
      largest: at least the slots of the largest image (`inputs.slots_needed`).
    """
    window = max(config.window_units, 1) ** 2 * config.merge_size**2
    windows, sizes = 1, []
    while windows * window < largest:
        sizes.append(windows * window)
        windows = max(windows + 1, int(windows * growth))
    return (*sizes, windows * window)
