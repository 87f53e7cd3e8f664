"""The device mesh, and one table of how parameters and batches lie on it.

Axes: `data` (batch), `fsdp` (batch, and parameters split for memory) and `tensor` (parameters split
for compute). One code path serves one device and a pod: a single device is a mesh of 1 × 1 × 1.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))

# The axes of parameters, as model families call them, and the mesh axes that they are split over.
_MESH_AXES = {"vocab": "tensor", "heads": "tensor", "mlp": "tensor", "embed": "fsdp", None: None}


class ParamAxes(NamedTuple):
    """What a model calls the axes of its parameters.

    Attributes:
      rules: regular expressions over names and the axes of one layer; the first match wins. What
        matches none, such as norms and biases, is small: replicated.
      stacks: places of the stacks, whose leading axis of layers is never split.
    """

    rules: tuple[tuple[str, tuple[str | None, ...]], ...]
    stacks: tuple[str, ...] = ()

    def of(self, name: str) -> tuple[str | None, ...]:
        axes = next((axes for pattern, axes in self.rules if re.search(pattern, name)), ())
        stacked = axes and name.startswith(tuple(f"{stack}/" for stack in self.stacks))
        return (None, *axes) if stacked else axes


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices=None) -> Mesh:
    """A mesh over `devices` (default: all); one axis may be −1 and takes what the others leave.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    if -1 in sizes:
        rest = int(np.prod([s for s in sizes if s != -1]))
        sizes[sizes.index(-1)] = len(devices) // rest
    if int(np.prod(sizes)) != len(devices):
        raise ValueError(
            f"mesh data={data}, fsdp={fsdp}, tensor={tensor} does not fill {len(devices)} devices; "
            "set one of them to -1"
        )
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def param_shardings(params, axes: ParamAxes, mesh: Mesh):
    """A NamedSharding for every parameter."""

    def rule(key_path, leaf):
        split = tuple(_MESH_AXES[axis] for axis in axes.of(_name(key_path)))
        return NamedSharding(mesh, P(*_divisible(split, leaf.shape, mesh)))

    return jax.tree_util.tree_map_with_path(rule, params)


def shardings_like(tree, params, mesh: Mesh):
    """For every array that has a parameter's name and shape (an optimizer's moments), that
    parameter's sharding; for the rest, copies on all devices."""
    known = {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}

    def rule(key_path, leaf):
        for start in range(len(key_path)):
            param = known.get(_name(key_path[start:]))
            if param is not None and param.shape == leaf.shape and _is_on(param, mesh):
                return param.sharding
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(rule, tree)


def _name(key_path) -> str:
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def _is_on(array, mesh: Mesh) -> bool:
    sharding = getattr(array, "sharding", None)
    return isinstance(sharding, NamedSharding) and sharding.mesh == mesh


def batch_shardings(batch, mesh: Mesh):
    """Splits the leading axis of every array over data × fsdp; scalars are replicated."""
    return jax.tree.map(lambda a: split_rows(mesh) if np.ndim(a) else replicated(mesh), batch)


def put_batch(batch, mesh: Mesh):
    """Moves this process's rows of a host batch onto the mesh.

    Raises:
      ValueError: the rows do not divide over the batch axes.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = {len(a) for a in jax.tree.leaves(batch) if np.ndim(a)}
    if any(r * jax.process_count() % parts for r in rows):
        raise ValueError(
            f"a batch of {sorted(rows)} rows on each of {jax.process_count()} processes does not "
            f"divide over data × fsdp = {parts} devices"
        )
    return jax.tree.map(
        lambda a, s: jax.make_array_from_process_local_data(s, np.asarray(a)),
        batch,
        batch_shardings(batch, mesh),
    )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def split_rows(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, BATCH)


def _divisible(axes, shape, mesh):
    """Drops an axis that does not divide its dimension: small models on large meshes."""
    axes = (*axes, *(None,) * (len(shape) - len(axes)))
    return tuple(
        axis if axis is None or size % mesh.shape[axis] == 0 else None
        for axis, size in zip(axes, shape, strict=True)
    )


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array that is split along its first axis only."""
    if array.is_fully_addressable:
        return np.asarray(array)
    shards = {s.index[0].start or 0: s.data for s in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def all_hosts_sum(values: np.ndarray) -> np.ndarray:
    """The sum over processes of a small host array."""
    if jax.process_count() == 1:
        return values
    return multihost_utils.process_allgather(values).sum(0)


def all_hosts_rows(values: np.ndarray) -> np.ndarray:
    """The rows of all processes, in their order."""
    if jax.process_count() == 1:
        return values
    return multihost_utils.process_allgather(values, tiled=True)
