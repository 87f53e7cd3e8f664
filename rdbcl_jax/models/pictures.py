"""Pictures in the text: which visual token of which picture stands at each placeholder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rdbcl_jax.batches import ArrayLike


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
