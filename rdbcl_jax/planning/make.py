"""Makes the plan of a run: compiled where there is a compiler for its chips, computed elsewhere."""

from __future__ import annotations

from collections.abc import Callable

from rdbcl_jax.config import RunConfig
from rdbcl_jax.planning.arithmetic import UnknownDevice, computed_plan
from rdbcl_jax.planning.chips import Topology
from rdbcl_jax.planning.compiling import compiled_plan
from rdbcl_jax.planning.inputs import planned
from rdbcl_jax.planning.plan import Plan
from rdbcl_jax.sharding import make_mesh, memory_of
from rdbcl_jax.training.layout import has_kernel, with_layout
from rdbcl_jax.training.setup import check_rows


def make_plan(
    config: RunConfig, topology: Topology, say: Callable[[str], None] = lambda line: None
) -> Plan:
    """Of a run, whatever of its model and data is there.

    Args:
      say: is told of each program that is compiled.
    Raises:
      ValueError, FileNotFoundError: what of the config cannot be; batches that do not divide.
    """
    with planned(config) as (config, assumed):
        chip = topology.chip
        devices = topology.devices or UnknownDevice.some(topology.size)
        memory = memory_of(devices[0]) if topology.devices else chip and chip.memory
        # TPUs and GPUs have one, which "auto" takes
        kernel = chip is not None and has_kernel(config, config.model.attention)
        config = with_layout(config, devices, memory, kernel)
        check_rows(config, make_mesh(**config.mesh.to_dict(), devices=devices))
        if topology.devices is None:
            return computed_plan(config, topology, assumed)
        return compiled_plan(config, topology, assumed, say)
