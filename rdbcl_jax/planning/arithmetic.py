"""The plan of a run by arithmetic: for GPUs, and wherever no compiler is asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp

from rdbcl_jax.config import MeshConfig, RunConfig
from rdbcl_jax.methods import make_method
from rdbcl_jax.planning.chips import Topology
from rdbcl_jax.planning.flops import flops
from rdbcl_jax.planning.plan import Phase, Plan
from rdbcl_jax.sharding import make_mesh, numbers_in, row_parts
from rdbcl_jax.training.footprint import FISHER, Footprint, Sizes
from rdbcl_jax.training.layout import has_kernel
from rdbcl_jax.training.microbatches import microbatches
from rdbcl_jax.training.programs import Programs, live, surveys


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


@dataclasses.dataclass(frozen=True)
class Traced:
    """What is computed from a config's traces, which do not depend on chips, mesh and batch size.

    Attributes:
      products: FLOPs of each program for one prompt.
    """

    sizes: Sizes
    products: dict[str, float]

    @classmethod
    def of(cls, config: RunConfig) -> Traced:
        prompts = config.rollout.prompts
        found = {name: count / prompts for name, count in products_of(config).items()}
        return cls(Sizes.of(config), found)


def computed_plan(
    config: RunConfig,
    topology: Topology,
    assumed: tuple[str, ...] = (),
    traced: Traced | None = None,
) -> Plan:
    """What is moved is the least that can be: weights and caches once a token; an update is taken
    to be bound by its products or by what it receives.

    Compiled updates receive as much to 2 % over `data` alone. Over `fsdp` they receive up to 1.5
    times as much on CPU, where XLA leaves whole sums of gradients with all, and 1.35 times on a TPU
    (two layers of 3B, v5e:4x4), where it does so with the head's.

    Args:
      traced: of a config that differs in its mesh, prompts and `training.prompts_per_device` alone.
    """
    assert topology.chip
    traced = traced or Traced.of(config)
    devices = UnknownDevice.some(topology.size)
    mesh = dict(make_mesh(**config.mesh.to_dict(), devices=devices).shape)
    sizes = dataclasses.replace(traced.sizes, config=config)
    found = sizes.on(mesh, memory=topology.chip.memory)
    rollout, parts = config.rollout, microbatches(config, mesh)
    mine = rollout.prompts / topology.size
    products = {name: n * mine for name, n in traced.products.items()}
    held = sum(found.held.values())
    sampling, update = sum(found.sampling.values()), sum(found.update.values())
    update += found.scores_held(has_kernel(config, config.model.attention))
    weight = jnp.dtype(config.model.dtype).itemsize
    shared = _others(found.parameters * weight // mesh["tensor"], mesh)  # all weights once
    tokens = rollout.max_tokens
    gathered = "parameters gathered over fsdp" in found.sampling
    later = 0 if gathered else tokens * _others(sizes.read_with_each_token(mesh), mesh)
    summed = _summed(sizes, mesh)
    learned = _learned(sizes, mesh)

    def phase(name: str, needs: int, memory: int = 0, links: int = 0) -> Phase:
        return Phase(name, held, needs, products.get(name, 0), memory, links)

    phases = [
        phase("boundary", 0),
        phase(
            "sampling",
            sampling,
            _decoded(sizes, found.sampling, mesh),
            shared + later + summed,
        ),
        phase("reference", sum(found.reference.values()), 0, shared + summed),
        # weights forward and backward; sums forward, again for what is made anew, and two backward
        phase("update", update, 0, parts * (2 * shared + learned) + 4 * summed),
        *_between_steps(sizes, found, mesh, topology.chip.memory, products),
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


def _between_steps(
    sizes: Sizes, found: Footprint, mesh: Mapping[str, int], memory: int, products: dict[str, float]
) -> Iterator[Phase]:
    """Evaluation, and what else a run does with batches of that size."""
    config, method = sizes.config, make_method(sizes.config)
    evaluated = config.evaluation.batch_size

    def sampler(name: str, prompts: int, samples: int, flops: float) -> Phase:
        needs = sizes.sampling(mesh, prompts, samples, memory)
        held = live(name, found.held, config, method)
        return Phase(name, held, sum(needs.values()), flops, _decoded(sizes, needs, mesh))

    yield sampler("evaluation", evaluated, 1, products.get("evaluation", 0.0))
    if several := surveys(config, method):
        yield sampler("survey", evaluated, several, products.get("survey", 0.0))
    if method.consolidation:
        held = live("fisher", found.held, config, method) + found.held[FISHER]  # the sum so far
        # gradients are squared, one prompt's at a time
        needs = sum(sizes.on(mesh, 1, memory).update.values()) + found.held[FISHER]
        yield Phase("fisher", held, needs, products.get("fisher", 0.0))


def _others(whole: int, mesh: Mapping[str, int]) -> int:
    """Of so many bytes of weights those that a chip receives from others, split over `fsdp`."""
    return whole * (mesh["fsdp"] - 1) // mesh["fsdp"]


def _learned(sizes: Sizes, mesh: Mapping[str, int]) -> int:
    """Bytes that a chip receives for the gradients of a micro-batch, of what learns alone, in the
    dtype of products: each of `fsdp` gets its part of their sum, which is summed over `data` too.
    """
    number = jnp.dtype(sizes.config.model.dtype).itemsize
    whole = numbers_in(sizes.trained) * number // mesh["tensor"]
    data = mesh["data"]
    return _others(whole, mesh) + 2 * (whole // mesh["fsdp"]) * (data - 1) // data


def _summed(sizes: Sizes, mesh: Mapping[str, int]) -> int:
    """Bytes that a chip receives in a forward pass of its prompts and responses for what each layer
    sums over `tensor`: after attention, and after its MLP."""
    config, parts = sizes.config, mesh["tensor"]
    rollout, width = config.rollout, sizes.width
    tokens = config.data.prompt_lengths[-1] + rollout.samples * rollout.max_tokens
    rows = rollout.prompts // row_parts(mesh)
    number = rows * tokens * width * jnp.dtype(config.model.dtype).itemsize
    return 2 * sizes.depth * number * 2 * (parts - 1) // parts


def _decoded(sizes: Sizes, sampling: Mapping[str, int], mesh: Mapping[str, int]) -> int:
    """Bytes that `sampling` reads: with each token weights, the prompts' keys and values, and those
    of the responses so far."""
    caches = sampling["cache of prompts"] + sampling["cache of responses"] // 2
    return sizes.config.rollout.max_tokens * (sizes.read_with_each_token(mesh) + caches)


def products_of(config: RunConfig) -> dict[str, int]:
    """FLOPs of each program on all chips together, whatever kernels and meshes are there."""
    config = config.changed({"model.attention": "xla", "mesh": MeshConfig().to_dict()})
    programs = Programs.of(config, make_mesh(devices=jax.devices()[:1]))
    return {each.name: flops(each.traced(), each.mean) for each in programs.all()}
