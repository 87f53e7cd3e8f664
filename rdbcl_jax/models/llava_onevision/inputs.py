"""Host-side layout of pictures: what stands at each of an image's placeholders.

An image alone in its prompt is seen whole and, finer, as a grid of tiles: without the grid's rows
and columns of padding, shrunk where it has very many tiles, and with a newline after each row. One
of several images in a prompt is only seen whole, with one newline at its end.

Plain numpy. Axis names beside those of `tiles`: N visual tokens of a tile (= S), K those that make
one token of the prompt.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from rdbcl_jax.batches import ArrayLike, pytree
from rdbcl_jax.models import tiles
from rdbcl_jax.models.llava_onevision.config import LlavaConfig
from rdbcl_jax.models.pictures import places

_NEWLINE = -1
_SHRUNK = 1.1  # grids are shrunk from this factor on, along each side


@pytree
class Inputs:
    """What a LLaVA-OneVision reads beside a prompt's tokens: `PromptBatch.model_inputs`.

    A placeholder's embedding is the sum of K visual tokens by their weights: K is 4, for pictures
    that are shrunk, or 1 where no batch of this size can have one.
    """

    sources: Int[ArrayLike, "P L K"]  # in [0, T·N), the newline at T·N; -1 for text
    weights: Float[ArrayLike, "P L K"]
    tiles: Float[ArrayLike, "P T S C"] | None  # None: no row of the batch has an image


class Picture(NamedTuple):
    """An image as its tiles, the whole before the grid's.

    Attributes:
      size: (height, width) of the original, in pixels.
      alone: it has a grid beside the whole.
    """

    tiles: Float[np.ndarray, "n S C"]
    size: tuple[int, int]
    alone: bool


class Layout(NamedTuple):
    """The n placeholders of one image."""

    sources: Int[np.ndarray, "n 4"]  # visual token of the image's tiles; _NEWLINE
    weights: Float[np.ndarray, "n 4"]


@functools.lru_cache(maxsize=4096)
def layout(size: tuple[int, int], alone: bool, config: LlavaConfig) -> Layout:
    """What stands at the placeholders of an image of `size` (height, width)."""
    side = config.vision.side
    whole = _whole(np.arange(side**2))
    if not alone:
        return _joined(whole, _whole(np.array([_NEWLINE])))
    rows, columns = grid_of(size, config)
    row, column = np.mgrid[: rows * side, : columns * side]
    tile = 1 + row // side * columns + column // side
    cells = _unpadded(tile * side**2 + row % side * side + column % side, size)
    shrink = math.sqrt(cells.size / (config.most_tiles * side**2))
    if shrink > _SHRUNK:
        height, width = cells.shape
        made = _resized(cells, int(height // shrink), int(width // shrink))
    else:
        made = _whole(cells)
    lines = _whole(np.full((len(made.sources), 1), _NEWLINE))
    made = Layout(*(np.concatenate(parts, 1) for parts in zip(made, lines, strict=True)))
    return _joined(whole, Layout(*(part.reshape(-1, 4) for part in made)))


def grid_of(size: tuple[int, int], config: LlavaConfig) -> tuple[int, int]:
    """(rows, columns) of the tiles of an image of `size` (height, width)."""
    from transformers.image_processing_utils import select_best_resolution

    height, width = select_best_resolution(size, list(config.grids))
    return height // config.vision.image_size, width // config.vision.image_size


def tile_count(size: tuple[int, int], alone: bool, config: LlavaConfig) -> int:
    """The tiles that an image of `size` is seen as."""
    return 1 + math.prod(grid_of(size, config)) if alone else 1


def _whole(sources: np.ndarray) -> Layout:
    """Each visual token as it is: the first of four counts."""
    sources = np.repeat(sources[..., None], 4, -1)
    return Layout(sources, np.broadcast_to(np.eye(4, dtype=np.float32)[0], sources.shape))


def _joined(*parts: Layout) -> Layout:
    return Layout(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _unpadded(cells: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The grid without the rows or columns that show nothing of an image of `size`."""
    (rows, columns), (height, width) = cells.shape, size
    if width / height > columns / rows:
        edge = (rows - _rounded_down(height * (columns / width))) // 2
        return cells[edge : rows - edge]
    edge = (columns - _rounded_down(width * (rows / height))) // 2
    return cells[:, edge : columns - edge]


def _rounded_down(length: float) -> int:
    return int(round(length, 7))


def _resized(cells: np.ndarray, height: int, width: int) -> Layout:
    """Bilinear, by the centres of cells: four cells and their weights for each new one."""
    sources, weights = [], []
    rows, columns = (_between(*sizes) for sizes in zip(cells.shape, (height, width), strict=True))
    for row, row_weight in rows:
        for column, column_weight in columns:
            sources.append(cells[np.ix_(row, column)])
            weights.append(np.outer(row_weight, column_weight))
    return Layout(np.stack(sources, -1), np.stack(weights, -1).astype(np.float32))


def _between(old: int, new: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per new cell along one side, the two old ones around it and their weights."""
    at = np.maximum((np.arange(new) + 0.5) * (old / new) - 0.5, 0)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, old - 1)
    return [(low, 1 - (at - low)), (high, at - low)]


def lay_out(
    tokens: np.ndarray,
    mask: np.ndarray,
    rows: Sequence[Sequence[Picture]],
    config: LlavaConfig,
    room: int,
) -> Inputs:
    """The model's inputs for token rows [P, L].

    Args:
      rows: per row, its images.
      room: T.
    """
    count = config.vision.side**2
    corners = 4 if room > config.most_tiles + 1 else 1
    lengths, made = [], []
    for row in rows:
        before = 0
        layouts = []
        for picture in row:
            own = layout(picture.size, picture.alone, config)
            moved = np.where(own.sources == _NEWLINE, room * count, own.sources + before * count)
            layouts.append(Layout(moved, own.weights))
            before += len(picture.tiles)
        lengths.append(sum(len(own.sources) for own in layouts))
        made.append(_joined(*layouts) if layouts else None)
    at = places(tokens, mask, [np.arange(length) for length in lengths], config.image_token_id)
    sources = np.full((*tokens.shape, corners), -1, np.int32)
    weights = np.zeros((*tokens.shape, corners), np.float32)
    for r, whole in enumerate(made):
        if whole is not None:
            seen = at[r] >= 0
            sources[r, seen] = whole.sources[at[r, seen], :corners]
            weights[r, seen] = whole.weights[at[r, seen], :corners]
    flat = [[tile for picture in row for tile in picture.tiles] for row in rows]
    return Inputs(sources, weights, tiles.stack(flat, (room, count, config.vision.patch_dim)))
