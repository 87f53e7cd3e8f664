"""The built-in `digits` suite: verifiable tasks on real pictures, solved by a written procedure.

A picture holds four digits in two rows. A task reads three of them one after the other and updates
a state; the trace writes down each digit and the state that follows, so the answer can only be had
by doing the procedure. How to do it takes two decisions, which the trace names:

    <think> columns 4 1 9 0 3 3 flip </think> <answer> 6 </answer>
            route   digit, state, … finish             value

The *route* says in which order the cells are read, the *finish* how the last state s becomes the
answer: `next` is s + 1, `flip` is 9 − s. The prompt `sum 7 red day` gives the task, the first
state and two cues. A base model is taught to follow the cues (mostly); the verifier of each task
wants one procedure, whatever the cues say. So some prompts are solved by what the model did
before, some need one other decision, some two. All tasks want the same finish; their routes agree
for some pairs of tasks and conflict for others. (Where finishes conflicted too, the choice of the
first task had no entropy left to be unlearned by the next ones.)

`walk` numbers the cells along the route; its state is a cell, and the digit d there says to go on
by 1 + d mod 3 cells. The trace ends with the digit at the last cell, which becomes the answer.

`jigsaw` is the puzzle of arXiv 2506.23508 in 2 × 2 tiles of one digit: answer[new position] =
original position, 1–4, row by row. Its trace lists the place (0–3) of each shown tile along the
route; `next` counts the places from 1, `flip` from the opposite corner.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from rdbcl_jax.data.records import Record
from rdbcl_jax.data.suites import named_options
from rdbcl_jax.rewards.response_format import in_format, parse
from rdbcl_jax.toy import digits

CELLS = 4  # of a picture, two by two
STEPS = 3  # digits read, and states written
FRAME = 128  # grey of the line around a jigsaw's picture: the straight edges of its outer pieces

ROUTES = {  # the cell read first, second, …; no two routes end in the same cell
    "rows": (0, 1, 2, 3),
    "columns": (1, 3, 0, 2),  # column by column, from the right
    "back": (3, 2, 1, 0),
}
FINISHES = ("next", "flip")
OPTIONS = {"route": tuple(ROUTES), "finish": FINISHES}
ROUTE_CUES = ("red", "green", "blue")
FINISH_CUES = ("day", "night")


@dataclasses.dataclass(frozen=True)
class Procedure:
    """The two decisions of a trace."""

    route: str
    finish: str


@dataclasses.dataclass(frozen=True)
class Task:
    """One task: what RL rewards, what the cues mean, and how a state follows from the one before.

    `step(state, digit, index)` gives the next state; None for the tasks with their own machine.
    """

    name: str
    verified: Procedure
    cue_shift: int  # cue i stands for route i + cue_shift, so that a cue means no fixed route
    step: Callable[[int, int, int], int] | None = None


def _task(name: str, route: str, finish: str, cue_shift: int, step=None) -> Task:
    return Task(name, Procedure(route, finish), cue_shift, step)


TASKS = {
    task.name: task
    for task in (
        _task("sum", "rows", "next", 0, lambda s, d, k: (s + d) % 10),
        _task("walk", "columns", "next", 1),
        _task("alt", "rows", "next", 2, lambda s, d, k: (s - d if k % 2 else s + d) % 10),
        _task("horner", "columns", "next", 0, lambda s, d, k: (2 * s + d) % 10),
        _task("absd", "back", "next", 1, lambda s, d, k: abs(s - d)),
        _task("jigsaw", "rows", "next", 2),
    )
}


def words() -> tuple[str, ...]:
    """Every word of the suite's prompts and traces, digits included."""
    return (*TASKS, *ROUTE_CUES, *FINISH_CUES, *ROUTES, *FINISHES, *map(str, range(10)))


# ---------------------------------------------------------------------- records


