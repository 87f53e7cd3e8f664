"""Whether parameters are finite, and which one is not: asked where they are read and saved. And
whether they differ, asked where something was to be learned."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class NotFinite(ValueError):
    """A number that had to be finite is NaN or infinite: one line says which."""


def check_finite(tree: Any, what: str) -> None:
    """One pass over the arrays where they lie; nothing is copied.

    Raises:
      NotFinite: `what`, the name of the first leaf that holds NaN or an infinity, and the layer
        where it is a stack of them.
    """
    if (place := first_not_finite(tree)) is None:
        return
    path, layer = place
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    raise NotFinite(f"{what}: {name}, index {layer}, holds NaN or an infinite number")


def differ(one: Any, other: Any) -> bool:
    """Whether any number of two trees of one structure differs, in the dtypes of the other."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return any(bool(_differ(a, b)) for a, b in pairs)  # one after the other, up to the first


def first_not_finite(tree: Any) -> tuple[Any, int] | None:
    """(path of the first leaf that is not finite, index on its first axis); None: all are."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not _finite(leaf):  # one after the other: what is made on the way is of one leaf
            rows = np.asarray(_finite_rows(leaf))
            return path, int(rows.argmin())
    return None


@jax.jit
def _differ(one, other):
    return (one.astype(other.dtype) != other).any()


@jax.jit
def _finite(leaf):
    if leaf.ndim < 3:
        return jnp.isfinite(leaf).all()
    # a stack of layers, which no mesh splits: one at a time, and little lies beside it
    return jax.lax.map(lambda layer: jnp.isfinite(layer).all(), leaf).all()


@jax.jit
def _finite_rows(leaf):
    leaf = jnp.atleast_1d(leaf)
    return jnp.isfinite(leaf).reshape(len(leaf), -1).all(1)
