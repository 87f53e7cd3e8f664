"""The device mesh, and one table of how parameters and batches lie on it.

Axes: `data` (batch), `fsdp` (batch, and parameters split for memory) and `tensor` (parameters split
for compute). One code path serves one device and a pod: a single device is a mesh of 1 × 1 × 1.

Which rows of a batch a process reads follows from where its devices are in the mesh: `RowShard`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # axes that split a batch
BATCH = P(ROWS)

# The axes of parameters, as model families call them, and the mesh axes that they are split over.
_MESH_AXES = {
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "embed": "fsdp",
}
_OF_MEMORY = 0.5  # of a device's, for a copy of the parameters that is made to be read often
_GIBIBYTES = {"TPU v4": 32, "TPU v5 lite": 16, "TPU v5": 95, "TPU v6 lite": 32}


class ParamAxes(NamedTuple):
    """What a model calls the axes of its parameters.

    Attributes:
      rules: regular expressions over names and the axes of one layer; the first match wins. What
        matches none, such as norms and biases, is small: replicated.
      stacks: places of the stacks, whose leading axis of layers is never split.
      counts: of how many equal parts an axis is which no split may cut, such as heads.
    """

    rules: tuple[tuple[str, tuple[str | None, ...]], ...]
    stacks: tuple[str, ...] = ()
    counts: Mapping[str, int] = {}

    def of(self, name: str) -> tuple[str | None, ...]:
        axes = next((axes for pattern, axes in self.rules if re.search(pattern, name)), ())
        stacked = axes and name.startswith(tuple(f"{stack}/" for stack in self.stacks))
        return (None, *axes) if stacked else axes


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices=None) -> Mesh:
    """A mesh over `devices` (default: all); one axis may be −1 and takes what the others leave.

    Raises:
      ValueError: the sizes do not multiply to the number of devices, or processes would share some
        of their rows but not all.
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
    mesh = _mesh(sizes, devices)
    if not row_groups(_processes(mesh)):
        raise ValueError(
            f"mesh data={sizes[0]}, fsdp={sizes[1]}, tensor={sizes[2]}: processes would share some "
            "rows of a batch but not all of them; meshes (data, fsdp, tensor) that work on these "
            f"{len(devices)} devices: {_working_sizes(devices)}"
        )
    return mesh


