"""Host-side layout of pictures: tiles in slots, and where the patches of a tile stand.

Plain numpy. Axis names beside those of `batches`: K tiles per prompt, S patches per tile, N visual
tokens per tile, C numbers per patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from rdbcl_jax.batches import ArrayLike, pytree
from rdbcl_jax.models.pictures import places
from rdbcl_jax.models.siglip import Patches, cut
from rdbcl_jax.models.smolvlm.config import SmolVLMConfig


@pytree
class Inputs:
    """What a SmolVLM reads beside a prompt's tokens: `PromptBatch.model_inputs`."""

    places: Int[ArrayLike, "P L"]  # visual token of the row, in [0, K·N); -1 for text
    tiles: Patches | None  # of [P, K, S]; None: no row of the batch has an image


class Tiles(NamedTuple):
    """A prompt's tiles, of all its images, one after the other."""

    pixels: Float[np.ndarray, "n S C"]
    positions: Int[np.ndarray, "n S"]
    mask: Bool[np.ndarray, "n S"]


def tiles_of(
    pixels: Float[np.ndarray, "n C H W"],
    pixel_mask: Bool[np.ndarray, "n H W"] | None,
    config: SmolVLMConfig,
) -> Tiles:
    """Tiles cut into patches; a patch is real where any of its pixels is.

    Raises ValueError where tiles are not square, or their patches do not make whole visual tokens.
    """
    size = config.vision.patch_size
    rows, columns = (length // size for length in pixels.shape[-2:])
    if rows != columns or rows % config.scale:
        raise ValueError(
            f"tiles of {pixels.shape[-2]} × {pixels.shape[-1]} pixels; expected squares of a "
            f"multiple of {size * config.scale}"
        )
    mask = np.ones((len(pixels), rows, columns), bool)
    if pixel_mask is not None:
        mask = np.any(cut(pixel_mask[:, None], size), -1).reshape(mask.shape)
    positions = fractional_positions(mask, config.vision.side)
    flat = len(pixels), rows * columns
    return Tiles(cut(pixels, size), positions.reshape(flat), mask.reshape(flat))


def fractional_positions(mask: Bool[np.ndarray, "n R R"], side: int) -> Int[np.ndarray, "n R R"]:
    """Where patches stand in the tower's side × side learned positions: each at the fraction of
    its tile's height and width that lies before it. 0 for patches that are not real.

    Rounded as torch rounds: in float32 some patches fall short of the position that is theirs.
    """
    steps = np.arange(mask.shape[-1], dtype=np.float32)
    edges = np.arange(1 / side, 1.0, 1 / side).astype(np.float32)

    def position(count: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n R"]:
        step = np.float32(1) / np.maximum(count, 1).astype(np.float32)
        fraction = np.minimum(steps * step[:, None], np.float32(1 - 1e-6))
        return np.searchsorted(edges, fraction, side="right")

    row, column = position(mask[:, :, 0].sum(1)), position(mask[:, 0, :].sum(1))
    at = row[:, :, None] * side + column[:, None, :]
    return np.where(mask, at, 0).astype(np.int32)


def lay_out(
    tokens: Int[np.ndarray, "P L"],
    mask: Bool[np.ndarray, "P L"],
    pictures: Sequence[Tiles | None],
    config: SmolVLMConfig,
    *,
    slots: int | None = None,
) -> Inputs:
    """The model's inputs for token rows.

    Args:
      pictures: each row's tiles, of one size over all rows; None: it has no image.
      slots: K, at least the most tiles of a row; default exactly that. 0 gives no tiles.
    Raises:
      ValueError: a row whose image tokens and visual tokens differ in number.
    """
    count = max(slots or 0, *(len(own.mask) for own in pictures if own), 0)
    size = next((own.mask.shape[1] for own in pictures if own), config.vision.side**2)
    per_tile = size // config.scale**2
    visual = [np.arange(len(own.mask) * per_tile if own else 0) for own in pictures]
    where = places(tokens, mask, visual, config.image_token_id)
    if not count:
        return Inputs(where, None)
    shape = (len(pictures), count, size)
    tiles = Patches(
        np.zeros((*shape, config.vision.patch_dim), np.float32),
        np.zeros(shape, np.int32),
        np.zeros(shape, bool),
    )
    for row, own in enumerate(pictures):
        for name in Tiles._fields if own else ():
            part = getattr(own, name)
            getattr(tiles, name)[row, : len(part)] = part
    return Inputs(where, tiles)