def make_record(task: str, split: str, index: int, seed: int) -> Record:
    """Record `index` of an endless stream, a pure function of the arguments."""
    if task not in TASKS:
        raise ValueError(f"task is {task!r}, expected one of {tuple(TASKS)}")
    rng = np.random.default_rng([seed, index, zlib.crc32(f"{task}/{split}".encode())])
    cues = {"route_cue": int(rng.integers(3)), "finish_cue": int(rng.integers(2))}
    make = _jigsaw_picture if task == "jigsaw" else _four_digits
    picture, facts = make(task, split, rng)
    columns = {**facts, **cues}
    cue_words = (ROUTE_CUES[cues["route_cue"]], FINISH_CUES[cues["finish_cue"]])
    record = Record(
        id=f"{task}-{split}-{seed}-{index}",
        task=task,
        prompt=" ".join((task, str(facts["start"]), *cue_words)),
        images=(picture,),
        answer=_solve(task, columns, TASKS[task].verified)[1],
        verifier="jigsaw" if task == "jigsaw" else "exact",
        columns=columns,
    )
    # what a teacher would write: SFT's and DyME's reference response, and the hint in it
    response = make_trace(record)
    taught = {"response": response, "hint": parse(response).reasoning}
    return dataclasses.replace(record, columns={**columns, **taught})


def make_records(task: str, split: str, count: int, seed: int) -> list[Record]:
    """The first `count` records of a stream: a larger count only appends.

    Splits share no source picture; only training pictures are jittered.
    Raises ValueError for an unknown task or split.
    """
    return [make_record(task, split, index, seed) for index in range(count)]


def _four_digits(task: str, split: str, rng: np.random.Generator):
    drawn = digits.draw(split, CELLS, rng)
    start = int(rng.integers(CELLS if task == "walk" else 10))
    facts = {"digits": drawn.labels.tolist(), "start": start, "sources": drawn.sources.tolist()}
    return digits.picture(digits.mosaic(drawn.pixels)), facts


def _jigsaw_picture(task: str, split: str, rng: np.random.Generator):
    drawn = digits.draw(split, 1, rng)
    half = digits.SIDE  # the digit is enlarged twice, so that a tile is as large as a digit cell
    large = np.array(
        digits.picture(drawn.pixels[0]).resize((2 * half, 2 * half), Image.Resampling.BILINEAR)
    )
    large[[0, -1]] = large[:, [0, -1]] = FRAME
    tiles = large.reshape(2, half, 2, half).swapaxes(1, 2).reshape(4, half, half)
    places = rng.permutation(4)
    # the side takes the first state's place, so that all prompts read the picture from as far
    facts = {
        "digits": drawn.labels.tolist(),
        "places": places.tolist(),
        "start": 2,
        "sources": drawn.sources.tolist(),
    }
    return Image.fromarray(digits.mosaic(tiles[places]), "L"), facts


# ---------------------------------------------------------------------- procedures


def verified(record: Record) -> Procedure:
    """The decisions that RL rewards on this record."""
    return TASKS[record.task].verified


def cued_procedure(record: Record) -> Procedure:
    """What the record's cues stand for in its task."""
    shift = TASKS[record.task].cue_shift
    route = tuple(ROUTES)[(record.columns["route_cue"] + shift) % len(ROUTES)]
    return Procedure(route, FINISHES[(record.columns["finish_cue"] + shift) % len(FINISHES)])


def sample_procedure(record: Record, rng: np.random.Generator, follow: float = 0.8) -> Procedure:
    """The cued procedure, each decision kept with probability `follow`, else another at random."""
    cued = cued_procedure(record)

    def decide(options, cued_option):
        others = [option for option in options if option != cued_option]
        return cued_option if rng.random() < follow else others[rng.integers(len(others))]

    return Procedure(decide(tuple(ROUTES), cued.route), decide(FINISHES, cued.finish))


def _solve_digits(task: Task, facts: dict, procedure: Procedure, changes: dict[int, int]):
    assert task.step  # tasks without one have their own machine
    written, state = [], facts["start"]
    for k, cell in enumerate(ROUTES[procedure.route][:STEPS]):
        digit = facts["digits"][cell]
        state = changes.get(k, task.step(state, digit, k))
        written += [digit, state]
    return written, _finish(procedure, [state], 10)


