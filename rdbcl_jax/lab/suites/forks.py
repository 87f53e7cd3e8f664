"""The built-in `forks` suite, for studies: traces of three decisions, answers made from states.

A picture holds four digits in two rows. A trace reads three of them and writes a state after each;
then the answer is computed from all three states:

    <think> columns 4 1 9 0 skip 3 3 top </think> <answer> 3 </answer>
            route   digit, state …      finish   value

Three decisions stand in a trace. The *route* says in which order the cells are read. At the *fork*
before the last cell, `skip` leaves out one cell and `on` does not; which of them is right depends
on what was read so far, by one of three tests. The *finish* makes the answer of the states s, t, u:
`top` is the largest, `low` the smallest, `ends` is (s + u) mod 10.

The prompt `add 7 red day north` gives the task, the first state and a cue for each decision. A base
model is taught, for every task, which option each cue stands for, and to take it mostly. RL wants
the cues of a task to mean something else, but for some of them: at the fork one test whatever the
cue, elsewhere another option under one cue of three. So a new task asks nothing new of some
prompts, and of others one changed decision, two or three; two tasks agree under some cues and
conflict under others; and no change is one token, since under other cues that token stays wrong.
(Where RL wanted one route, or all tasks' cues meant the same at first, the options not wanted died
out within two tasks: no group of rollouts held them any more, and later tasks were not learned.)
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from rdbcl_jax.data.records import Record
from rdbcl_jax.data.suites import named_options
from rdbcl_jax.rewards.response_format import in_format
from rdbcl_jax.toy import digits

CELLS = 4  # of a picture, two by two
STEPS = 3  # digits read, and states written

ROUTES = {  # the cell read first, second, …
    "rows": (0, 1, 2, 3),
    "columns": (1, 3, 0, 2),  # column by column, from the right
    "back": (3, 2, 1, 0),
}
TURNS = ("on", "skip")
TESTS: dict[str, Callable[[int, int, int], bool]] = {  # skip? from state, digit, state before
    "odd": lambda state, digit, before: digit % 2 == 1,
    "big": lambda state, digit, before: state >= 5,
    "rise": lambda state, digit, before: state > before,
}
FINISHES: dict[str, Callable[[Sequence[int]], int]] = {
    "top": max,
    "low": min,
    "ends": lambda states: (states[0] + states[-1]) % 10,
}
OPTIONS = {"route": tuple(ROUTES), "turn": TURNS, "finish": tuple(FINISHES)}
CUES = (("red", "green", "blue"), ("day", "night", "dawn"), ("north", "east", "west"))


@dataclasses.dataclass(frozen=True)
class Procedure:
    """The three decisions of a trace, as it names them."""

    route: str
    turn: str
    finish: str


@dataclasses.dataclass(frozen=True)
class Rules:
    """What decides: a route, a test at the fork, a finish."""

    route: str
    test: str
    finish: str


@dataclasses.dataclass(frozen=True)
class Task:
    """One task: how a state follows, and what RL wants the cues to mean.

    `step(state, digit, index)` gives the next state. The base model was taught that cue i stands
    for option (i + shift) mod 3. `wants[decision][i]` is the option that RL rewards under cue i.
    """

    name: str
    step: Callable[[int, int, int], int]
    shift: int
    wants: tuple[tuple[int, int, int], ...]


# a changed meaning is one that rollouts of the base model and of the tasks before still hold
_ODD, _BIG, _RISE = (0, 0, 0), (1, 1, 1), (2, 2, 2)  # one test, whatever the cue

TASKS = {
    task.name: task
    for task in (
        Task("add", lambda s, d, k: (s + d) % 10, 0, ((0, 0, 2), _ODD, (0, 0, 2))),
        Task("double", lambda s, d, k: (2 * s + d) % 10, 1, ((1, 0, 0), _ODD, (1, 0, 0))),
        Task("gap", lambda s, d, k: abs(s - d), 2, ((2, 0, 0), _BIG, (2, 0, 0))),
        Task("sub", lambda s, d, k: (s - d) % 10, 0, ((0, 0, 2), _RISE, (0, 2, 2))),
        Task("swing", lambda s, d, k: (s + (d, -d)[k % 2]) % 10, 1, ((1, 0, 0), _BIG, (0, 2, 0))),
    )
}


def words() -> tuple[str, ...]:
    """Every word of the suite's prompts and traces, digits included."""
    cues = [cue for row in CUES for cue in row]
    return (*TASKS, *cues, *ROUTES, *TURNS, *FINISHES, *map(str, range(10)))


# ---------------------------------------------------------------------- records


def make_record(task: str, split: str, index: int, seed: int) -> Record:
    """Record `index` of an endless stream, a pure function of the arguments."""
    if task not in TASKS:
        raise ValueError(f"task is {task!r}, expected one of {tuple(TASKS)}")
    rng = np.random.default_rng([seed, index, zlib.crc32(f"forks/{task}/{split}".encode())])
    cues = rng.integers(3, size=len(CUES)).tolist()
    drawn = digits.draw(split, CELLS, rng)
    start = int(rng.integers(10))
    columns = {
        "digits": drawn.labels.tolist(),
        "start": start,
        "cues": cues,
        "sources": drawn.sources.tolist(),
    }
    cue_words = [row[cue] for row, cue in zip(CUES, cues, strict=True)]
    record = Record(
        id=f"{task}-{split}-{seed}-{index}",
        task=task,
        prompt=" ".join((task, str(start), *cue_words)),
        images=(digits.picture(digits.mosaic(drawn.pixels)),),
        answer="",
        verifier="exact",
        columns=columns,
    )
    # what a teacher would write: SFT's and DyME's reference response
    columns = {**columns, "response": make_trace(record)}
    return dataclasses.replace(record, answer=_solve(record, verified(record))[1], columns=columns)


