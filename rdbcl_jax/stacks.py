"""One layer of a stack after the other, where parameters lie once.

XLA on CPU slices no 16-bit array: it widens the whole stack to 32 bits, before the loop, and slices
that. A stack that the loop body cannot take as the same in every turn stays as it is; what is
widened then is the slice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def scan(
    body: Callable[..., tuple[Any, Any]],
    carry: Any,
    layers: Any,
    *xs: Any,
    narrow: bool,
    wrap: Callable[[Callable], Callable] = lambda body: body,
) -> tuple[Any, Any]:
    """`jax.lax.scan` of `body(carry, layer, *own)` → (carry, kept).

    Args:
      layers: a tree of stacks [depth, …]; `xs` are others, of which each layer has its `own`.
      narrow: 16-bit stacks are sliced in the body. For XLA on CPU, and for those whose gradients
        nobody takes: these would be added up stack by stack.
      wrap: of what a turn does, its slicing included, as `jax.checkpoint` is.
    """
    leaves, structure = jax.tree.flatten(layers)
    inside = [narrow and a.dtype in (jnp.bfloat16, jnp.float16) for a in leaves]
    closed = [a for a, own in zip(leaves, inside, strict=True) if own]
    given = [a for a, own in zip(leaves, inside, strict=True) if not own]

    @wrap
    def turn(carry, closed, index, given, *own):
        if closed:
            first, *others = jax.tree.leaves(carry)
            first, *closed = here(first, *closed)
            carry = jax.tree.unflatten(jax.tree.structure(carry), [first, *others])
        sliced, given = iter([a[index] for a in closed]), iter(given)
        parts = [next(sliced if own else given) for own in inside]
        return body(carry, jax.tree.unflatten(structure, parts), *own)

    indices = jnp.arange(len(leaves[0]))
    return jax.lax.scan(lambda c, own: turn(c, closed, *own), carry, (indices, given, *xs))


def here(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays, of which nothing is computed before all are there."""
    return jax.lax.optimization_barrier(arrays)
