"""The composite reward: weighted components, built in or the user's, each for its own tasks.

A configuration is a table of weights. Three components are built in: `format` (1 if the response
parses), `accuracy` (the verifier's score in [0, 1]) and `correct` (1 if that score is 1). The
jigsaw reward of arXiv:2506.23508, hit fraction + all right + format, is then
`{"accuracy": 1, "correct": 1, "format": 1}`. Evaluation calls the same function and reads
`Scores.accuracy`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float

from rdbcl_jax.rewards.functions import load_function
from rdbcl_jax.rewards.response_format import Parsed, parse
from rdbcl_jax.rewards.verifiers import get_verifier

BUILT_IN = ("format", "accuracy", "correct")
LIMIT = 1e15  # of a reward: float32, in which groups are normalised, holds its square

# f(prompts, completions, **columns) -> one number per completion, None where it does not apply
RewardFunction = Callable[..., Sequence[float | None]]


class Scorable(Protocol):
    """What scoring needs to know of a record."""

    @property
    def id(self) -> str: ...

    @property
    def task(self) -> str: ...

    @property
    def prompt(self) -> str: ...

    @property
    def answer(self) -> str: ...

    @property
    def answers(self) -> tuple[str, ...]: ...

    @property
    def verifier(self) -> str: ...

    @property
    def columns(self) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """Which components make up the reward, and how much each counts.

    Attributes:
      weights: component → weight, for all tasks that `task_weights` does not name. A component
        that is not listed does not apply; one of weight 0 is computed and only logged.
      task_weights: task → a table of its own, which replaces `weights`.
      functions: name → reward function in TRL's form, or `"package.module:function"`.
      if_correct: components that pay only where the answer is correct, and 0 elsewhere. A length
        reward belongs here: on its own it pays a wrong answer of the right length in full.

    Raises:
      ValueError: a name without a function, a function without a weight, a weight that is not
        finite.
    """

    weights: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"format": 0.2, "accuracy": 1.0}
    )
    task_weights: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    functions: Mapping[str, RewardFunction | str] = dataclasses.field(default_factory=dict)
    if_correct: Collection[str] = ()

    def __post_init__(self):
        functions = {name: load_function(name, f) for name, f in self.functions.items()}
        object.__setattr__(self, "functions", functions)
        known = {*BUILT_IN, *functions}
        if taken := set(BUILT_IN) & set(functions):
            raise ValueError(f"reward functions {sorted(taken)}: these names are built in")
        for table in (self.weights, *self.task_weights.values()):
            for name, weight in table.items():
                if name not in known:
                    raise ValueError(f"weight of {name!r}: no such reward; known: {sorted(known)}")
                if not math.isfinite(weight):
                    raise ValueError(
                        f"weight of {name!r}: expected a finite number, found {weight}"
                    )
        if unused := {*functions, *self.if_correct} - set(self.names):
            raise ValueError(f"rewards {sorted(unused)} have no weight; give 0 to log them only")

    @property
    def names(self) -> tuple[str, ...]:
        """Every component that applies to some task, in order of appearance."""
        tables = (self.weights, *self.task_weights.values())
        return tuple(dict.fromkeys(name for table in tables for name in table))

    def weights_of(self, task: str) -> Mapping[str, float]:
        return self.task_weights.get(task, self.weights)


@dataclasses.dataclass(frozen=True)
class Scores:
    """Rewards of n completions.

    Attributes:
      total: weighted sum of the components that apply; NaN where none does.
      components: each component before its weight, NaN where it does not apply.
      accuracy: 1 where the answer is correct, else 0, whatever the weights; the verifier's score
        where that is graded, as VQA soft accuracy is.
      parsed: whether the completion has the response format.
      problems: what was wrong with the format, None where nothing was.
    """

    total: Float[np.ndarray, "n"]
    components: dict[str, Float[np.ndarray, "n"]]
    accuracy: Float[np.ndarray, "n"]
    parsed: Bool[np.ndarray, "n"]
    problems: tuple[str | None, ...]


def score(
    records: Sequence[Scorable],
    completions: Sequence[str],
    config: RewardConfig | None = None,
) -> Scores:
    """Scores each completion for the record beside it.

    Reward functions get the texts of the prompts and completions they apply to and, as keyword
    arguments, `answer` (a list where a record has several), `task`, `id` and every column of the
    records (None where a record lacks it).

    Raises:
      ValueError: lengths differ, or a reward function or verifier returned something wrong.
      RuntimeError: a reward function or verifier raised; says which one, on which record.
    """
    config = config or RewardConfig()
    if len(records) != len(completions):
        raise ValueError(f"found {len(records)} records for {len(completions)} completions")
    responses = [parse(text) for text in completions]
    found = np.array(list(map(_score, records, responses)), np.float64)
    correct = (found == 1.0).astype(np.float64)
    graded = np.array([get_verifier(record.verifier).graded for record in records], bool)
    built_in = {
        "format": np.array([response.ok for response in responses], np.float64),
        "accuracy": found,
        "correct": correct,
    }
    weights = _weights(records, config)
    components = {}
    for name in config.names:
        applies = ~np.isnan(weights[name])
        if name in built_in:
            values = np.where(applies, built_in[name], np.nan)
        else:
            values = _call(name, config.functions[name], records, completions, applies)
        if name in config.if_correct:
            values = np.where((correct == 1.0) | np.isnan(values), values, 0.0)
        components[name] = values
    return Scores(
        total=_total(components, weights, records),
        components=components,
        accuracy=np.where(graded, found, correct),
        parsed=built_in["format"].astype(bool),
        problems=tuple(response.problem for response in responses),
    )


def _score(record: Scorable, response: Parsed) -> float:
    if not response.ok:
        return 0.0
    try:
        golds = record.answers or record.answer
        return get_verifier(record.verifier).score(response.answer, golds)
    except (RuntimeError, ValueError) as error:
        raise type(error)(f"record {record.id!r}: {error}") from error


def _weights(records, config: RewardConfig) -> dict[str, np.ndarray]:
    """Per component, its weight for each record; NaN where it does not apply."""
    tables = [config.weights_of(record.task) for record in records]
    return {
        name: np.array([table.get(name, np.nan) for table in tables], np.float64)
        for name in config.names
    }


def _total(components, weights, records) -> np.ndarray:
    total, applies = np.zeros(len(records)), np.zeros(len(records), bool)
    for name, values in components.items():
        known = ~np.isnan(values)
        total += np.where(known, values * weights[name], 0.0)
        applies |= known
    if (beyond := ~(np.abs(total) <= LIMIT)).any():
        row = int(beyond.argmax())
        raise ValueError(
            f"the reward of record {records[row].id!r} is {total[row]:g}, expected a number within "
            f"±{LIMIT:g}; its parts before their weights: "
            f"{ {name: float(values[row]) for name, values in components.items()} }"
        )
    return np.where(applies, total, np.nan)


# --- user functions ------------------------------------------------------------------------------


def _call(
    name: str,
    function: RewardFunction,
    records: Sequence[Scorable],
    completions: Sequence[str],
    applies: np.ndarray,
) -> np.ndarray:
    """The function's values [n], computed on the rows it applies to; NaN elsewhere."""
    values = np.full(len(records), np.nan)
    rows = np.flatnonzero(applies).tolist()
    if not rows:
        return values
    chosen = [records[row] for row in rows]
    texts = [completions[row] for row in rows]
    try:
        returned = function(**_arguments(chosen, texts))
    except Exception as error:
        culprit = _culprit(function, chosen, texts)
        raise RuntimeError(
            f"reward function {name!r} raised {type(error).__name__} on {culprit}: {error}"
        ) from error
    values[rows] = _checked(name, returned, chosen)
    return values


