"""The plan of a run: what its phases hold on a chip, and how long a step takes at least."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rdbcl_jax.config import MeshConfig, RunConfig
from rdbcl_jax.planning.chips import Chip, Topology
from rdbcl_jax.planning.flops import flops
from rdbcl_jax.planning.inputs import planned
from rdbcl_jax.planning.programs import Program, Programs, per_chip
from rdbcl_jax.planning.traffic import Buffer, Compiled
from rdbcl_jax.sharding import make_mesh
from rdbcl_jax.training.footprint import Footprint, footprint
from rdbcl_jax.training.layout import with_layout
from rdbcl_jax.training.memory import PHASES
from rdbcl_jax.training.microbatches import microbatches
from rdbcl_jax.training.setup import check_rows

LEARN, FIXED = "parameters that learn", "parameters that do not"
_BUFFERS = 5  # of a program that are shown
_TOO_MUCH = re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm")


@dataclasses.dataclass(frozen=True)
class Phase:
    """What a run does, on one chip.

    Attributes:
      name: as in `training.memory.PHASES`.
      held: bytes that lie there beside the program: what stays from step to step, and what is
        copied for it.
      program: bytes that it needs beside its arguments while it runs.
      flops: of matrix products, in one run.
      memory, links: bytes that it moves through the chip's memory, and receives from others.
      compile_seconds: on this machine.
      buffers: the largest arrays that it makes.
    """

    name: str
    held: int
    program: int
    flops: float = 0.0
    memory: int = 0
    links: int = 0
    compile_seconds: float = 0.0
    buffers: tuple[Buffer, ...] = ()

    @property
    def peak(self) -> int:
        return self.held + self.program

    def seconds(self, chip: Chip) -> float:
        """At least: as long as the slowest of products, memory and links takes alone."""
        return max(self.flops / chip.flops, self.memory / chip.bandwidth, self.links / chip.links)

    def bound(self, chip: Chip) -> str:
        """By what."""
        times = {
            "products": self.flops / chip.flops,
            "memory": self.memory / chip.bandwidth,
            "links": self.links / chip.links,
        }
        return max(times, key=lambda name: times[name])


@dataclasses.dataclass(frozen=True)
class Plan:
    """Of a run on chips.

    Attributes:
      topology, chips: as asked for, and how many chips that is.
      mesh: devices along each axis.
      microbatches: parts that an update takes a batch in.
      assumed: what the config leaves open, and what is taken for it.
      parameters, trained: how many numbers the model has, and how many of them learn.
      limit: bytes that a chip has for programs.
      held: from step to step, in bytes per chip, by what it is.
      phases: the boundary between tasks, and each program.
      tokens: of the responses of a step, if none ends early.
    """

    topology: str
    chips: int
    mesh: dict[str, int]
    microbatches: int
    assumed: tuple[str, ...]
    parameters: int
    trained: int
    limit: int
    held: dict[str, int]
    phases: tuple[Phase, ...]
    tokens: int
    chip: Chip | None

    @property
    def peak(self) -> int:
        return max(phase.peak for phase in self.phases)

    @property
    def fits(self) -> bool:
        return self.peak <= self.limit

    @property
    def step(self) -> list[Phase]:
        """What a step runs."""
        return [p for p in self.phases if p.name in ("sampling", "reference", "update")]

    def advice(self) -> Iterator[str]:
        """What to change, of each phase that does not fit."""
        for phase in self.phases:
            if phase.peak > self.limit:
                yield f"{phase.name}: {PHASES[phase.name].help}"

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        found = dataclasses.asdict(self)
        found["chip"] = self.chip and self.chip._asdict()
        found["fits"], found["peak"] = self.fits, self.peak
        for phase, fields in zip(self.phases, found["phases"], strict=True):
            fields["peak"] = phase.peak
            fields["buffers"] = [b._asdict() for b in phase.buffers]
            if self.chip:
                fields["seconds"], fields["bound"] = (
                    phase.seconds(self.chip),
                    phase.bound(self.chip),
                )
        if self.chip:
            found["step_seconds"] = sum(phase.seconds(self.chip) for phase in self.step)
        return found


def make_plan(config: RunConfig, topology: Topology) -> Plan:
    """Of a run, whatever of its model and data is there.

    Raises:
      ValueError, FileNotFoundError: what of the config cannot be; batches that do not divide.
    """
    with planned(config) as (config, assumed):
        chip = topology.chip
        kernel = bool(topology.devices) and chip is not None
        devices = topology.devices or _Unknown.some(topology.size)
        config = with_layout(config, devices, chip and chip.memory, kernel)
        check_rows(config, make_mesh(**config.mesh.to_dict(), devices=devices))
        if topology.devices is None:
            return _computed(config, topology, assumed)
        return _compiled(config, topology, assumed)


@dataclasses.dataclass(frozen=True)
class _Unknown:
    """A device of which nothing more is known than that it is there."""

    id: int
    process_index: int = 0
    platform: str = "gpu"
    device_kind: str = "gpu"

    @classmethod
    def some(cls, count: int) -> list[_Unknown]:
        return [cls(i) for i in range(count)]


def _computed(config: RunConfig, topology: Topology, assumed: tuple[str, ...]) -> Plan:
    """By arithmetic. Kernels that hold no scores are not counted on: see `models.attention`."""
    assert topology.chip
    mesh = make_mesh(**config.mesh.to_dict(), devices=_Unknown.some(topology.size)).shape
    found = footprint(config, mesh)
    held = sum(found.held.values())
    sampling, update = sum(found.sampling.values()), sum(found.update.values()) + found.scores
    rollout, products = config.rollout, _products(config)
    sampled, updated = (products.get(n, 0) / topology.size for n in ("sampling", "update"))
    phases = [
        Phase("boundary", held, 0),
        Phase("sampling", held, sampling, sampled, _decoded(config, found, mesh)),
        Phase("update", held, update, updated),
    ]
    return Plan(
        topology=topology.name,
        chips=topology.size,
        mesh=dict(mesh),
        microbatches=microbatches(config, mesh),
        assumed=(*assumed, "by arithmetic: there is no compiler for GPUs here"),
        parameters=found.parameters,
        trained=found.trained,
        limit=topology.chip.memory,
        held=found.held,
        phases=tuple(phases),
        tokens=rollout.prompts * rollout.samples * rollout.max_tokens,
        chip=topology.chip,
    )


def _decoded(config: RunConfig, found: Footprint, mesh: Mapping[str, int]) -> int:
    """Bytes that sampling reads: with each token all weights, the prompts' keys and values, and
    those of the responses so far."""
    tokens, weight = config.rollout.max_tokens, jnp.dtype(config.model.dtype).itemsize
    weights = found.parameters * weight // mesh["tensor"]
    caches = found.sampling["cache of prompts"] + found.sampling["cache of responses"] // 2
    return tokens * (weights + caches)


def _products(config: RunConfig) -> dict[str, int]:
    """FLOPs of each program on all chips together, whatever kernels and meshes are there."""
    config = config.changed({"model.attention": "xla", "mesh": MeshConfig().to_dict()})
    programs = Programs.of(config, make_mesh(devices=jax.devices()[:1]))
    return {each.name: flops(each.traced(), each.branch) for each in programs.all()}


def _compiled(config: RunConfig, topology: Topology, assumed: tuple[str, ...]) -> Plan:
    """By the compiler for these devices."""
    assert topology.devices is not None
    mesh = make_mesh(**config.mesh.to_dict(), devices=topology.devices)
    programs = Programs.of(config, mesh)
    held = _held(programs)
    limit = topology.chip.memory if topology.chip else _host_memory() // topology.size
    if topology.chip is None:
        held["Python and its libraries"] = _resident() // topology.size
    everything, alone = sum(held.values()), held[LEARN] + held[FIXED]
    phases = [Phase("boundary", everything, 0)]  # moments are made where old ones have gone
    products = _products(config)
    for program in programs.all():
        evaluates = program.name == "evaluation" and not config.evaluation.every
        phase = _phase(program, alone if evaluates else everything)
        phases.append(dataclasses.replace(phase, flops=products[program.name] / topology.size))
    rollout = config.rollout
    return Plan(
        topology=topology.name,
        chips=topology.size,
        mesh=dict(mesh.shape),
        microbatches=programs.learner.microbatches,
        assumed=assumed,
        parameters=_count(programs.policy.whole(programs.trained)),
        trained=_count(programs.trained),
        limit=limit,
        held=held,
        phases=tuple(phases),
        tokens=rollout.prompts * rollout.samples * rollout.max_tokens,
        chip=topology.chip,
    )


def _held(programs: Programs) -> dict[str, int]:
    """What stays from step to step, in bytes per chip."""
    method = programs.method
    references = 1 + (method.reference not in (None, "previous"))
    state = programs.learner.like
    found = {
        LEARN: per_chip(state.params),
        FIXED: per_chip(programs.policy.frozen),
        "the optimizer's moments": per_chip(state.opt_state),
        "policies from before the task": references * per_chip(programs.frozen_policy),
    }
    if method.consolidation:
        found["what mattered to earlier tasks"] = per_chip(programs.fisher)
    return found


def _phase(program: Program, live: int) -> Phase:
    """Args:
    live: bytes of what stays from step to step, as far as it is there.
    """
    start = time.perf_counter()
    lowered = program.lowered()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        asked, seconds = _asked(error), time.perf_counter() - start  # arguments and all
        beside = live + program.made - per_chip(program.args)
        return Phase(program.name, max(beside, 0), asked, compile_seconds=seconds)
    seconds, stats = time.perf_counter() - start, compiled.memory_analysis()
    text = Compiled.of(compiled.as_text())
    moved = text.traffic(program.branch)
    output = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return Phase(
        name=program.name,
        held=live + program.made,
        program=stats.temp_size_in_bytes + output + stats.generated_code_size_in_bytes,
        memory=moved.memory,
        links=moved.links,
        compile_seconds=seconds,
        buffers=tuple(text.buffers(_BUFFERS)),
    )


def _asked(error: Exception) -> int:
    """How much memory a program needs that has not been compiled for want of it.

    Raises the error where it is another.
    """
    found = _TOO_MUCH.search(str(error))
    if not found:
        raise error
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " "))


def _count(tree: Any) -> int:
    return sum(int(np.prod(a.shape)) for a in jax.tree.leaves(tree))


def _host_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
