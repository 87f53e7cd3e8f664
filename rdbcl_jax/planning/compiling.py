"""The plan of a run by XLA's own compiler for its chips."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Callable
from typing import Any

import jax

from rdbcl_jax.config import RunConfig
from rdbcl_jax.planning.arithmetic import products_of
from rdbcl_jax.planning.chips import Topology
from rdbcl_jax.planning.plan import Phase, Plan
from rdbcl_jax.planning.traffic import Compiled
from rdbcl_jax.sharding import bytes_per_device, make_mesh, numbers_in
from rdbcl_jax.training.footprint import FISHER, FIXED, LEARN, MOMENTS, PREVIOUS, WRITTEN
from rdbcl_jax.training.programs import Program, Programs

PROCESS = "Python, its libraries and what compiling leaves"
_BUFFERS = 5  # of a program that are shown
# what libtpu says of a program that does not fit: of arguments and all, or of what is temporary
_TOO_MUCH = re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm")
_TOO_MUCH_BESIDE = re.compile(r"HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM")


def compiled_plan(
    config: RunConfig,
    topology: Topology,
    assumed: tuple[str, ...],
    say: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Args:
    config: of one size of batches, with a model directory whose weights are not read.
    say: is told of each program that is compiled.
    """
    assert topology.devices is not None
    mesh = make_mesh(**config.mesh.to_dict(), devices=topology.devices)
    programs = Programs.of(config, mesh)
    held = _held(programs)
    limit = topology.chip.memory if topology.chip else _host_memory() // topology.size
    if topology.chip is None and config.checkpoint.background:
        held[WRITTEN] = _written(programs)  # elsewhere the copy lies in the host's memory
    everything = sum(held.values())
    phases = [Phase("boundary", everything, 0)]  # moments are made where old ones have gone
    products = products_of(config)
    for program in programs.all():
        say(f"compiling {program.name}")
        phase = _phase(program, programs.live(program.name, held), topology.chip is not None)
        phases.append(dataclasses.replace(phase, flops=products[program.name] / topology.size))
    if topology.chip is None:  # no array was made here: all that there is, a run has too
        held[PROCESS] = own = _resident() // topology.size
        phases = [dataclasses.replace(phase, held=phase.held + own) for phase in phases]
    rollout = config.rollout
    return Plan(
        topology=topology.name,
        chips=topology.size,
        mesh=dict(mesh.shape),
        microbatches=programs.learner.microbatches,
        assumed=assumed,
        parameters=numbers_in(programs.policy.whole(programs.trained)),
        trained=numbers_in(programs.trained),
        limit=limit,
        held=held,
        phases=tuple(phases),
        tokens=rollout.prompts * rollout.samples * rollout.max_tokens,
        chip=topology.chip,
    )


def _written(programs: Programs) -> int:
    """The most that is copied at a time to be saved while a run goes on, in bytes per chip."""
    training = programs.config.training
    if programs.method.responses == "none":
        return 0
    if 0 < training.checkpoint_every < training.steps:
        return bytes_per_device(programs.learner.like)
    fisher = programs.fisher if programs.method.consolidation else ()
    return bytes_per_device((programs.trained, fisher))


def _held(programs: Programs) -> dict[str, int]:
    """What stays from step to step, in bytes per chip."""
    state = programs.learner.like
    found = {
        LEARN: bytes_per_device(state.params),
        FIXED: bytes_per_device(programs.policy.frozen),
        MOMENTS: bytes_per_device(state.opt_state),
        PREVIOUS: programs.references * bytes_per_device(programs.frozen_policy),
    }
    if programs.method.consolidation:
        found[FISHER] = bytes_per_device(programs.fisher)
    return found


def _phase(program: Program, live: int, tpu: bool) -> Phase:
    """Args:
    live: bytes of what stays from step to step, as far as it is there.
    """
    start = time.perf_counter()
    lowered = program.lowered()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        asked, arguments = _asked(error)
        beside, seconds = live + program.made, time.perf_counter() - start
        if arguments:
            given = [a for a in jax.tree.leaves(program.args) if hasattr(a, "dtype")]
            beside = max(beside - bytes_per_device(given), 0)
        return Phase(program.name, beside, asked, compile_seconds=seconds)
    seconds, stats = time.perf_counter() - start, compiled.memory_analysis()
    text = Compiled.of(compiled.as_text())
    moved = text.traffic(program.mean)
    return Phase(
        name=program.name,
        held=live + program.made,
        program=needed(stats, tpu) + stats.generated_code_size_in_bytes,
        memory=moved.memory,
        links=moved.links,
        compile_seconds=seconds,
        buffers=tuple(text.buffers(_BUFFERS)),
    )


def needed(stats: Any, tpu: bool) -> int:
    """Bytes of a program's heap beside its arguments, at its fullest.

    XLA says so for TPUs, arguments and all; what it calls temporary there is up to 1.5 times what
    it allocates. On CPU its fullest is of arguments alone, and what is temporary is all it adds.
    """
    peak = getattr(stats, "peak_memory_in_bytes", 0) - stats.argument_size_in_bytes
    if tpu and peak > 0:
        return peak
    return stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes


def _asked(error: Exception) -> tuple[int, bool]:
    """How much memory a program needs that has not been compiled for want of it, and whether its
    arguments are among that.

    Raises the error where it is another.
    """
    for said, arguments in ((_TOO_MUCH, True), (_TOO_MUCH_BESIDE, False)):
        if found := said.search(str(error)):
            return int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " ")), arguments
    raise error


def _host_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
