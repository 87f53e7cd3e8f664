"""Low-rank adapters (LoRA, arXiv:2106.09685): W + A·B·α/rank, with only A and B trained.

An adapted model is one whose parameters have `lora_a` and `lora_b` beside the `kernel` of
each adapted matrix, so all of its methods work as before. `partition.split(params, ADAPTERS)`
takes the adapters out; policy and reference then join theirs to the same base weights:

    model, params = lora.add(model, params, LoRA(rank=16), key)
    adapters, base = partition.split(params, partition.ADAPTERS)
    model.response_hidden(partition.join(adapters, base), ...)

There is no dropout: sampler, reference and learner must run the same policy.
"""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from rdbcl_jax.models.layers import Linear
from rdbcl_jax.models.partition import ADAPTERS, split

_NAMES = ("lora_a", "lora_b")


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Options of the adapters.

    Attributes:
      rank: of A [in, rank] and B [rank, out].
      alpha: the adapters' weight is alpha / rank.
      targets: regular expression over the names of matrices, such as
        `language_model/layers/self_attn/q_proj`; empty: the model family's own,
        `VLM.lora_targets`.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: str = ""


def add(model, params, lora: LoRA, key: Array):
    """The adapted (model, params): the same base arrays, and adapters that change nothing yet.

    Raises ValueError where `lora.targets` matches no matrix.
    """
    adapted = adapt_model(model, lora)
    adapters = jax.jit(lambda key: split(adapted.init(key), ADAPTERS)[0])(key)
    return adapted, _overlay(adapters, params)


def adapt_model(model, lora: LoRA):
    """The model with adapters; what it is made from is not touched.

    Raises ValueError where `lora.targets` matches no matrix.
    """
    lora = dataclasses.replace(lora, targets=lora.targets or model.lora_targets)
    adapted = dataclasses.replace(model, lora=lora)
    with_them, without = (jax.tree.structure(m.abstract_params()) for m in (adapted, model))
    if with_them == without:  # type: ignore[operator]  # PyTreeDef is unknown to jax's own stubs
        raise ValueError(f"no matrix's name matches the LoRA targets {lora.targets!r}")
    return adapted


def merge(model, params, like=None, *, owned: bool = False):
    """(model, params) without adapters: each is added into its matrix, in float32, a layer at a
    time (XLA on CPU has the whole stack of a matrix in float32).

    Args:
      like: shapes of the parameters that come, in the dtypes in which they are wanted; None: each
        keeps its own.
      owned: the dictionaries of `params` are emptied, so that each parameter goes when its
        successor is there, if nothing else holds it.
    """
    scale = model.lora.alpha / model.lora.rank if model.lora else 0.0
    take = dict.pop if owned else dict.__getitem__

    def fold(node, like):
        if not isinstance(node, dict):
            return node if like is None else node.astype(like.dtype)
        whole = {}
        for name in [*node]:
            if name in _NAMES or (name == "kernel" and _NAMES[0] in node):
                continue
            whole[name] = fold(take(node, name), like and like[name])
        if _NAMES[0] in node:
            parts = [take(node, name) for name in ("kernel", *_NAMES)]
            dtype = like["kernel"].dtype if like else parts[0].dtype
            whole["kernel"] = _added(*parts, scale, dtype)
        return whole

    return dataclasses.replace(model, lora=None), fold(params, like)


@functools.partial(jax.jit, static_argnames=("scale", "dtype"))
def _added(kernel, lora_a, lora_b, scale: float, dtype):
    """W + A·B·scale, of a matrix or a stack of them."""

    def one(parts):
        kernel, a, b = (part.astype(jnp.float32) for part in parts)
        product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        return (kernel + scale * product).astype(dtype)

    parts = kernel, lora_a, lora_b
    return one(parts) if kernel.ndim == 2 else jax.lax.map(one, parts)


def adapt(module: nnx.Module, place: str, lora: LoRA, rngs: nnx.Rngs) -> None:
    """Gives every matrix of `module` that the targets name its adapter."""
    for path, part in nnx.iter_modules(module):
        name = "/".join((place, *map(str, path)))
        if isinstance(part, Linear) and re.search(lora.targets, name):
            part.adapt(lora.rank, lora.alpha / lora.rank, rngs)


def _overlay(adapters, params):
    """`params`, with the adapters at the places that only they have."""
    if isinstance(adapters, dict):
        return {name: _overlay(part, params.get(name)) for name, part in adapters.items()}
    return params if adapters is None else adapters