def _solve_walk(task: Task, facts: dict, procedure: Procedure, changes: dict[int, int]):
    along = [facts["digits"][cell] for cell in ROUTES[procedure.route]]
    written, state = [], facts["start"]
    for k in range(STEPS):
        digit = along[state]
        state = changes.get(k, (state + 1 + digit % 3) % CELLS)
        written += [digit, state]
    return [*written, along[state]], _finish(procedure, [along[state]], 10)


def _solve_jigsaw(task: Task, facts: dict, procedure: Procedure, changes: dict[int, int]):
    places = [facts["places"][tile] for tile in ROUTES[procedure.route]]
    places = [changes.get(k, place) for k, place in enumerate(places)]
    return places, _finish(procedure, places, 5)


def _finish(procedure: Procedure, values: Sequence[int], base: int) -> str:
    if procedure.finish == "next":
        return " ".join(str((value + 1) % base) for value in values)
    return " ".join(str(base - 1 - value) for value in values)


def _solve(task: str, facts: dict, procedure: Procedure, changes: dict[int, int] | None = None):
    """What a trace writes between its two decisions, and the answer."""
    solve = {"jigsaw": _solve_jigsaw, "walk": _solve_walk}.get(task, _solve_digits)
    return solve(TASKS[task], facts, procedure, changes or {})


def make_trace(
    record: Record, procedure: Procedure | None = None, changes: dict[int, int] | None = None
) -> str:
    """The response that carries out a procedure (default: the rewarded one) on a record.

    `changes` overwrites the state (the place, in a jigsaw) of a step; later steps and the answer
    follow from the overwritten one, as they do for a model whose answer depends on its trace.
    """
    procedure = procedure or TASKS[record.task].verified
    written, answer = _solve(record.task, record.columns, procedure, changes)
    trace = " ".join((procedure.route, *map(str, written), procedure.finish))
    return in_format(trace, answer)


def named_procedure(reasoning: str) -> Procedure | None:
    """The decisions that a trace names; None unless it names each exactly once."""
    named = named_options(reasoning, OPTIONS)
    return Procedure(*named) if named else None


def mistake(
    record: Record, procedure: Procedure, last: bool, rng: np.random.Generator
) -> tuple[dict[int, int], int]:
    """`changes` for `make_trace` that overwrite the second or the last state by another, and the
    length in words of the response up to there. In a jigsaw, two places are swapped: the first
    two, or the last two."""
    written, _ = _solve(record.task, record.columns, procedure)
    if record.task == "jigsaw":
        a, b = (2, 3) if last else (0, 1)
        return {a: written[b], b: written[a]}, 2 + b + 1
    step = STEPS - 1 if last else STEPS // 2
    states = CELLS if record.task == "walk" else 10
    state = (written[2 * step + 1] + int(rng.integers(1, states))) % states
    return {step: state}, 2 + 2 * step + 2


class Demonstrations:
    """Random-access source of (record, response) for the base model's SFT.

    Item i is a fresh draw, a pure function of (seed, i), with the tasks in turn; walk and jigsaw,
    which read the picture in ways of their own, come twice. Each decision follows its cue with
    probability `follow`.

    A share `slips` of the jigsaws mistakes two places for each other and answers accordingly. A
    picture shows all places at once, so only where trace and picture disagree can a model learn
    that the answer depends on the trace.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        tasks: Sequence[str] = (*TASKS, "walk", "jigsaw"),
        follow: float = 0.8,
        slips: float = 0.3,
    ):
        self.count, self.seed, self.tasks = count, seed, tuple(tasks)
        self.follow, self.slips = follow, slips

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Record, str]:
        record = make_record(self.tasks[index % len(self.tasks)], "train", index, self.seed)
        rng = np.random.default_rng([self.seed, index, 1])
        procedure = sample_procedure(record, rng, self.follow)
        slips = record.task == "jigsaw" and rng.random() < self.slips
        return record, make_trace(record, procedure, swap(record, procedure, rng) if slips else {})


def swap(record: Record, procedure: Procedure, rng: np.random.Generator) -> dict[int, int]:
    """`changes` for `make_trace` that mistake two places of a jigsaw for each other."""
    places, _ = _solve(record.task, record.columns, procedure)
    a, b = rng.choice(len(places), size=2, replace=False).tolist()
    return {a: places[b], b: places[a]}
