"""Host-side layout of a processor's output: patch slots, M-RoPE positions, token-to-patch indices.

Plain numpy. Everything that depends on an image's size is settled here, so the jitted model sees
static shapes and index arrays only. Axis names beside those of `batches`: K images per prompt,
S patch slots per image, N = S / merge² visual tokens per image, C numbers per patch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from rdbcl_jax.batches import ArrayLike, pytree
from rdbcl_jax.models.pictures import places
from rdbcl_jax.models.qwen_vl.config import QwenVLConfig, VisionConfig


@pytree
class Images:
    """Image patches, laid out window by window so that window attention is a plain reshape.

    Each group of merge² neighbouring slots is one visual token; windows that the image does not
    fill are padded with masked slots.
    """

    patches: Float[ArrayLike, "P K S C"]  # flattened pixels, as the Hugging Face processor gives
    coords: Int[ArrayLike, "P K S 2"]  # (row, column) of each patch in its image's grid
    mask: Bool[ArrayLike, "P K S"]
    grid: Int[ArrayLike, "P K 2"]  # (rows, columns) of each image's patch grid; 0 where no image


@pytree
class Inputs:
    """What a Qwen-VL reads beside a prompt's tokens: `PromptBatch.model_inputs`."""

    positions: Int[ArrayLike, "P L 3"]  # M-RoPE: temporal, height, width
    image_slots: Int[ArrayLike, "P L"]  # visual token of the row, in [0, K·N); -1 for text
    images: Images | None  # None: no row of the batch has an image


def lay_out(
    tokens: np.ndarray,
    mask: np.ndarray,
    pixels: Sequence[Sequence[np.ndarray]],
    grids: Sequence[Sequence[tuple[int, int]]],
    config: QwenVLConfig,
    **sizes: int | None,
) -> tuple[Inputs, np.ndarray]:
    """The model's inputs for token rows [P, L], and the position that follows each.

    Args:
      pixels, grids, sizes: as in `place_images`.
    """
    images, indices = place_images(pixels, grids, config.vision, **sizes)
    positions, following = rope_positions(tokens, mask, grids, config)
    none = np.empty(0, np.int32)
    visual = [np.concatenate(row) if row else none for row in indices]
    slots = places(tokens, mask, visual, config.image_token_id)
    return Inputs(positions, slots, images), following


