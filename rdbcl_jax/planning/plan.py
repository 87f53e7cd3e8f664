"""The plan of a run: what its phases hold on a chip, and how long a step takes at least."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from rdbcl_jax.planning.chips import Chip
from rdbcl_jax.planning.traffic import Buffer
from rdbcl_jax.training.memory import PHASES

_OF = {"survey": "evaluation", "fisher": "boundary"}  # phases that a run has no name of its own for


@dataclasses.dataclass(frozen=True)
class Phase:
    """What a run does, on one chip.

    Attributes:
      name: as in `training.memory.PHASES`, "survey" or "fisher".
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

    def share(self, chip: Chip) -> float:
        """Of the chip's peak of products, at most: 1 where nothing else takes longer."""
        return self.flops / chip.flops / self.seconds(chip)

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
        """What to change, of each phase that does not fit; of the boundary alone where that is one:
        what lies there then lies there in all others."""
        over = [phase.name for phase in self.phases if phase.peak > self.limit]
        for name in ["boundary"] if "boundary" in over else over:
            yield f"{name}: {PHASES[_OF.get(name, name)].help}"

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
