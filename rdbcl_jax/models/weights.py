"""Which checkpoint tensors make each parameter, and how. Parameters have the names of the
checkpoint's tensors, so a family's map is a handful of mechanical rules."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

_LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight"}  # others keep their name


@dataclasses.dataclass(frozen=True)
class Source:
    """The tensors behind one parameter: one, or one per layer of a stack."""

    names: tuple[str, ...]
    stacked: bool
    transposed: bool
    checkpoint_shape: tuple[int, ...]  # of each tensor

    def read(self, tensor: Any, index: tuple[slice, ...]) -> np.ndarray:
        """The part `index` of one layer's parameter. `tensor` is lazy: indexing it reads, and no
        more is read than the part (convolutions excepted, whose kernel is flattened)."""
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


@dataclasses.dataclass(frozen=True)
class WeightMap:
    """From parameters to the tensors of a published checkpoint, and from either layout of tensors
    in the wild (transformers 5 nests what was flat) to the published one.

    Attributes:
      stacks: places of the parameters whose layers are stacked, such as `language_model/layers`.
      prefixes: what a checkpoint calls the first part of a parameter's name.
      renamed: regular expressions and what becomes of their matches in a tensor's name, before it
        gets its prefix.
      shapes: of tensors that are not a transposed kernel, such as a convolution's, by their names
        before these get a prefix.
      aliases: regular expressions over the names of other layouts, and what makes published names
        of them; the first that matches does.
    """

    stacks: tuple[str, ...]
    prefixes: Mapping[str, str]
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def source_of(self, path: tuple[str, ...], shape: tuple[int, ...]) -> Source:
        """The checkpoint tensors (published names) of the parameter at `path`."""
        *module, leaf = path
        name = ".".join(module)
        stacks = (stack.replace("/", ".") for stack in self.stacks)
        stack = next((s for s in stacks if f"{name}.".startswith(f"{s}.")), None)
        name += f".{_LEAVES.get(leaf, leaf)}"
        for ours, theirs in self.renamed.items():
            name = re.sub(ours, theirs, name)
        tensor_shape = shape[1:] if stack else shape
        if leaf == "kernel":
            tensor_shape = self.shapes.get(name, tensor_shape[::-1])
        names = [name]
        if stack:
            names = [name.replace(stack, f"{stack}.{i}") for i in range(shape[0])]
        names = [self._with_prefix(n) for n in names]
        return Source(tuple(names), stack is not None, leaf == "kernel", tensor_shape)

    def name_of(self, *path: str) -> str:
        """What the tensor of the parameter at `path`, of no stack, is called."""
        return self.source_of(path, ()).names[0]

    def published_name(self, name: str) -> str:
        """A tensor's published name, from either of the layouts in the wild."""
        for theirs, published in self.aliases.items():
            renamed, found = re.subn(theirs, published, name, count=1)
            if found:
                return renamed
        return name

    def _with_prefix(self, name: str) -> str:
        first, *rest = name.split(".")
        return ".".join([self.prefixes.get(first, first), *rest])