@functools.lru_cache(maxsize=4096)
def slot_layout(rows: int, cols: int, units: int, merge: int):
    """Where each patch of a rows × cols grid goes in the window-by-window slot order.

    Returns `source` [S] (index of the slot's patch in the processor's order, −1 for padding),
    `coords` [S, 2] (row, column of the patch) and `unit_slot` [rows·cols/merge²] (slot of each
    visual token, row-major, counted in visual tokens). `units` is the window's side in visual
    tokens; 0 means a single window without padding.
    """
    unit_rows, unit_cols = rows // merge, cols // merge
    win_rows, win_cols = (units, units) if units else (unit_rows, unit_cols)
    n_down, n_across = -(-unit_rows // win_rows), -(-unit_cols // win_cols)
    grid = np.full((n_down * win_rows, n_across * win_cols), -1)
    grid[:unit_rows, :unit_cols] = np.arange(unit_rows * unit_cols).reshape(unit_rows, unit_cols)
    unit_of_slot = (
        grid.reshape(n_down, win_rows, n_across, win_cols).transpose(0, 2, 1, 3).reshape(-1)
    )
    filled = np.flatnonzero(unit_of_slot >= 0)
    unit_slot = np.empty(unit_rows * unit_cols, np.int32)
    unit_slot[unit_of_slot[filled]] = filled
    # within a visual token the processor already orders its merge² patches row by row
    inner = np.arange(merge**2)
    source = np.where(
        unit_of_slot[:, None] >= 0, unit_of_slot[:, None] * merge**2 + inner, -1
    ).reshape(-1)
    unit = np.maximum(unit_of_slot, 0)[:, None]
    coords = np.stack(
        [unit // unit_cols * merge + inner // merge, unit % unit_cols * merge + inner % merge], -1
    ).reshape(-1, 2)
    return source, coords.astype(np.int32), unit_slot


def slots_needed(rows: int, cols: int, config: VisionConfig) -> int:
    """Patch slots of an image of rows × cols patches, window padding included."""
    return len(slot_layout(rows, cols, config.window_units, config.merge_size)[0])


def place_images(
    pixels: Sequence[Sequence[np.ndarray]],
    grids: Sequence[Sequence[tuple[int, int]]],
    config: VisionConfig,
    *,
    slots: int | None = None,
    images_per_row: int | None = None,
) -> tuple[Images | None, list[list[np.ndarray]]]:
    """Lays out each row's images in patch slots.

    Args:
      pixels: per row, per image, patches [rows·cols, C] in the processor's order.
      grids: per row, per image, (rows, cols) of its patch grid.
      slots: S, at least the largest `slots_needed`; default exactly that.
      images_per_row: K; default the largest count. 0 images anywhere gives None.
    Returns:
      The `Images`, and per row, per image, the visual token of the row that each of the image's
      tokens reads ([rows·cols/merge²], row-major).
    """
    merge, units = config.merge_size, config.window_units
    needed = max((slots_needed(*grid, config) for row in grids for grid in row), default=0)
    count = max(max((len(row) for row in grids), default=0), images_per_row or 0)
    if count == 0:
        return None, [[] for _ in grids]
    slots = slots or needed
    window = units**2 * merge**2 or merge**2
    if slots < needed or slots % window:
        raise ValueError(
            f"{slots} patch slots per image, expected a multiple of {window} and at least {needed}"
        )
    shape = (len(grids), count, slots)
    patches = np.zeros((*shape, config.patch_dim), np.float32)
    coords = np.zeros((*shape, 2), np.int32)
    mask = np.zeros(shape, bool)
    grid_sizes = np.zeros((len(grids), count, 2), np.int32)
    indices: list[list[np.ndarray]] = []
    for r, (row_pixels, row_grids) in enumerate(zip(pixels, grids, strict=True)):
        row_indices = []
        for k, (image, (rows, cols)) in enumerate(zip(row_pixels, row_grids, strict=True)):
            source, image_coords, unit_slot = slot_layout(rows, cols, units, merge)
            used = np.flatnonzero(source >= 0)
            patches[r, k, used] = image[source[used]]
            coords[r, k, : len(source)] = image_coords
            mask[r, k, used] = True
            grid_sizes[r, k] = rows, cols
            row_indices.append(k * (slots // merge**2) + unit_slot)
        indices.append(row_indices)
    return Images(patches, coords, mask, grid_sizes), indices


def rope_positions(
    tokens: np.ndarray,
    mask: np.ndarray,
    grids: Sequence[Sequence[tuple[int, int]]],
    config: QwenVLConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """M-RoPE positions [P, L, 3] and the position [P] that follows each row's last token.

    Text counts on in all three axes; an image's tokens share one temporal position and spread
    over height and width; the text after it goes on from the largest position so far.
    """
    merge = config.vision.merge_size
    positions = np.zeros((*tokens.shape, 3), np.int32)
    following = np.zeros(len(tokens), np.int32)
    for r, row_grids in enumerate(grids):
        valid = np.flatnonzero(mask[r])
        ids = tokens[r, valid]
        out = np.empty((len(ids), 3), np.int32)
        done = start = 0  # tokens placed, next position
        for rows, cols in row_grids:
            unit_rows, unit_cols = rows // merge, cols // merge
            at = done + int(np.argmax(ids[done:] == config.image_token_id))
            out[done:at] = (start + np.arange(at - done))[:, None]
            start += at - done
            unit = np.arange(unit_rows * unit_cols)
            end = at + len(unit)
            out[at:end] = start + np.stack(
                [np.zeros_like(unit), unit // unit_cols, unit % unit_cols], -1
            )
            start += max(unit_rows, unit_cols)
            done = end
        out[done:] = (start + np.arange(len(ids) - done))[:, None]
        positions[r, valid] = out
        following[r] = start + len(ids) - done
    return positions, following
