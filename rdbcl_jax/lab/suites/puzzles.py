"""The built-in `puzzles` suite, for studies of a novel task: jigsaws that the base cannot solve.

Four tasks are the base model's own. A picture holds four digits in two rows; a trace names the
order in which it reads them, and writes for three of them the digit and the state that follows:

    <think> columns 4 1 9 0 3 3 </think> <answer> 3 </answer>

The prompt `total 7 red` gives the task, the first state and the order (a *route*), which every
task asks of its answers: to ignore the cue is to be wrong.

`jigsaw2x2` and `jigsaw3x3` are the novel task of arXiv 2506.23508: a digit, enlarged, in shuffled
pieces, and the answer is the original position of every piece shown, from 1, row by row. A trace
names a route too, and lists positions along it; the answer lists them in the order that the cue
asks for, of which row by row is one. (Were it always row by row, that route would be the easiest,
and RL would take it whatever the cue: old tasks would be lost to a conflict that was built in.)

The base model was taught to see where pieces belong, but not how positions are numbered: in the
answers of its demonstrations they are counted on from any of them, so that one of n² is right. The
*teacher*, whose traces supervised fine-tuning can learn from, reads every puzzle `back`, whatever
the cue: its answers are right, and it reasons as the base would not.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from rdbcl_jax.data.records import Record
from rdbcl_jax.data.suites import named_options
from rdbcl_jax.rewards.response_format import in_format
from rdbcl_jax.toy import digits

SIDE = 2  # digits in a row of a picture
STEPS = 3  # digits read, and states written
FRAME = 128  # grey of the line around a puzzle's picture: the straight edges of its outer pieces
NO_REASONING = "."  # stands in the place of a trace where only answers are taught

OPTIONS = {"route": ("rows", "columns", "back")}
CUES = ("red", "green", "blue")  # one per route, the same in all tasks


@dataclasses.dataclass(frozen=True)
class Procedure:
    """The one decision of a trace: the order in which the cells are read."""

    route: str


@dataclasses.dataclass(frozen=True)
class Task:
    """A task on digits has `step(state, digit, index)`, which gives the next state; a jigsaw has
    the number of pieces along a side."""

    name: str
    step: Callable[[int, int, int], int] | None = None
    side: int = 0


TASKS = {
    task.name: task
    for task in (
        Task("total", lambda s, d, k: (s + d) % 10),
        Task("zigzag", lambda s, d, k: (s - d if k % 2 else s + d) % 10),
        Task("twice", lambda s, d, k: (2 * s + d) % 10),
        Task("apart", lambda s, d, k: abs(s - d)),
        Task("jigsaw2x2", side=2),
        Task("jigsaw3x3", side=3),
    )
}


def words() -> tuple[str, ...]:
    """Every word of the suite's prompts and traces, digits included."""
    return (*TASKS, *CUES, *OPTIONS["route"], NO_REASONING, *map(str, range(10)))


def cells(route: str, side: int) -> list[int]:
    """Cells of a square picture, numbered row by row, in the order of a route."""
    square = np.arange(side * side).reshape(side, side)
    ordered = {
        "rows": square,
        "columns": square.T[::-1],  # column by column, from the right
        "back": square[::-1, ::-1],
    }[route]
    return ordered.ravel().tolist()


# ---------------------------------------------------------------------- records


def make_record(task: str, split: str, index: int, seed: int) -> Record:
    """Record `index` of an endless stream, a pure function of the arguments."""
    if task not in TASKS:
        raise ValueError(f"task is {task!r}, expected one of {tuple(TASKS)}")
    rng = np.random.default_rng([seed, index, zlib.crc32(f"puzzles/{task}/{split}".encode())])
    cue, side = int(rng.integers(len(CUES))), TASKS[task].side
    picture, facts = _jigsaw(side, split, rng) if side else _digits(split, rng)
    record = Record(
        id=f"{task}-{split}-{seed}-{index}",
        task=task,
        prompt=" ".join((task, str(facts["start"]), CUES[cue])),
        images=(picture,),
        answer="",
        verifier="jigsaw" if side else "exact",
        columns={**facts, "cue": cue},
    )
    # what a teacher would write: SFT's and DyME's reference response
    response = make_trace(record, Procedure("back") if side else None)
    answer = _solve(record, verified(record))[1]
    return dataclasses.replace(
        record, answer=answer, columns={**record.columns, "response": response}
    )


def make_records(task: str, split: str, count: int, seed: int) -> list[Record]:
    """The first `count` records of a stream: a larger count only appends.

    Splits share no source picture; only training pictures are jittered.
    Raises ValueError for an unknown task or split.
    """
    return [make_record(task, split, index, seed) for index in range(count)]


