"""Suite `easy_vqa_traced`, for studies: the pictures, questions and answers of easy-VQA, which
nobody here designed, as six tasks by what is asked, with traces.

A picture shows one shape. A trace says what it looks at and what it sees there, how the answer is
to be made, what the question names, and whether that is what was seen:

    is there not a triangle?    <think> shape circle negated triangle differ </think>
                                        look  seen   turn    named    verdict
    what color is the shape?    <think> color teal name any same </think>

Two decisions stand in a trace. The *look* is at the shape or at its color. The *turn* makes the
answer: `name` says what was seen; `plain` says yes where both are the same, `negated` where they
differ. The question asks for one of each: there are six kinds of questions, and each has four forms
("is there a red shape?", "is a red shape present?", …).

A task has two kinds, one about shapes and one about colors, of different turns, each in two of its
forms. A base model is taught to carry out all decisions, and to take those that a form stands for
mostly: for one form of a task the right ones, for the others another turn, another look, or both.
So RL asks nothing new of some questions, and of others one changed decision or two. (Where a task
was one kind, the decisions that it did not want died out within two tasks, whatever the anchor: as
in `forks`, no rollout held them any more, and later tasks were not learned.)
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from rdbcl_jax.data import easy_vqa
from rdbcl_jax.data.records import Record
from rdbcl_jax.data.suites import named_options
from rdbcl_jax.rewards.response_format import in_format

SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "gray", "red", "green", "blue", "yellow", "teal", "brown")
SEEN = (*SHAPES, *COLORS)
VALUES = {"shape": SHAPES, "color": COLORS}
VERDICTS = ("differ", "same")
YES_NO = ("no", "yes")
ANY = "any"  # where a question names nothing that could be compared
OPTIONS = {"look": ("shape", "color"), "turn": ("name", "plain", "negated")}
_ALL = 10**9  # records
_SLIPS = 1 / 12  # of a base's demonstrations


@dataclasses.dataclass(frozen=True)
class Procedure:
    """The two decisions of a trace."""

    look: str
    turn: str


KINDS = {
    "what_shape": Procedure("shape", "name"),
    "what_color": Procedure("color", "name"),
    "has_shape": Procedure("shape", "plain"),
    "has_color": Procedure("color", "plain"),
    "lacks_shape": Procedure("shape", "negated"),
    "lacks_color": Procedure("color", "negated"),
}
TASKS = {  # kinds of questions, and which two of their forms
    "what_has": (("what_shape", "has_color"), (0, 1)),
    "lacks_what": (("lacks_shape", "what_color"), (0, 1)),
    "has_lacks": (("has_shape", "lacks_color"), (0, 1)),
    "what_lacks": (("what_shape", "lacks_color"), (2, 3)),
    "has_what": (("has_shape", "what_color"), (2, 3)),
    "lacks_has": (("lacks_shape", "has_color"), (2, 3)),
}


@functools.cache
def words() -> tuple[str, ...]:
    """Every word of questions and traces; a question's last one with its question mark."""
    asked = {word for record in _published("train") for word in record.prompt.split()}
    options = [option for row in OPTIONS.values() for option in row]
    return (*sorted(asked), *SEEN, *VERDICTS, ANY, *options, *YES_NO)


# ---------------------------------------------------------------------- records


def kind_of(question: str) -> tuple[str, str]:
    """The kind of a question, and the shape or color that is compared, or `any`."""
    said = question.rstrip("?").split()
    if said[0] == "what":
        return ("what_color" if "color" in said else "what_shape"), ANY
    (named,) = (word for word in said if word in SEEN)
    kind = "shape" if named in SHAPES else "color"
    return f"{'has' if {'no', 'not'}.isdisjoint(said) else 'lacks'}_{kind}", named


def form_of(question: str) -> str:
    """The question without what it names."""
    return " ".join("…" if word.rstrip("?") in SEEN else word for word in question.split())


@functools.cache
def forms() -> Mapping[str, tuple[str, ...]]:
    """The forms of each kind."""
    asked = {record.prompt for record in _published("train")}
    found: dict[str, set[str]] = collections.defaultdict(set)
    for question in asked:
        found[kind_of(question)[0]].add(form_of(question))
    return {kind: tuple(sorted(found[kind])) for kind in KINDS}


def make_record(task: str, split: str, index: int, seed: int) -> Record:
    """Record `index` of the published ones, which come again from the first on after the last, in
    an order that the seed decides."""
    records = make_records(task, split, _ALL, seed)
    return records[index % len(records)]


def make_records(task: str, split: str, count: int, seed: int) -> list[Record]:
    """The first `count` records, or all that there are.

    Splits share no picture. Raises ValueError for an unknown task.
    """
    if task not in TASKS:
        raise ValueError(f"task is {task!r}, expected one of {tuple(TASKS)}")
    return _by_task(split, seed)[task][:count]


@functools.lru_cache(maxsize=4)
def _published(split: str, seed: int = 0) -> list[Record]:
    return easy_vqa.make_records("all", split, _ALL, seed)


@functools.lru_cache(maxsize=4)
def _by_task(split: str, seed: int) -> Mapping[str, list[Record]]:
    """Records of a split, with what their traces are made from in the columns: those of pictures
    whose shape and color both follow from the published answers."""
    records, found = _published(split, seed), collections.defaultdict(list)
    seen = _seen(records)
    tasks = {
        (kind, n): task for task, (kinds, some) in TASKS.items() for kind in kinds for n in some
    }
    for record in records:
        kind, named = kind_of(record.prompt)
        form = forms()[kind].index(form_of(record.prompt))
        columns = {**seen[str(record.images[0])], "named": named, "kind": kind, "form": form}
        if not VALUES.keys() <= columns.keys():
            continue
        task = tasks[kind, form]
        made = dataclasses.replace(record, id=f"{task}-{record.id}", task=task, columns=columns)
        # what a teacher would write: SFT's and DyME's reference response
        columns = {**columns, "response": make_trace(made)}
        found[task].append(dataclasses.replace(made, columns=columns))
    return {task: _balanced(found[task]) for task in TASKS}


