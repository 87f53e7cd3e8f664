"""Whether parameters are finite, and which one is not: asked where they are read and saved. And
whether they differ, asked where something was to be learned."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rdbcl_jax.stacks import scan


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
    return bool(_differ(jax.tree.leaves(one), jax.tree.leaves(other)))


def first_not_finite(tree: Any) -> tuple[Any, int] | None:
    """(path of the first leaf that is not finite, index on its first axis); None: all are."""
    paths, leaves = zip(*jax.tree.leaves_with_path(tree), strict=True)
    found = np.asarray(_finite_leaves(leaves))  # in one program: there are dozens of leaves
    if found.all():
        return None
    number = int(found.argmin())
    return paths[number], int(np.asarray(_finite_rows(leaves[number])).argmin())


@jax.jit
def _differ(one, other):
    pairs = zip(one, other, strict=True)
    return jnp.stack([_any(lambda a, b: a.astype(b.dtype) != b, *pair) for pair in pairs]).any()


@jax.jit
def _finite_leaves(leaves):
    return ~jnp.stack([_any(lambda a: ~jnp.isfinite(a), leaf) for leaf in leaves])


def _any(is_so, *arrays):
    """Whether it is so of any number of arrays of one shape: a stack of layers, which no mesh
    splits, one layer at a time, so that little lies beside it.

    A loop keeps a boolean for each place of a layer, where the layer lies, and devices meet after
    it: a program of many loops in each of which they meet is slower, and in the tests eight CPU
    devices hung in one, for a cause that was not found."""
    if arrays[0].ndim < 3:
        return is_so(*arrays).any()

    def layer(found, parts):
        return found | is_so(*parts), None

    return scan(layer, jnp.zeros(arrays[0].shape[1:], bool), arrays, narrow=True)[0].any()


@jax.jit
def _finite_rows(leaf):
    leaf = jnp.atleast_1d(leaf)
    return jnp.isfinite(leaf).reshape(len(leaf), -1).all(1)