def _mesh(sizes: Sequence[int], devices: Sequence[Any]) -> Mesh:
    """Neighbours in the mesh are neighbours in the chips' torus, as far as may be. Over several TPU
    slices, which a slower network connects, lies `data` alone."""
    tpus = devices[0].platform == "tpu"
    slices = len({getattr(device, "slice_index", 0) for device in devices}) if tpus else 1
    data, *rest = sizes
    if data % slices:
        raise ValueError(
            f"mesh.data is {data}, and over the {slices} TPU slices lies that axis alone; expected "
            f"a multiple of {slices}"
        )

    def lay_out(**options: bool) -> np.ndarray:
        if slices == 1:
            return mesh_utils.create_device_mesh(sizes, devices, **options)
        within, over = (data // slices, *rest), (slices, 1, 1)
        return mesh_utils.create_hybrid_device_mesh(within, over, devices, **options)

    try:
        laid_out = lay_out()
    except NotImplementedError:  # unless several axes of the mesh share one of the torus
        laid_out = lay_out(allow_split_physical_axes=True)
    return Mesh(laid_out, AXES, axis_types=(AxisType.Auto,) * 3)


def _working_sizes(devices: Sequence[Any]) -> list[tuple[int, ...]]:
    divisors = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
    sizes = (s for s in itertools.product(divisors, repeat=3) if np.prod(s) == len(devices))
    return [s for s in sizes if row_groups(_processes(_mesh(s, devices)))]


def param_shardings(params, axes: ParamAxes, mesh: Mesh | AbstractMesh):
    """A NamedSharding for every parameter."""

    def rule(key_path, leaf):
        parts = _splits(axes, _name(key_path), leaf.shape, mesh)
        return NamedSharding(mesh, P(*(over if divides else None for _, _, over, divides in parts)))

    return jax.tree_util.tree_map_with_path(rule, params)


def numbers_in(tree) -> int:
    """How many numbers arrays, or their shapes, hold."""
    return sum(int(np.prod(a.shape)) for a in jax.tree.leaves(tree))


def bytes_of(tree) -> int:
    """Of arrays, or their shapes, wherever they lie."""
    return sum(a.dtype.itemsize * int(np.prod(a.shape)) for a in jax.tree.leaves(tree))


def bytes_per_device(tree, shardings=None) -> int:
    """The same on the device that has most, as they lie or would by `shardings`."""
    leaves = jax.tree.leaves(tree)
    if shardings is None:
        placed = [getattr(a, "sharding", None) for a in leaves]
    else:
        placed = jax.tree.leaves(shardings)
    pairs = zip(leaves, placed, strict=True)
    shapes = ((a.dtype, s.shard_shape(a.shape) if s else a.shape) for a, s in pairs)
    return sum(dtype.itemsize * int(np.prod(shape)) for dtype, shape in shapes)


def gathered(params, axes: ParamAxes, mesh: Mesh):
    """Inside a jitted function: the parameters, split over `tensor` alone, where that leaves room:
    gathered over `fsdp` once, where they are read again and again. Else, and on one device, as they
    are."""
    if mesh.shape["fsdp"] == 1:
        return params

    shardings = jax.tree.map(_without_fsdp, param_shardings(params, axes, mesh))
    if not is_gathered(bytes_per_device(params, shardings), memory_on(mesh)):
        return params
    return jax.lax.with_sharding_constraint(params, shardings)


def gathered_once(tree, shardings, dtype):
    """Inside a jitted function: arrays that lie by `shardings`, gathered over `fsdp` in `dtype`,
    once for all that read them; of their gradient's sum each device gets its part. What `fsdp` does
    not split stays as it is. Left to XLA, matrices may stay where they are, and products be made of
    them part by part with sums for all tokens in float32, and each device gets the whole sum.
    """

    def one(array, sharding):
        if "fsdp" not in sharding.spec or sharding.mesh.shape["fsdp"] == 1:
            return array
        if array.dtype != dtype:  # narrow, and only then gathered
            array = jax.lax.with_sharding_constraint(array.astype(dtype), sharding)
        return _gathered(sharding, _without_fsdp(sharding), array)

    return jax.tree.map(one, tree, shardings)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gathered(split: NamedSharding, whole: NamedSharding, array: Array) -> Array:
    return jax.lax.with_sharding_constraint(array, whole)


def _gathered_backward(split, whole, _, gradient):
    return (jax.lax.with_sharding_constraint(gradient, split),)


_gathered.defvjp(lambda split, whole, a: (_gathered(split, whole, a), None), _gathered_backward)


def unstacked(shardings):
    """Where a layer of stacks lies that lie by `shardings`."""
    return jax.tree.map(lambda s: NamedSharding(s.mesh, P(*s.spec[1:])), shardings)


def _without_fsdp(sharding: NamedSharding) -> NamedSharding:
    spec = (None if axis == "fsdp" else axis for axis in sharding.spec)
    return NamedSharding(sharding.mesh, P(*spec))


def is_gathered(size: int, memory: int | None) -> bool:
    """Whether a device whose memory is so large holds so many bytes of gathered parameters."""
    return memory is None or size <= _OF_MEMORY * memory


def memory_of(device) -> int | None:
    """Bytes of a device's memory, by its kind where it is only compiled for; None: of CPUs."""
    if device.platform == "cpu":
        return None
    if gibibytes := _GIBIBYTES.get(device.device_kind):
        return gibibytes * 2**30
    return (device.memory_stats() or {}).get("bytes_limit")


def memory_on(mesh: Mesh) -> int | None:
    """Bytes of memory by which to choose what a program on a mesh is."""
    first = mesh.devices.flat[0]
    return least_memory() if first in jax.devices() else memory_of(first)


@functools.cache
def least_memory() -> int | None:
    """Bytes of memory of the run's device that has least, in whole MiB; None: one says nothing.

    What all processes choose alike follows from it: GPUs may differ, by what else is on them. They
    must ask at the same time, so before programs are compiled in threads.
    """
    found = [memory_of(device) or 0 for device in jax.local_devices()]
    mine = np.array(min(found) // 2**20, np.int32)
    if jax.process_count() > 1:
        mine = multihost_utils.process_allgather(mine).min()
    return int(mine) * 2**20 or None


def held_whole(params, axes: ParamAxes, mesh: Mesh) -> str:
    """What a mesh axis of several devices would split, but does not divide, in words; empty: all is
    split. Small models on large meshes have such; each device then holds and computes it whole."""
    found: dict[str, set[str]] = {}
    for key_path, leaf in jax.tree.leaves_with_path(params):
        for axis, count, over, divides in _splits(axes, _name(key_path), leaf.shape, mesh):
            if over and not divides:
                found.setdefault(over, set()).add(f"{axis} ({count})")
    parts = (
        f"mesh.{o}={mesh.shape[o]} does not divide {', '.join(sorted(found[o]))}"
        for o in AXES
        if o in found
    )
    return "; ".join(parts)


def _splits(
    axes: ParamAxes, name: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh
) -> Iterator[tuple[str | None, int, str | None, bool]]:
    """Per axis of a parameter its name, of how many parts it is, the mesh axis that is to split it
    and whether that divides them."""
    for axis, size in itertools.zip_longest(axes.of(name), shape):
        over = _MESH_AXES[axis] if axis else None
        count = axes.counts.get(axis or "", size)
        yield axis, count, over, over is None or count % mesh.shape[over] == 0


def abstract(tree, shardings=None):
    """Shapes and dtypes of arrays, and where they lie, or would lie by `shardings`."""
    if shardings is None:
        shardings = jax.tree.map(lambda a: a.sharding, tree)
    return jax.tree.map(
        lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding),
        tree,
        shardings,
    )


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
    """Moves this process's rows of a host batch, those of its `RowShard`, onto the mesh.

    Raises:
      ValueError: the rows do not divide over the batch axes.
    """
    shard = row_shard(mesh)
    rows = {len(a) for a in jax.tree.leaves(batch) if np.ndim(a)}
    if any(r % len(shard.parts) for r in rows):
        raise ValueError(
            f"a batch of {sorted(rows)} rows, of {shard.groups} of one, does not divide over "
            f"data × fsdp = {shard.count} devices"
        )

    def put(array, sharding):
        array = np.asarray(array)
        shape = array.shape and (len(array) * shard.groups, *array.shape[1:])
        return jax.make_array_from_process_local_data(sharding, array, shape)

    return jax.tree.map(put, batch, batch_shardings(batch, mesh))


def in_rows(tree, mesh: Mesh | None):
    """Inside a jitted function: what leads with the rows of a batch lies where they do, and not
    where the compiler likes. `mesh`: None where there is one device."""
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, split_rows(mesh))