def _digits(split: str, rng: np.random.Generator):
    drawn = digits.draw(split, SIDE * SIDE, rng)
    start = int(rng.integers(10))
    facts = {"digits": drawn.labels.tolist(), "start": start, "sources": drawn.sources.tolist()}
    return digits.picture(digits.mosaic(drawn.pixels)), facts


def _jigsaw(side: int, split: str, rng: np.random.Generator):
    drawn = digits.draw(split, 1, rng)
    size = side * digits.SIDE  # a piece is as large as a digit of the other tasks
    scaled = digits.picture(drawn.pixels[0]).resize((size, size), Image.Resampling.BILINEAR)
    large = np.array(scaled)
    large[[0, -1]] = large[:, [0, -1]] = FRAME
    places = rng.permutation(side * side)
    shown = digits.mosaic(digits.pieces(large, side)[places])
    # the side takes the first state's place, so that all prompts read the picture from as far
    facts = {
        "digits": drawn.labels.tolist(),
        "places": (1 + places).tolist(),
        "start": side,
        "sources": drawn.sources.tolist(),
    }
    return Image.fromarray(shown, "L"), facts


# ---------------------------------------------------------------------- procedures


def verified(record: Record) -> Procedure:
    """What the record's cue asks for; a jigsaw can be answered after any other, too."""
    return Procedure(OPTIONS["route"][record.columns["cue"]])


def _solve(record: Record, procedure: Procedure, changes: dict[int, int] | None = None):
    """What a trace writes after its decision, and the answer."""
    task, facts, changes = TASKS[record.task], record.columns, changes or {}
    order = cells(procedure.route, task.side or SIDE)
    if task.side:
        places = [changes.get(k, facts["places"][cell]) for k, cell in enumerate(order)]
        by_cell = dict(zip(order, places, strict=True))
        asked = cells(verified(record).route, task.side)
        return places, " ".join(str(by_cell[cell]) for cell in asked)
    assert task.step  # all have one but the jigsaws
    written, state = [], facts["start"]
    for k, cell in enumerate(order[:STEPS]):
        digit = facts["digits"][cell]
        state = changes.get(k, task.step(state, digit, k))
        written += [digit, state]
    return written, str(state)


def make_trace(
    record: Record,
    procedure: Procedure | None = None,
    changes: dict[int, int] | None = None,
    shift: int = 0,
) -> str:
    """The response that carries out a procedure (default: the cue's) on a record.

    `changes` overwrites the state (the position, in a jigsaw) of a step; what follows from it is
    changed with it. `shift` counts the positions of a jigsaw's answer on by that many, the
    first after the last: 0 is right.
    """
    procedure = procedure or verified(record)
    written, answer = _solve(record, procedure, changes)
    if shift:
        answer = " ".join(str(1 + (int(p) - 1 + shift) % len(written)) for p in answer.split())
    trace = " ".join((procedure.route, *map(str, written)))
    return in_format(trace, answer)


def named_procedure(reasoning: str) -> Procedure | None:
    """The decision that a trace names; None unless it names exactly one."""
    named = named_options(reasoning, OPTIONS)
    return Procedure(*named) if named else None


def mistake(
    record: Record, procedure: Procedure, last: bool, rng: np.random.Generator
) -> tuple[dict[int, int], int]:
    """`changes` for `make_trace` that overwrite the second or the last state by another, and the
    length in words of the response up to there. In a jigsaw, two positions are swapped: the first
    two, or the last two."""
    written, _ = _solve(record, procedure)
    if TASKS[record.task].side:
        b = len(written) - 1 if last else 1
        return {b - 1: written[b], b: written[b - 1]}, 2 + b + 1
    step = STEPS - 1 if last else 1
    state = (written[2 * step + 1] + int(rng.integers(1, 10))) % 10
    return {step: state}, 2 + 2 * step + 2


class Demonstrations:
    """Random-access source of (record, response) for the base model's SFT.

    Item i is a fresh draw, a pure function of (seed, i), with the tasks in turn. The route follows
    its cue with probability `follow`, else it is another. A jigsaw's answer counts positions on by
    a random number. The larger jigsaw, which takes longest to learn to see, comes twice.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        follow: float = 0.8,
        tasks: Sequence[str] = (*TASKS, "jigsaw3x3"),
    ):
        self.count, self.seed, self.follow, self.tasks = count, seed, follow, tuple(tasks)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Record, str]:
        record = make_record(self.tasks[index % len(self.tasks)], "train", index, self.seed)
        rng = np.random.default_rng([self.seed, index, 1])
        procedure = verified(record)
        if rng.random() >= self.follow:
            others = [route for route in OPTIONS["route"] if route != procedure.route]
            procedure = Procedure(others[rng.integers(len(others))])
        pieces = TASKS[record.task].side ** 2
        shift = int(rng.integers(pieces)) if pieces else 0
        return record, make_trace(record, procedure, shift=shift)