def make_records(task: str, split: str, count: int, seed: int) -> list[Record]:
    """The first `count` records of a stream: a larger count only appends.

    Splits share no source picture; only training pictures are jittered.
    Raises ValueError for an unknown task or split.
    """
    return [make_record(task, split, index, seed) for index in range(count)]


# ---------------------------------------------------------------------- procedures


def _options(record: Record, wants: Sequence[Sequence[int]]) -> Rules:
    chosen = [row[cue] for row, cue in zip(wants, record.columns["cues"], strict=True)]
    route, test, finish = chosen
    return Rules(tuple(ROUTES)[route], tuple(TESTS)[test], tuple(FINISHES)[finish])


def _taught(task: Task) -> tuple[int, int, int]:
    first, second, third = ((cue + task.shift) % 3 for cue in range(3))
    return first, second, third


def taught(record: Record) -> Rules:
    """What the base model was taught that the record's cues mean."""
    return _options(record, [_taught(TASKS[record.task])] * len(CUES))


def wanted(record: Record) -> Rules:
    """What the record's task wants its cues to mean."""
    return _options(record, TASKS[record.task].wants)


def apply(record: Record, rules: Rules) -> Procedure:
    """The trace's decisions under the rules: the test is done on what the trace has read."""
    (_, before, digit, state, *_), _ = _solve(record, Procedure(rules.route, "on", rules.finish))
    skip = TESTS[rules.test](state, digit, before)
    return Procedure(rules.route, TURNS[skip], rules.finish)


def verified(record: Record) -> Procedure:
    """The decisions that RL rewards on this record."""
    return apply(record, wanted(record))


def _solve(record: Record, procedure: Procedure, changes: dict[int, int] | None = None):
    """What a trace writes (digit, state, …) and the answer."""
    step, shown = TASKS[record.task].step, record.columns["digits"]
    first, second, third, fourth = ROUTES[procedure.route]
    cells = (first, second, fourth if procedure.turn == "skip" else third)
    written, state = [], record.columns["start"]
    for k, cell in enumerate(cells):
        state = (changes or {}).get(k, step(state, shown[cell], k))
        written += [shown[cell], state]
    return written, str(FINISHES[procedure.finish](written[1::2]))


def make_trace(
    record: Record, procedure: Procedure | None = None, changes: dict[int, int] | None = None
) -> str:
    """The response that carries out a procedure (default: the rewarded one) on a record.

    `changes` overwrites the state of a step; later steps and the answer follow from it.
    """
    return in_format(*_carry_out(record, procedure or verified(record), changes))


def _carry_out(
    record: Record, procedure: Procedure, changes: dict[int, int] | None = None
) -> tuple[str, str]:
    """Reasoning and answer."""
    written, answer = _solve(record, procedure, changes)
    read = [str(word) for word in written]
    trace = " ".join((procedure.route, *read[:4], procedure.turn, *read[4:], procedure.finish))
    return trace, answer


def pseudo_reasoning(task: str, **columns) -> str:
    """A refiner (`demonstrations.refiner`): a trace in the right form that is not the answer's.

    It reads every picture in rows, leaves nothing out and takes the largest state, whatever the
    cues. Followed by the gold answer, it is what 2506.23061 finds small models learn from large
    ones' responses: the look of reasoning from which the answer does not follow.
    """
    record = Record("", task, "", (), "", "exact", columns)
    reasoning, _ = _carry_out(record, Procedure("rows", "on", "top"))
    return reasoning


def named_procedure(reasoning: str) -> Procedure | None:
    """The decisions that a trace names; None unless it names each exactly once."""
    named = named_options(reasoning, OPTIONS)
    return Procedure(*named) if named else None


def mistake(
    record: Record, procedure: Procedure, last: bool, rng: np.random.Generator
) -> tuple[dict[int, int], int]:
    """`changes` for `make_trace` that overwrite the second or the last state by another, and the
    length in words of the response up to there."""
    step, length = (2, 9) if last else (1, 6)
    state = _solve(record, procedure)[0][2 * step + 1]
    return {step: (state + int(rng.integers(1, 10))) % 10}, length


class Demonstrations:
    """Random-access source of (record, response) for the base model's SFT.

    Item i is a fresh draw, a pure function of (seed, i), with the tasks in turn. Each decision
    follows what its cue was taught to mean with probability `follow`, else another option.
    """

    def __init__(self, count: int, seed: int, follow: float = 0.7):
        self.count, self.seed, self.follow = count, seed, follow

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Record, str]:
        names = tuple(TASKS)
        record = make_record(names[index % len(names)], "train", index, self.seed)
        rng = np.random.default_rng([self.seed, index, 1])
        # a decision that strays is off by the same number of options under every cue
        off = [int(rng.integers(1, 3)) if rng.random() >= self.follow else 0 for _ in CUES]
        options = _taught(TASKS[record.task])
        means = [[(option + o) % 3 for option in options] for o in off]
        return record, make_trace(record, apply(record, _options(record, means)))
