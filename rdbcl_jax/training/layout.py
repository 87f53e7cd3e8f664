"""The mesh of a run and the prompts that a device takes at once, where a config leaves them open.

The fewest devices share the parameters that it takes for a run to fit, since sharing costs
communication. Layers are split over `tensor` where a device could not hold what decoding reads of
them, or where there are more devices than prompts. Then as many prompts as fit go through an update
at once. All of it is by arithmetic (`footprint`), so that the same config on the same devices
always gives the same, before anything is compiled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rdbcl_jax.config import MeshConfig, RunConfig
from rdbcl_jax.sharding import AXES, make_mesh, row_parts
from rdbcl_jax.toy.options import BaseOptions
from rdbcl_jax.training.footprint import Sizes

_ROOM = 0.9  # of a device's memory, by an estimate
_TENSOR = (1, 2, 4, 8)


def has_kernel(config: RunConfig, backend: str) -> bool:
    """Whether attention holds no scores, by a backend that is no "auto": kernels take 16 bits."""
    return backend != "xla" and config.model.dtype != "float32"


def is_open(config: RunConfig) -> bool:
    """Whether the mesh is left to be chosen."""
    return config.mesh == MeshConfig()


def with_layout(
    config: RunConfig,
    devices: Sequence[Any],
    memory: int | None,
    kernel: bool,
    sizes: Sizes | None = None,
) -> RunConfig:
    """The config with the mesh and `training.prompts_per_device` that it leaves open.

    Args:
      config: with the sizes of its batches.
      devices: all of the run.
      memory: bytes that a device has; None: not known, as on CPUs. Then each device has all
        parameters, and takes all of its prompts at once.
      kernel: attention has one there, see `Footprint.most`.
      sizes: of the config, where they are known already.
    """
    if sizes is None and memory is not None:
        sizes = Sizes.of(config)

    def needs(mesh: dict[str, int], at_once: int) -> int:
        return sizes.on(mesh, at_once, memory).most(kernel) if sizes else 0

    def fits(mesh: dict[str, int], at_once: int) -> bool:
        return memory is None or needs(mesh, at_once) <= _ROOM * memory

    def decodes(mesh: dict[str, int]) -> bool:
        """Without asking other devices for the parameters at every token."""
        return sizes is None or mesh["fsdp"] == 1 or sizes.gathers(mesh, memory)

    if is_open(config):
        found = [*meshes(config, devices)]
        if not found:
            return config  # which is refused, with the numbers that do not divide
        fitting = [mesh for mesh in found if fits(mesh, 1)]
        mesh = next(filter(decodes, fitting), None) or next(iter(fitting), None)
        mesh = mesh or min(found, key=lambda mesh: needs(mesh, 1))
        if mesh["data"] < len(devices):  # else it is what the open fields stand for
            config = config.changed({f"mesh.{axis}": size for axis, size in mesh.items()})
    if sizes is None or config.training.prompts_per_device:
        return config
    mesh = dict(make_mesh(**config.mesh.to_dict(), devices=devices).shape)
    rows = config.rollout.prompts // row_parts(mesh)
    counts = [n for n in range(rows, 0, -1) if rows % n == 0]
    most = next((n for n in counts if fits(mesh, n)), 1)
    return config.changed({"training.prompts_per_device": most})


def meshes(config: RunConfig, devices: Iterable[Any]) -> Iterator[dict[str, int]]:
    """Those over which batches divide, from the least communication to the most."""
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
