"""A plan as text, for people: lines of at most 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from rdbcl_jax.planning.chips import GIB
from rdbcl_jax.planning.plan import Plan

PHASES = {
    "boundary": "from one task to the next, when copies of the policy lie side by side",
    "sampling": "responses to a step's prompts",
    "reference": "their log-probs under the policies from before",
    "update": "gradients of a step, and what the optimizer makes of them",
    "evaluation": "responses to evaluation.batch_size prompts",
    "survey": "several responses to each of these, to choose prompts or to collect them",
    "fisher": "what matters to the task just learned",
}
MEMORY = {
    "lies there": "what is held, and what is made for that program alone, such as its batch",
    "runs in": "what the program needs beside that",
    "peak": "the two together",
    "compiled in": "seconds on this machine",
}
TIME = {
    "TFLOP": "matrix products of one chip",
    "GB moved": "through its memory",
    "GB received": "from other chips",
    "seconds": "of the slowest of these three, alone and at the chip's own rates",
    "bound by": "which of them that is",
}


def lines(plan: Plan) -> Iterator[str]:
    mesh = " × ".join(f"{name} {size}" for name, size in plan.mesh.items())
    chip = plan.chip.name if plan.chip else "this machine"
    yield f"{plan.chips} × {chip}, mesh {mesh}, {plan.microbatches} micro-batches"
    learn = f"{plan.trained / 1e6:,.1f} M of them learn"
    yield f"{plan.parameters / 1e6:,.1f} M parameters, {learn}"
    for line in plan.assumed:
        yield from _wrapped(f"assumed: {line}")
    yield ""
    yield f"{'held from step to step':<44}{'GiB a chip':>12}"
    yield from (f"  {name:<42}{_gib(size)}" for name, size in plan.held.items())
    yield ""
    yield from _memory(plan)
    yield ""
    if plan.chip and any(phase.flops for phase in plan.phases):
        yield from _time(plan)
        yield ""
    yield from _legend(plan)
    yield ""
    yield from _verdict(plan)


def _memory(plan: Plan) -> Iterator[str]:
    heads = f"{'lies there':>12}{'runs in':>12}{'peak':>12}{'compiled in':>14}"
    yield f"{'memory, GiB a chip':<22}{heads}"
    for phase in plan.phases:
        seconds = f"{phase.compile_seconds:,.0f} s" if phase.compile_seconds else ""
        over = "  does not fit" if phase.peak > plan.limit else ""
        sizes = f"{_gib(phase.held)}{_gib(phase.program)}{_gib(phase.peak)}"
        yield f"  {phase.name:<20}{sizes}{seconds:>14}{over}"
    largest = max(plan.phases, key=lambda phase: phase.peak)
    if largest.buffers:
        yield f"largest arrays of {largest.name}:"
        for buffer in largest.buffers:
            yield f"  {_gib(buffer.bytes)}  {buffer.shape:<30} {buffer.source}"[:100]


def _time(plan: Plan) -> Iterator[str]:
    assert plan.chip
    head = f"{'a step, at least':<22}{'TFLOP':>10}{'GB moved':>11}{'GB received':>13}"
    yield f"{head}{'seconds':>10}  bound by"
    for phase in plan.step:
        yield (
            f"  {phase.name:<20}{phase.flops / 1e12:>10,.1f}{phase.memory / 1e9:>11,.1f}"
            f"{phase.links / 1e9:>13,.1f}{phase.seconds(plan.chip):>10,.2f}  "
            f"{phase.bound(plan.chip)}"
        )
    total = sum(phase.seconds(plan.chip) for phase in plan.step)
    yield (f"  {'together':<20}{'':>34}{total:>10,.2f}  {plan.tokens / total:,.0f} tokens a second")
    if update := next((p for p in plan.step if p.name == "update" and p.memory), None):
        yield f"  the update computes at {update.share(plan.chip):.0%} of the chips' peak"


def _legend(plan: Plan) -> Iterator[str]:
    yield "what the words mean"
    phases = {phase.name: PHASES[phase.name] for phase in plan.phases}
    words = {"micro-batches": "parts that an update takes a batch in"} | phases | MEMORY
    for word, meaning in (words | TIME if plan.chip else words).items():
        yield f"  {word:<20}{meaning}"


def _verdict(plan: Plan) -> Iterator[str]:
    of = f"{plan.peak / GIB:.1f} of {plan.limit / GIB:.1f} GiB a chip"
    if plan.fits:
        yield f"fits: at most {of}"
        return
    yield f"does not fit: {of}"
    for line in plan.advice():
        yield from _wrapped(line)


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, 100, subsequent_indent="  ")


def _gib(size: int) -> str:
    return f"{size / GIB:>12,.2f}"
