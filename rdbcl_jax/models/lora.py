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
import re

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from rdbcl_jax.models.layers import Linear
from rdbcl_jax.models.partition import ADAPTERS, split


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


def merge(model, params):
    """(model, params) without adapters: each is added into its matrix, in float32."""
    if model.lora is None:
        return model, params
    scale = model.lora.alpha / model.lora.rank

    def fold(node):
        if not isinstance(node, dict):
            return node
        node = {name: fold(child) for name, child in node.items()}
        if "lora_a" in node:
            a, b = (node.pop(name).astype(jnp.float32) for name in ("lora_a", "lora_b"))
            kernel = node["kernel"]
            node["kernel"] = (kernel.astype(jnp.float32) + scale * (a @ b)).astype(kernel.dtype)
        return node

    return dataclasses.replace(model, lora=None), fold(params)


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
