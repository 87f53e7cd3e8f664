"""Which checkpoint tensors make each parameter, and how. The names are the checkpoint's own, so
the map is a handful of mechanical rules."""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from rdbcl_jax.models.qwen_vl.config import QwenVLConfig

_RENAMED = {"merger.fc1": "merger.mlp.0", "merger.fc2": "merger.mlp.2"}
_STACKS = ("language_model.layers", "visual.blocks")


@dataclasses.dataclass(frozen=True)
class Source:
    """The tensors behind one parameter: one, or one per layer of a stack."""

    names: tuple[str, ...]
    stacked: bool
    transposed: bool
    checkpoint_shape: tuple[int, ...]  # of each tensor

    def to_param(self, tensor: np.ndarray) -> np.ndarray:
        if self.transposed:  # also flattens the patch embedding's convolution kernel
            return tensor.reshape(len(tensor), -1).T
        return tensor

    def to_checkpoint(self, param: np.ndarray) -> np.ndarray:
        tensor = param.T if self.transposed else param
        return np.ascontiguousarray(tensor).reshape(self.checkpoint_shape)


def source_of(path: tuple[str, ...], shape: tuple[int, ...], config: QwenVLConfig) -> Source:
    """The checkpoint tensors (published names) of the parameter at `path`."""
    *module, leaf = path
    name = ".".join(module)
    stack = next((s for s in _STACKS if name.startswith(s)), None)
    for ours, theirs in _RENAMED.items():
        name = name.replace(ours, theirs)
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
    names = tuple(n.replace("language_model", "model") for n in names)
    return Source(names, stack is not None, leaf == "kernel", tensor_shape)


def published_name(name: str) -> str:
    """A tensor's published name, from either of the layouts in the wild."""
    name = re.sub(r"^model\.visual\.", "visual.", name)
    return re.sub(r"^model\.language_model\.", "model.", name)
