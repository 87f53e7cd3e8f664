"""Which parameters learn: a tree is split in two by the names of its leaves, and joined again.

The trained half is what gradients, the optimizer and the reference copy see. The other half is
passed beside it, held once, and costs no backward pass: a frozen vision tower keeps no activations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NewType

import jax

from rdbcl_jax.models.interface import Params

# what learns, and what does not: trees of the structure of `Params`, None where a leaf is the
# other's. Neither is what a model runs on; `join` makes that.
Trained = NewType("Trained", Mapping[str, Any])
Frozen = NewType("Frozen", Mapping[str, Any])

ALL = ""
ADAPTERS = r"/lora_[ab]$"


def split(params: Params, pattern: str) -> tuple[Trained, Frozen]:
    """(trained, frozen).

    A leaf is trained where `pattern`, a regular expression, is found in its name, such as
    `language_model/layers/self_attn/q_proj/kernel`. Raises ValueError where none is.
    """
    trained = select(params, pattern)
    if not any(jax.tree.leaves(trained)):
        raise ValueError(f"no parameter's name matches {pattern!r}: nothing would be trained")

    def keep(kind):
        return jax.tree.map(lambda p, t: p if t == kind else None, params, trained)

    return Trained(keep(True)), Frozen(keep(False))


def join(trained: Trained, frozen: Frozen) -> Params:
    """The whole tree again; nothing is copied."""
    return jax.tree.map(
        lambda t, f: f if t is None else t, trained, frozen, is_leaf=lambda leaf: leaf is None
    )


def frozen_in(params: Params, pattern: str, stacks: Sequence[str], dtype: Any) -> Params:
    """Shapes of parameters, with the matrices that do not learn in `dtype`: all but those whose
    name matches. Models read matrices in their own `dtype` alone, so in that one nothing is lost;
    norms and biases are small, and read as they are."""
    learns, matrices = select(params, pattern), _matrices(params, stacks)
    return jax.tree.map(
        lambda p, own, matrix: jax.ShapeDtypeStruct(p.shape, dtype) if matrix and not own else p,
        params,
        learns,
        matrices,
    )


def read_in(params: Any, stacks: Sequence[str], dtype: Any) -> Any:
    """Parameters with their matrices in `dtype`; those that are need no copy."""
    return jax.tree.map(
        lambda p, matrix: p.astype(dtype) if matrix and p.dtype != dtype else p,
        params,
        _matrices(params, stacks),
    )


def _matrices(params: Any, stacks: Sequence[str]) -> Any:
    """True for every leaf that has two axes, the layers of a stack aside."""

    def is_matrix(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return leaf.ndim - name.startswith(tuple(f"{stack}/" for stack in stacks)) >= 2

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def select(params: Params, pattern: str) -> Any:
    """True for every leaf whose name matches."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: (
            re.search(pattern, jax.tree_util.keystr(path, simple=True, separator="/")) is not None
        ),
        params,
    )
