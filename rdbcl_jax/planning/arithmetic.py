"""The plan of a run by arithmetic: for GPUs, and wherever no compiler is asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from rdbcl_jax.config import MeshConfig, RunConfig
from rdbcl_jax.planning.chips import Topology
from rdbcl_jax.planning.flops import flops
from rdbcl_jax.planning.plan import Phase, Plan
from rdbcl_jax.planning.programs import Programs
from rdbcl_jax.sharding import make_mesh
from rdbcl_jax.training.footprint import Footprint, footprint
from rdbcl_jax.training.microbatches import microbatches


@dataclasses.dataclass(frozen=True)
class UnknownDevice:
    """A device of which nothing more is known than that it is there."""

    id: int
    process_index: int = 0
    platform: str = "gpu"
    device_kind: str = "gpu"

    @classmethod
    def some(cls, count: int) -> list[UnknownDevice]:
        return [cls(i) for i in range(count)]


def computed_plan(config: RunConfig, topology: Topology, assumed: tuple[str, ...] = ()) -> Plan:
    """What is moved is the least that can be: weights and caches once a token; an update is taken
    to be bound by its products or by what it receives."""
    assert topology.chip
    devices = UnknownDevice.some(topology.size)
    mesh = dict(make_mesh(**config.mesh.to_dict(), devices=devices).shape)
    found, rollout, parts = footprint(config, mesh), config.rollout, microbatches(config, mesh)
    products = {name: n / topology.size for name, n in products_of(config).items()}
    held = sum(found.held.values())
    sampling, update = sum(found.sampling.values()), sum(found.update.values())
    update += 0 if topology.chip.kernel else found.scores
    shared = _received(config, found, mesh)  # with all weights once
    tokens = rollout.max_tokens

    def phase(name: str, needs: int, memory: int = 0, links: int = 0) -> Phase:
        return Phase(name, held, needs, products.get(name, 0), memory, links)

    phases = [
        phase("boundary", 0),
        phase("sampling", sampling, _decoded(config, found, mesh), tokens * shared),
        phase("reference", 0, 0, shared),
        # gathered forward, again for what is made anew, and backward; gradients are summed
        phase("update", update, 0, parts * 5 * shared),
    ]
    return Plan(
        topology=topology.name,
        chips=topology.size,
        mesh=mesh,
        microbatches=parts,
        assumed=(*assumed, "by arithmetic, which no compiler was asked for"),
        parameters=found.parameters,
        trained=found.trained,
        limit=topology.chip.memory,
        held=found.held,
        phases=tuple(p for p in phases if p.name in ("boundary", *products)),
        tokens=rollout.prompts * rollout.samples * tokens,
        chip=topology.chip,
    )


def _received(config: RunConfig, found: Footprint, mesh: Mapping[str, int]) -> int:
    """Bytes that a chip receives when all weights are gathered over `fsdp` once."""
    weight = jnp.dtype(config.model.dtype).itemsize
    whole = found.parameters * weight // mesh["tensor"]
    return whole * (mesh["fsdp"] - 1) // mesh["fsdp"]


def _decoded(config: RunConfig, found: Footprint, mesh: Mapping[str, int]) -> int:
    """Bytes that sampling reads: with each token all weights, the prompts' keys and values, and
    those of the responses so far."""
    tokens, weight = config.rollout.max_tokens, jnp.dtype(config.model.dtype).itemsize
    weights = found.parameters * weight // mesh["tensor"]
    caches = found.sampling["cache of prompts"] + found.sampling["cache of responses"] // 2
    return tokens * (weights + caches)


def products_of(config: RunConfig) -> dict[str, int]:
    """FLOPs of each program on all chips together, whatever kernels and meshes are there."""
    config = config.changed({"model.attention": "xla", "mesh": MeshConfig().to_dict()})
    programs = Programs.of(config, make_mesh(devices=jax.devices()[:1]))
    return {each.name: flops(each.traced(), each.branch) for each in programs.all()}
