"""Which checkpoint tensors make each parameter, and how. The names are the checkpoint's own, so
the map is a handful of mechanical rules."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np

from rdbcl_jax.models.qwen_vl.config import QwenVLConfig

_STACKS = ("language_model.layers", "visual.blocks", "visual.deepstack_merger_list")
# the families call the same modules by other names …
_QWEN2 = {r"merger\.fc1": "merger.mlp.0", r"merger\.fc2": "merger.mlp.2"}
_QWEN3 = {r"\bfc([12])\b": r"linear_fc\1", r"\bln_q\b": "norm"}
_RENAMED = {"qwen2_vl": _QWEN2, "qwen2_5_vl": _QWEN2, "qwen3_vl": _QWEN3}
# … and put the two stacks under these prefixes
_PREFIXES = {"visual": "visual", "language_model": "model"}
_NESTED_PREFIXES = {"visual": "model.visual", "language_model": "model.language_model"}


@dataclasses.dataclass(frozen=True)
class Source:
    """The tensors behind one parameter: one, or one per layer of a stack."""

    names: tuple[str, ...]
    stacked: bool
    transposed: bool
    checkpoint_shape: tuple[int, ...]  # of each tensor

    def read(self, tensor: Any, index: tuple[slice, ...]) -> np.ndarray:
        """The part `index` of one layer's parameter. `tensor` is lazy: indexing it reads, and no
        more is read than the part (the patch embedding excepted, whose kernel is flattened)."""
        if not self.transposed:
            return tensor[index]
        rows, columns = index
        if len(self.checkpoint_shape) == 2:
            return tensor[columns, rows].T
        part = tensor[columns]
        return part.reshape(len(part), -1)[:, rows].T

    def to_checkpoint(self, param: np.ndarray) -> np.ndarray:
        tensor = param.T if self.transposed else param
        return np.ascontiguousarray(tensor).reshape(self.checkpoint_shape)


def source_of(path: tuple[str, ...], shape: tuple[int, ...], config: QwenVLConfig) -> Source:
    """The checkpoint tensors (published names) of the parameter at `path`."""
    *module, leaf = path
    name = ".".join(module)
    stack = next((s for s in _STACKS if name.startswith(s)), None)
    for ours, theirs in _RENAMED[config.family].items():
        name = re.sub(ours, theirs, name)
    name += ".bias" if leaf == "bias" else ".weight"
    tensor_shape = shape[1:] if stack else shape
    if leaf == "kernel":
        tensor_shape = tensor_shape[::-1]
        if name == "visual.patch_embed.proj.weight":
            v = config.vision
            tensor_shape = (v.width, v.channels, v.temporal_patch_size, v.patch_size, v.patch_size)
    names = (name,)
    if stack:
        names = tuple(name.replace(stack, f"{stack}.{i}") for i in range(shape[0]))
    names = tuple(_with_prefix(n, config.family) for n in names)
    return Source(names, stack is not None, leaf == "kernel", tensor_shape)


def published_name(name: str, family: str) -> str:
    """A tensor's published name, from either of the layouts in the wild."""
    name = re.sub(r"^model\.(visual|language_model)\.", r"\1.", name)
    return _with_prefix(re.sub(r"^model\.", "language_model.", name), family)


def _with_prefix(name: str, family: str) -> str:
    stack, _, rest = name.partition(".")
    prefixes = _NESTED_PREFIXES if family == "qwen3_vl" else _PREFIXES
    return f"{prefixes.get(stack, stack)}.{rest}"
