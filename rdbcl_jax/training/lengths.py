"""Passes over responses go as far as the longest of them, not as far as they may.

A program's shapes are fixed. So it has a branch for each of a few lengths, and a batch, or a part
of one, runs the shortest that holds its responses. A batch is taken apart with the shortest first,
so that few parts are long.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int

from rdbcl_jax.batches import PromptBatch
from rdbcl_jax.sharding import on_devices, row_devices

T = TypeVar("T")
SHORT = 64  # tokens; no longer responses earn what another branch takes to compile


def lengths(tokens: int) -> tuple[int, ...]:
    """For how many tokens of T there are branches: all, half of them and a quarter.

    All alone where T is short: a branch compiles for as long as a program and would save little.
    """
    found = [tokens]
    while found[-1] > SHORT and len(found) < 3:
        found.append(-(-found[-1] // 2))
    return tuple(found)


def cut_to_longest(function: Callable[..., T], mask: Bool[Array, "P G T"], *trees: Any) -> T:
    """`function(*trees)`, whose arrays [P, G, T] end with the longest response, or soon after it.

    Args:
      mask: the responses' tokens.
      trees: prompts in them stay as they are.
    Returns:
      what must have the same shapes whatever the length.
    """
    sizes = lengths(mask.shape[-1])
    if len(sizes) == 1:
        return function(*trees)

    def cut(size: int, leaf: Any) -> Any:
        whole = _is_prompts(leaf) or jnp.shape(leaf) != mask.shape
        return leaf if whole else leaf[..., :size]

    def branch(size: int, *trees: Any) -> T:
        return function(*jax.tree.map(functools.partial(cut, size), trees, is_leaf=_is_prompts))

    longest = _ends(mask).max()
    fitting = sum((longest <= size).astype(jnp.int32) for size in sizes)
    return jax.lax.switch(fitting - 1, [functools.partial(branch, s) for s in sizes], *trees)


@dataclasses.dataclass(frozen=True)
class Parts:
    """A batch taken apart, prompts with short responses first; every device keeps its own.

    Attributes:
      count: of parts.
      order: of each device's prompts, as numbers of its rows.
    """

    count: int
    order: Int[Array, "D R"]

    @classmethod
    def of(cls, mask: Bool[Array, "P G T"], count: int, mesh: Mesh | None) -> Parts:
        longest = _ends(mask).max(1).reshape(row_devices(mesh, len(mask)), -1)
        return cls(count, jnp.argsort(longest, axis=1))  # stable

    def split(self, batch: Any) -> Any:
        """Arrays [P, …] as [parts, P / parts, …], for a scan; numbers are repeated."""

        def split(a):
            if jnp.ndim(a) == 0:
                return jnp.broadcast_to(a, (self.count,))
            rows = on_devices(a, self.order)
            parts = rows.reshape(len(self.order), self.count, -1, *a.shape[1:])
            return jnp.moveaxis(parts, 1, 0).reshape(self.count, -1, *a.shape[1:])

        return jax.tree.map(split, batch)

    def joined(self, found: Any) -> Any:
        """The inverse of `split`."""
        places = jnp.argsort(self.order, axis=1)

        def join(a):
            parts = a.reshape(self.count, len(self.order), -1, *a.shape[2:])
            rows = jnp.moveaxis(parts, 1, 0).reshape(-1, *a.shape[2:])
            return on_devices(rows, places)

        return jax.tree.map(join, found)


def _ends(mask: Bool[Array, "P G T"]) -> Int[Array, "P G"]:
    """How many tokens each response has."""
    return jnp.max(mask * jnp.arange(1, mask.shape[-1] + 1), -1)


def _is_prompts(node: Any) -> bool:
    return isinstance(node, PromptBatch)
