"""The mesh of a run and the prompts that a device takes at once, where a config leaves them open.

The fewest devices share the parameters that it takes for a run to fit, since sharing costs
communication; then as many prompts as fit go through an update at once. Both are by arithmetic
(`footprint`), so that the same config on the same devices always gives the same, before anything is
compiled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rdbcl_jax.config import MeshConfig, RunConfig
from rdbcl_jax.sharding import AXES, make_mesh
from rdbcl_jax.toy.options import BaseOptions
from rdbcl_jax.training.footprint import Sizes

_ROOM = 0.9  # of a device's memory, by an estimate
_TENSOR = (1, 2, 4, 8)


def is_open(config: RunConfig) -> bool:
    """Whether the mesh is left to be chosen."""
    return config.mesh == MeshConfig()


def with_layout(
    config: RunConfig, devices: Sequence[Any], memory: int | None, kernel: bool
) -> RunConfig:
    """The config with the mesh and `training.prompts_per_device` that it leaves open.

    Args:
      config: with the sizes of its batches.
      devices: all of the run.
      memory: bytes that a device has; None: not known, as on CPUs. Then each device has all
        parameters, and takes all of its prompts at once.
      kernel: attention has one there, see `Footprint.most`.
    """
    sizes = None if memory is None else Sizes.of(config)

    def fits(mesh: dict[str, int], at_once: int) -> bool:
        if sizes is None or memory is None:
            return True
        return sizes.on(mesh, at_once).most(kernel) <= _ROOM * memory

    if is_open(config):
        found = [*meshes(config, devices)]
        if not found:
            return config  # which is refused, with the numbers that do not divide
        mesh = next((mesh for mesh in found if fits(mesh, 1)), found[-1])
        if mesh["data"] < len(devices):  # else it is what the open fields stand for
            config = config.changed({f"mesh.{axis}": size for axis, size in mesh.items()})
    if sizes is None or config.training.prompts_per_device:
        return config
    mesh = dict(make_mesh(**config.mesh.to_dict(), devices=devices).shape)
    rows = config.rollout.prompts // (mesh["data"] * mesh["fsdp"])
    counts = [n for n in range(rows, 0, -1) if rows % n == 0]
    most = next((n for n in counts if fits(mesh, n)), 1)
    return config.changed({"training.prompts_per_device": most})


def memory_of(device: Any) -> int | None:
    """Bytes that programs may use on a device; None: it does not say."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    return (stats or {}).get("bytes_limit")


def meshes(config: RunConfig, devices: Iterable[Any]) -> Iterator[dict[str, int]]:
    """Those over which batches divide, from the least communication to the most. Layers are split
    only where there are more devices than prompts."""
    devices, batches = [*devices], [config.rollout.prompts, config.evaluation.batch_size]
    if not config.model.path:
        batches.append(config.section(BaseOptions).batch_size)
    count = len(devices)
    for tensor in (n for n in _TENSOR if count % n == 0):
        rows = count // tensor
        if any(batch % rows for batch in batches):
            if rows > min(batches):
                continue
            return
        for fsdp in (n for n in range(1, rows + 1) if rows % n == 0):
            try:
                mesh = make_mesh(rows // fsdp, fsdp, tensor, devices=devices)
            except ValueError:  # processes would share some of their rows
                continue
            yield {axis: mesh.shape[axis] for axis in AXES}
        return