def _balanced(records: list[Record]) -> list[Record]:
    """As many of both kinds, and of each answer to a kind: the first ones. (No is right of seven in
    eight that ask whether a color is there.)"""
    counts = collections.Counter((record.columns["kind"], record.answer) for record in records)
    each = {kind: [n for (k, _), n in counts.items() if k == kind] for kind, _ in counts}
    size = min(len(answers) * min(answers) for answers in each.values())
    so_far: collections.Counter[tuple[str, str]] = collections.Counter()
    kept = []
    for record in records:
        so_far[what := (record.columns["kind"], record.answer)] += 1
        if so_far[what] <= size // len(each[what[0]]):
            kept.append(record)
    return kept


def _seen(records: list[Record]) -> dict[str, dict[str, str]]:
    """Shape and color of each picture, as the published answers tell them."""
    found: dict[str, dict[str, str]] = collections.defaultdict(dict)
    for record in records:
        kind, named = kind_of(record.prompt)
        is_so = record.answer == ("no" if kind.startswith("lacks") else "yes")
        value = record.answer if named == ANY else named
        if named == ANY or is_so:
            found[str(record.images[0])]["shape" if value in SHAPES else "color"] = value
    return found


# ---------------------------------------------------------------------- procedures


def verified(record: Record) -> Procedure:
    """The decisions that the question asks for."""
    return KINDS[record.columns["kind"]]


def taught(record: Record) -> Procedure:
    """The decisions that a base model was taught to take mostly. Of the four forms of a task, those
    about shapes first: the right ones; another turn; another look; both. In every second task the
    other way round."""
    kinds, some = TASKS[record.task]
    kind, form = record.columns["kind"], record.columns["form"]
    number = 2 * kinds.index(kind) + some.index(form)
    if tuple(TASKS).index(record.task) % 2:
        number = 3 - number
    return _off(verified(record), look=number // 2, turn=number % 2)


def _off(procedure: Procedure, look: int, turn: int) -> Procedure:
    """The procedure with each decision so many options further."""
    moved = {
        name: options[(options.index(getattr(procedure, name)) + by) % len(options)]
        for (name, options), by in zip(OPTIONS.items(), (look, turn), strict=True)
    }
    return Procedure(**moved)


def make_trace(
    record: Record, procedure: Procedure | None = None, changes: Mapping[int, int] | None = None
) -> str:
    """The response that carries out a procedure (default: the question's) on a record.

    `changes` overwrites what is seen (0: a number of `SEEN`) or the verdict (1: of `VERDICTS`);
    what comes later follows from it.
    """
    procedure, changes = procedure or verified(record), changes or {}
    seen, same = _states(record, procedure, changes)
    affirmed = same == (procedure.turn == "plain")
    answer = seen if procedure.turn == "name" else YES_NO[affirmed]
    named, verdict = record.columns["named"], VERDICTS[same]
    return in_format(" ".join((procedure.look, seen, procedure.turn, named, verdict)), answer)


def _states(record: Record, procedure: Procedure, changes: Mapping[int, int]) -> tuple[str, int]:
    """What is seen, and the verdict."""
    seen = SEEN[changes[0]] if 0 in changes else record.columns[procedure.look]
    return seen, changes.get(1, int(record.columns["named"] in (ANY, seen)))


def named_procedure(reasoning: str) -> Procedure | None:
    """The decisions that a trace names; None unless it names each exactly once."""
    named = named_options(reasoning, OPTIONS)
    return Procedure(*named) if named else None


def mistake(
    record: Record, procedure: Procedure, last: bool, rng: np.random.Generator
) -> tuple[dict[int, int], int]:
    """`changes` for `make_trace` that overwrite what is seen, such that the verdict changes where
    one counts, or the verdict itself; and the length in words of the response up to there."""
    seen, same = _states(record, procedure, {})
    if last and procedure.turn != "name":  # which does not read the verdict
        return {1: 1 - same}, 6
    named = record.columns["named"]
    if named in VALUES[procedure.look] and named != seen:
        return {0: SEEN.index(named)}, 3
    return _overlook(record, procedure, rng), 3


def _overlook(record: Record, procedure: Procedure, rng: np.random.Generator) -> dict[int, int]:
    """`changes` that see another shape or color than there is."""
    values, right = VALUES[procedure.look], record.columns[procedure.look]
    others = [value for value in values if value != right]
    return {0: SEEN.index(others[rng.integers(len(others))])}


class Demonstrations:
    """Random-access source of (record, response) for the base model's SFT.

    Item i is a record of the tasks in turn, in an order that the seed decides. Each decision is the
    one that was taught with probability `follow`, else another. One in twelve sees something else
    than there is, and what comes later follows from that: else an answer could as well be read off
    the picture again, whatever the trace says.
    """

    def __init__(self, count: int, seed: int, follow: float = 0.7):
        self.count, self.seed, self.follow = count, seed, follow

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Record, str]:
        task = tuple(TASKS)[index % len(TASKS)]
        record = make_record(task, "train", index // len(TASKS), self.seed)
        rng = np.random.default_rng([self.seed, index, 1])
        off = {
            name: int(rng.integers(1, len(options))) if rng.random() >= self.follow else 0
            for name, options in OPTIONS.items()
        }
        procedure = _off(taught(record), **off)
        changes = _overlook(record, procedure, rng) if rng.random() < _SLIPS else {}
        return record, make_trace(record, procedure, changes)
