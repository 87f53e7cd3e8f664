"""Floating-point operations of a program, counted from its jaxpr.

XLA's own count (`cost_analysis`) takes the body of a loop once, however often it runs. Here bodies
count as often as they run: those of `scan` by its length, those of `while` by the limit in its
condition. Only products of matrices and convolutions are counted; all else is small beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


class Counter:
    """How far loops have come that share a counter, one after the other or one within another, as
    the sampler's do, which all count tokens."""

    def __init__(self) -> None:
        self._reached = 0

    def turns(self, start: int | None, limit: int, nested: bool) -> int:
        """Of a loop.

        Args:
          start: of its counter; None: where it was left.
          nested: a loop within it has the same limit, and takes all turns.
        """
        if start == 0:
            return limit  # a counter of its own
        if nested:
            self._reached = max(self._reached, start or 0)
            return 1
        turns = max(limit - (self._reached if start is None else start), 1)
        self._reached = limit
        return turns


def flops(
    jaxpr: Jaxpr | ClosedJaxpr,
    mean: bool = False,
    counter: Counter | None = None,
) -> int:
    """Of all devices together.

    Args:
      mean: of the branches of a condition the mean counts, not the largest: right for the sampler,
        whose blocks of caches are read or not, and the k-th of n is from k/n of its tokens on.
      counter: of the loops around it.
    """
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    total, counter = 0, counter or Counter()
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            total += _product(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name == "scan":
            total += params["length"] * flops(params["jaxpr"], mean, counter)
        elif name == "while":
            limit = _limit(params["cond_jaxpr"].jaxpr)
            nested = limit in _limits(params["body_jaxpr"].jaxpr)
            turns = counter.turns(_start(equation), limit, nested)
            total += turns * flops(params["body_jaxpr"], mean, counter)
        elif name == "cond":
            branches = [flops(each, mean, counter) for each in params["branches"]]
            total += sum(branches) // len(branches) if mean else max(branches)
        elif name == "shard_map":
            mesh, manual = params["mesh"], params["manual_axes"]
            devices = math.prod(mesh.shape[axis] for axis in manual)
            total += devices * flops(params["jaxpr"], mean, counter)
        else:
            total += sum(flops(inner, mean, counter) for inner in _inside(params))
    return total


def traced(function: Callable[..., Any], *args: Any) -> ClosedJaxpr:
    """The jaxpr of a function of abstract arrays."""
    return jax.make_jaxpr(function)(*args)


def _inside(params: dict[str, Any]) -> Iterator[Jaxpr | ClosedJaxpr]:
    def is_jaxpr(leaf):
        return isinstance(leaf, ClosedJaxpr | Jaxpr)

    for leaf in jax.tree.leaves(params, is_leaf=is_jaxpr):
        if is_jaxpr(leaf):
            yield leaf


def _product(equation) -> int:
    """Two for each number of the result and each of the axis that is summed over."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    summed = math.prod(left[axis] for axis in contracted)
    return 2 * math.prod(equation.outvars[0].aval.shape) * summed


def _convolution(equation) -> int:
    kernel = equation.invars[1].aval.shape
    out_features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // out_features


def _limit(condition: Jaxpr) -> int:
    """N of a condition that holds `counter < N`."""
    for equation in condition.eqns:
        if equation.primitive.name == "lt" and isinstance(equation.invars[1], Literal):
            return int(equation.invars[1].val)
    for equation in condition.eqns:  # within a function of its own
        for inner in _inside(equation.params):
            found = _limit(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)
            if found > 1:
                return found
    return 1


def _limits(jaxpr: Jaxpr) -> Iterator[int]:
    """Those of the loops within."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "while":
            yield _limit(equation.params["cond_jaxpr"].jaxpr)
        for inner in _inside(equation.params):
            yield from _limits(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)


def _start(equation) -> int | None:
    """Where the counter of a loop starts; None: it is carried on from the loop before."""
    consts = equation.params["cond_nconsts"] + equation.params["body_nconsts"]
    counters = [v for v in equation.invars[consts:] if v.aval.shape == ()]
    counters = [v for v in counters if v.aval.dtype.kind == "i"]
    return int(counters[0].val) if counters and isinstance(counters[0], Literal) else None