def row_parts(sizes: Mapping[str, int]) -> int:
    """Into how many parts a mesh of those sizes splits rows."""
    return math.prod(sizes[axis] for axis in ROWS)


def row_devices(mesh: Mesh | None, rows: int) -> int:
    """D, over how many devices the rows of a batch are split."""
    count = 1 if mesh is None else row_parts(mesh.shape)
    return count if rows % count == 0 else 1


def on_devices(a: Array, rows: Int[Array, "D W"], axis: int = 0) -> Array:
    """Along the axis, which counts the rows of one device after the other, of each device those
    numbers."""
    axis %= a.ndim
    devices, width = rows.shape
    before, after = a.shape[:axis], a.shape[axis + 1 :]
    apart = a.reshape(*before, devices, -1, *after)
    index = rows.reshape(*[1] * axis, devices, width, *[1] * len(after))
    return jnp.take_along_axis(apart, index, axis + 1).reshape(*before, -1, *after)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def split_rows(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, BATCH)


# ------------------------------------------------------------------ rows and processes


@dataclasses.dataclass(frozen=True)
class RowShard:
    """Which rows of every batch this process holds: `parts`, ascending, of `count` equal ones.

    Processes whose devices hold the same rows, as where `tensor` spans hosts, are a group: all of
    them read and encode these rows, and one of them leads, which stands for the group wherever the
    rows of all are put together or written.

    Attributes:
      group: the group's number, in the order of their first rows.
      leads: whether this process has the lowest index of its group.
      alone: whether every group is one process.
    """

    parts: tuple[int, ...] = (0,)
    count: int = 1
    group: int = 0
    leads: bool = True
    alone: bool = True

    @property
    def groups(self) -> int:
        return self.count // len(self.parts)

    def rows(self, total: int) -> np.ndarray:
        """The indices of this process's rows, of a batch's `total`.

        Raises:
          ValueError: the batch does not divide evenly.
        """
        if total % self.count:
            raise ValueError(f"a batch of {total} rows does not divide into {self.count} parts")
        return np.arange(total).reshape(self.count, -1)[list(self.parts)].reshape(-1)


