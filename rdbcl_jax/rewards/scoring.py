"""The composite reward: weighted components, built in or the user's, each for its own tasks.

A configuration is a table of weights. Three components are built in: `format` (1 if the response
parses), `accuracy` (the verifier's score in [0, 1]) and `correct` (1 if that score is 1). The
jigsaw reward of arXiv:2506.23508, hit fraction + all right + format, is then
`{"accuracy": 1, "correct": 1, "format": 1}`. Evaluation calls the same function, without rewards,
and reads `Scores.accuracy`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from rdbcl_jax.rewards.calls import (
    LIMIT,
    Asked,
    Logged,
    RewardFunction,
    Scorable,
    TrainerState,
    values_of,
)
from rdbcl_jax.rewards.functions import FunctionFailed, load_function, watched
from rdbcl_jax.rewards.response_format import Parsed, parse
from rdbcl_jax.rewards.shaping import shaped
from rdbcl_jax.rewards.verifiers import get_verifier

BUILT_IN = ("format", "accuracy", "correct")


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """Which components make up the reward, and how much each counts.

    Attributes:
      weights: component → weight, for all tasks that `task_weights` does not name. A component
        that is not listed does not apply; one of weight 0 is computed and only logged.
      task_weights: task → a table of its own, which replaces `weights`.
      functions: name → reward function in TRL's form (see `rdbcl_jax.rewards.calls`), or where it
        is: `"package.module:function"`, `"file.py:function"`; or `"overlong:LONGEST:BUFFER"`,
        `"repetition:N"`, see `rdbcl_jax.rewards.shaping`.
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
        functions = {
            name: (shaped(f) if isinstance(f, str) else None) or load_function(name, f)
            for name, f in self.functions.items()
        }
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
            raise ValueError(
                f"rewards {sorted(unused)} have no weight: config.rewards.weights; 0 logs one only"
            )

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
      metrics: what reward functions logged with `log_metric`, means of this process.
      extra: what they logged with `log_extra`: columns of texts, None where nothing was.
    """

    total: Float[np.ndarray, "n"]
    components: dict[str, Float[np.ndarray, "n"]]
    accuracy: Float[np.ndarray, "n"]
    parsed: Bool[np.ndarray, "n"]
    problems: tuple[str | None, ...]
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    extra: Mapping[str, Sequence[str | None]] = dataclasses.field(default_factory=dict)


def score(
    records: Sequence[Scorable],
    completions: Sequence[str],
    config: RewardConfig | None = None,
    *,
    completion_ids: Sequence[Sequence[int]] | None = None,
    trainer_state: TrainerState | None = None,
) -> Scores:
    """Scores each completion for the record beside it.

    Args:
      completion_ids: their tokens, for reward functions; default: the bytes of the texts.
      trainer_state: how far the run is, for reward functions.
    Raises:
      ValueError: lengths differ, or a reward function or verifier returned something wrong.
      FunctionFailed: a reward function or verifier raised; says which one, on which record.
    """
    config = config or RewardConfig()
    if len(records) != len(completions):
        raise ValueError(f"found {len(records)} records for {len(completions)} completions")
    responses = [parse(text) for text in completions]
    found = _verified(records, responses)
    correct = (found == 1.0).astype(np.float64)
    graded = np.array([get_verifier(record.verifier).graded for record in records], bool)
    built_in = {
        "format": np.array([response.ok for response in responses], np.float64),
        "accuracy": found,
        "correct": correct,
    }
    weights, logged = _weights(records, config), Logged(len(records))
    own = {name: config.functions[name] for name in config.names if name not in built_in}
    ids = completion_ids if completion_ids is not None else [text.encode() for text in completions]
    asked = Asked(records, completions, ids, trainer_state or TrainerState())
    rows = {name: np.flatnonzero(~np.isnan(weights[name])).tolist() for name in own}
    values_by_name = built_in | values_of(own, rows, asked, logged)
    components = {}
    for name in config.names:
        values = np.where(np.isnan(weights[name]), np.nan, values_by_name[name])
        if name in config.if_correct:
            values = np.where((correct == 1.0) | np.isnan(values), values, 0.0)
        components[name] = values
    return Scores(
        total=_total(components, weights, records),
        components=components,
        accuracy=np.where(graded, found, correct),
        parsed=built_in["format"].astype(bool),
        problems=tuple(response.problem for response in responses),
        metrics=logged.metrics,
        extra=logged.extra,
    )


def judge(records: Sequence[Scorable], completions: Sequence[str], **others: Any) -> Scores:
    """`score` without rewards: accuracy and format. Only a verifier of the user's may run."""
    return score(records, completions, RewardConfig(weights={}), **others)


def _verified(records: Sequence[Scorable], responses: Sequence[Parsed]) -> Float[np.ndarray, "n"]:
    """The verifiers' scores; 0 without an answer."""
    found, now = np.zeros(len(records)), 0
    with watched(lambda: f"verifier {records[now].verifier!r} on record {records[now].id!r}"):
        for now, (record, response) in enumerate(zip(records, responses, strict=True)):
            found[now] = _score(record, response)
    return found


def _score(record: Scorable, response: Parsed) -> float:
    if not response.ok:
        return 0.0
    try:
        golds = record.answers or record.answer
        return get_verifier(record.verifier).score(response.answer, golds)
    except FunctionFailed as error:
        raise FunctionFailed(f"record {record.id!r}: {error}") from error
    except ValueError as error:
        raise ValueError(f"record {record.id!r}: {error}") from error


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