def _arguments(records: Sequence[Scorable], completions: Sequence[str]) -> dict[str, list]:
    keys = dict.fromkeys(key for record in records for key in record.columns)
    columns = {key: [record.columns.get(key) for record in records] for key in keys}
    own: dict[str, list] = {key: [getattr(r, key) for r in records] for key in ("task", "id")}
    own["answer"] = [[*record.answers] or record.answer for record in records]
    prompts = [record.prompt for record in records]
    return {**columns, **own, "prompts": prompts, "completions": list(completions)}


def _culprit(function, records, completions) -> str:
    """The first record on which the function also raises when called with it alone."""
    for record, text in zip(records, completions, strict=True):
        try:
            function(**_arguments([record], [text]))
        except Exception:
            return f"record {record.id!r}"
    return f"the {len(records)} records from {records[0].id!r} to {records[-1].id!r} together"


def _checked(name: str, returned, records) -> list[float]:
    try:
        found: int | str = len(returned)
    except TypeError:
        found = type(returned).__name__
    if found != len(records):
        raise ValueError(
            f"reward function {name!r}: expected {len(records)} values, one per completion "
            f"(records {records[0].id!r} to {records[-1].id!r}), found {found}"
        )
    return [_number(name, value, record) for value, record in zip(returned, records, strict=True)]


def _number(name: str, value, record: Scorable) -> float:
    if value is None:
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not abs(number) <= LIMIT:
        raise ValueError(
            f"reward function {name!r} returned {value!r} for record {record.id!r}; expected a "
            f"number within ±{LIMIT:g}, or None where the reward does not apply"
        )
    return number