ALL_ROWS = RowShard()


@functools.cache
def row_shard(mesh: Mesh) -> RowShard:
    """This process's rows of batches on a mesh."""
    processes = _processes(mesh)
    groups = row_groups(processes)
    me = jax.process_index()
    for number, (parts, members) in enumerate(groups.items()):
        if me in members:
            alone = all(len(m) == 1 for m in groups.values())
            return RowShard(parts, len(processes), number, me == members[0], alone)
    raise ValueError(f"process {me} has no device of {mesh}")


def row_groups(processes: np.ndarray) -> dict[tuple[int, ...], tuple[int, ...]]:
    """The groups of processes that hold the same parts of a batch's rows: parts to processes, both
    ascending, in the order of the first part. Empty where groups share some of their parts but not
    all, or differ in size.

    Args:
      processes: [parts, devices of a part], the index of the process that each device belongs to.
    """
    groups: dict[tuple[int, ...], tuple[int, ...]] = {}
    for process in np.unique(processes).tolist():
        parts = tuple(np.flatnonzero((processes == process).any(1)).tolist())
        groups[parts] = (*groups.get(parts, ()), process)
    sizes = [len(parts) for parts in groups]
    if sum(sizes) != len(processes) or len(set(sizes)) > 1:
        return {}
    return dict(sorted(groups.items()))


def _processes(mesh: Mesh) -> np.ndarray:
    """[parts of the rows, devices of a part]: as `BATCH` splits them."""
    indices = np.array([device.process_index for device in mesh.devices.flat])
    return indices.reshape(-1, mesh.shape["tensor"])


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array that is split along its first axis as batches are.

    Raises:
      ValueError: an array of several processes that lies otherwise.
    """
    if array.is_fully_addressable:
        return np.asarray(array)
    sharding = array.sharding
    if not (isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh)) or not (
        sharding.is_equivalent_to(split_rows(sharding.mesh), array.ndim)
    ):
        raise ValueError(f"expected an array whose rows are split as {BATCH}, found {sharding}")
    shards = {s.index[0].start or 0: s.data for s in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def all_hosts_sum(values: np.ndarray, shard: RowShard) -> np.ndarray:
    """The sum of a small host array over the groups of processes, each of which counts once."""
    if jax.process_count() == 1:
        return values
    mine = values if shard.leads else np.zeros_like(values)
    return multihost_utils.process_allgather(mine).sum(0)


def all_hosts_rows(values: np.ndarray, shard: RowShard) -> np.ndarray:
    """The rows of all processes, in the order of the batch."""
    if jax.process_count() == 1:
        return values
    whole = np.zeros((len(values) * shard.groups, *values.shape[1:]), values.dtype)
    whole[shard.rows(len(whole))] = values
    return all_hosts_sum(whole, shard)


def rows_of_leader(values: np.ndarray, shard: RowShard) -> np.ndarray:
    """The rows [n, …] as the group's leader has them. What its processes find on the host may
    differ, as a reward does that runs out of time, and yet they must go on with the same."""
    if shard.alone:
        return values
    bits = np.ascontiguousarray(values).view(np.uint32)  # as numbers they would be rounded
    everyone = all_hosts_rows(bits, shard).astype(np.uint32)
    return everyone[shard.rows(len(everyone))].view(values.dtype)


def agree(text: str) -> bool:
    """Whether all processes have the same text."""
    digest = np.uint32(zlib.crc32(text.encode()))
    return bool((multihost_utils.process_allgather(digest) == digest).all())
