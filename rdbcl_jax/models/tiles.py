"""Pictures that a model sees as square tiles of one size, each on its own: how many of them a batch
has room for, and how they lie in it.

Axis names beside those of `batches`: T tiles of a prompt, S patches of a tile, C numbers of a
patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float

from rdbcl_jax.batches import fitting_size
from rdbcl_jax.models.siglip import cut


class Tower(Protocol):
    """What sees the tiles."""

    @property
    def image_size(self) -> int:
        """Pixels of a tile's side."""
        ...

    @property
    def patch_size(self) -> int:
        """Pixels of a patch's side."""
        ...


def patches_of(pixels: Float[np.ndarray, "n 3 H W"], tower: Tower) -> Float[np.ndarray, "n S C"]:
    """A processor's tiles, cut into patches. Raises ValueError for tiles of another size."""
    pixels, side = np.asarray(pixels, np.float32), tower.image_size
    if pixels.shape[-2:] != (side, side):
        height, width = pixels.shape[-2:]
        raise ValueError(f"tiles of {height} × {width} pixels, expected {side} × {side}")
    return cut(pixels, tower.patch_size)


def room(
    images: Sequence[Sequence[int]],
    patches: int,
    records: Sequence[str],
    *,
    patch_slots: Sequence[int],
    images_per_prompt: Sequence[int],
) -> int:
    """T, the tiles that each prompt of a batch has room for; 0: no batch of this size has images.

    Args:
      images: per prompt, the number of tiles of each of its images.
      patches: S.
      patch_slots, images_per_prompt: the sizes that batches may have, of patches of an image and of
        images of a prompt; empty: what a batch needs.
    Raises:
      ValueError: a record whose images are more, or have more tiles, than the sizes allow.
    """
    counts = [len(row) for row in images]
    count = fitting_size("images_per_prompt", counts, images_per_prompt, records)
    needed = [max(row, default=0) * patches for row in images]
    slots = fitting_size("patch_slots", needed, patch_slots, records)
    if not patch_slots and not images_per_prompt:
        return max(map(sum, images))
    return count * max(1, slots // patches)


def stack(
    rows: Sequence[Sequence[Float[np.ndarray, "S C"]]], size: tuple[int, int, int]
) -> Float[np.ndarray, "P T S C"] | None:
    """The tiles of each prompt as one array of `size` (T, S, C) per prompt, zeros after the last of
    them; None where T is 0."""
    if not size[0]:
        return None
    out = np.zeros((len(rows), *size), np.float32)
    for own, tiles in zip(out, rows, strict=True):
        own[: len(tiles)] = np.asarray(tiles, np.float32).reshape(-1, *size[1:])
    return out
