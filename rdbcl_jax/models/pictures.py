"""Pictures in the text: what their placeholders become, and which visual token of which picture
stands at each."""

from __future__ import annotations

import itertools
import math
import pathlib
from collections.abc import Sequence
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rdbcl_jax.batches import ArrayLike

T = TypeVar("T")


def check_size(path: str | pathlib.Path, processor: Any, side: int, *, made: str = "tiles") -> None:
    """Raises ValueError where an image processor's squares (`made`) are not those that the model
    reads, of `side` × `side` pixels."""
    size = processor.size
    if (size["height"], size["width"]) != (side, side):
        raise ValueError(
            f"{path}: preprocessor_config.json makes {made} of size {size}, where the model reads "
            f"{side} × {side} pixels"
        )


def per_prompt(made: list[T], images: Sequence[Sequence[Any]]) -> list[list[T]]:
    """What was made of all images, one after the other, for each prompt's own `images`."""
    return [made[a:b] for a, b in itertools.pairwise(np.cumsum([0, *map(len, images)]))]


def expanded(
    row: Sequence[int], placeholder: int, written: Sequence[Sequence[int]], record: str
) -> list[int]:
    """The token ids of a prompt, each image's placeholder replaced by what is written for it.

    Raises:
      ValueError: images and placeholders differ in number.
    """
    if (found := row.count(placeholder)) != len(written):
        raise ValueError(
            f"record {record!r}: {found} image placeholders in its prompt, expected one for each "
            f"of its {len(written)} images; mark their places by <image>, or not at all"
        )
    images = iter(written)
    return [t for token in row for t in (next(images) if token == placeholder else (token,))]


def places(
    tokens: Int[np.ndarray, "P L"],
    mask: Bool[np.ndarray, "P L"],
    visual: Sequence[Int[np.ndarray, "n"]],
    placeholder: int,
) -> Int[np.ndarray, "P L"]:
    """At each placeholder the visual token of its row that stands there; −1 at text.

    Args:
      visual: per row, the visual tokens in the order of their placeholders.
    Raises:
      ValueError: a row whose placeholders and visual tokens differ in number.
    """
    out = np.full(tokens.shape, -1, np.int32)
    for row, own in enumerate(visual):
        at = np.flatnonzero((tokens[row] == placeholder) & mask[row])
        if len(at) != len(own):
            raise ValueError(
                f"row {row}: {len(at)} image tokens in the prompt, but its images make {len(own)} "
                "visual tokens; repeat an image's placeholder once for each of them"
            )
        out[row, at] = own
    return out


def put(
    x: Float[Array, "P L D"], visual: Float[Array, "P N D"], places: Int[ArrayLike, "P L"]
) -> Float[Array, "P L D"]:
    """The embeddings `x`, with the visual tokens of each row at their `places`."""
    at = jnp.asarray(places)[..., None]
    return jnp.where(at >= 0, jnp.take_along_axis(visual, jnp.maximum(at, 0), axis=1), x)


def merged(patches: Float[Array, "*batch S W"], side: int) -> Float[Array, "*batch N W2"]:
    """Each side × side square of a square picture's patches as one vector, its patches row by row:
    N = S / side², W2 = W · side². (Others call it pixel shuffle.)"""
    *lead, count, width = patches.shape
    squares = math.isqrt(count) // side
    parts = patches.reshape(*lead, squares, side, squares, side, width)
    return jnp.swapaxes(parts, -4, -3).reshape(*lead, squares**2, width * side**2)
