"""Calls of reward functions in TRL's form, sync or async.

A function gets, all by name and one entry per completion:

- `prompts`, `completions`: texts; of a record whose question is a chat, its messages without the
  answer, and `[{"role": "assistant", "content": text}]`;
- `completion_ids`: the completions' tokens, the end token included;
- every column of the record as its source has it (None where a record lacks it); `image` and
  `images` are decoded, when they are looked at;
- `answer` of records without such a column (a list where there are several), `task`, `id`;

and, once, `trainer_state`, `log_metric(name, value)` and `log_extra(column, values)`. It returns a
number for each completion, None where it does not apply.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import functools
import inspect
import math
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from rdbcl_jax.rewards.functions import FunctionFailed, in_one_line, watched

LIMIT = 1e15  # of a reward: float32, in which groups are normalised, holds its square
RewardFunction = Callable[..., Any]
_NAMED_OTHERWISE = frozenset({"prompt", "completion", "completion_ids", "image", "images"})


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
    def images(self) -> tuple[Any, ...]: ...

    @property
    def columns(self) -> Mapping[str, Any]: ...

    @property
    def row(self) -> Mapping[str, Any]:
        """All columns as the source has them, but for pictures; empty where there is no source."""
        ...

    @property
    def chat(self) -> list[dict[str, Any]] | None:
        """The messages that ask the question, where it is a chat."""
        ...

    def pictures(self) -> tuple[Any, ...]:
        """Its images, decoded."""
        ...


@dataclasses.dataclass(frozen=True)
class TrainerState:
    """How far the run is, under TRL's names.

    Attributes:
      global_step: batches learned before this one, over all tasks.
      max_steps: of the run.
    """

    global_step: int = 0
    max_steps: int = 0


@dataclasses.dataclass(frozen=True)
class Asked:
    """Completions that reward functions judge, with their records and tokens."""

    records: Sequence[Scorable]
    completions: Sequence[str]
    completion_ids: Sequence[Sequence[int]]
    state: TrainerState

    def __len__(self) -> int:
        return len(self.records)

    def only(self, rows: Sequence[int]) -> Asked:
        return Asked(
            [self.records[row] for row in rows],
            [self.completions[row] for row in rows],
            [self.completion_ids[row] for row in rows],
            self.state,
        )

    @property
    def name(self) -> str:
        first, last = self.records[0].id, self.records[-1].id
        return f"record {first!r}" if len(self) == 1 else f"records {first!r} to {last!r}"


class Logged:
    """What functions log: the means of metrics, and columns of the samples' table."""

    def __init__(self, count: int):
        self._count = count
        self._metrics: dict[str, list[float]] = collections.defaultdict(list)
        self.extra: dict[str, list[str | None]] = {}

    @property
    def metrics(self) -> dict[str, float]:
        return {name: float(np.mean(values)) for name, values in self._metrics.items()}

    def arguments(self, rows: Sequence[int]) -> dict[str, Callable]:
        """For a function that judges these rows."""

        def log_extra(column: str, values: Sequence[Any]) -> None:
            own = self.extra.setdefault(str(column), [None] * self._count)
            for row, value in zip(rows, values, strict=True):
                own[row] = None if value is None else str(value)

        def log_metric(name: str, value: float) -> None:
            self._metrics[str(name)].append(float(value))

        return {"log_extra": log_extra, "log_metric": log_metric}


def values_of(
    functions: Mapping[str, RewardFunction],
    rows: Mapping[str, Sequence[int]],
    asked: Asked,
    logged: Logged,
) -> dict[str, Float[np.ndarray, "n"]]:
    """The values of each function on the rows it applies to, NaN elsewhere. Async functions run
    while others do.

    Raises:
      FunctionFailed: one raised; says which, and on which record.
      ValueError: one returned something wrong.
    """
    found = {name: np.full(len(asked), math.nan) for name in functions}
    waiting: dict[str, Callable[[], Any]] = {}
    for name, own in rows.items():
        if own:
            waiting[name] = _begun(name, functions[name], asked.only(own), logged.arguments(own))
    for name, finish in waiting.items():
        found[name][list(rows[name])] = _checked(name, finish(), asked.only(rows[name]))
    return found


def _begun(
    name: str, function: RewardFunction, asked: Asked, logs: Mapping[str, Callable]
) -> Callable[[], Any]:
    """Calls a function; what is returned waits for its values."""

    def failed(error: Exception) -> FunctionFailed:
        culprit = _culprit(function, asked)
        return FunctionFailed(
            f"reward function {name!r} raised {type(error).__name__} on {culprit}: "
            f"{in_one_line(error)}"
        )

    with watched(lambda: f"reward function {name!r} on {asked.name}"):
        try:
            returned = function(**_arguments(asked, logs))
        except Exception as error:
            raise failed(error) from error
    if not inspect.isawaitable(returned):
        return lambda: returned
    future = asyncio.run_coroutine_threadsafe(_awaited(returned), _event_loop())

    def finish() -> Any:
        with watched(lambda: f"reward function {name!r} on {asked.name}"):
            try:
                return future.result()
            except Exception as error:
                raise failed(error) from error

    return finish


async def _awaited(returned: Awaitable[Any]) -> Any:
    return await returned


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """One for all calls, so that clients and connections that functions keep stay good; in a thread
    of its own, since a notebook's is busy."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


def _arguments(asked: Asked, logs: Mapping[str, Callable]) -> dict[str, Any]:
    records = asked.records
    known = [_own({**record.columns, **record.row}) for record in records]
    for record, columns in zip(records, known, strict=True):
        if columns.get("answer") is None:
            columns["answer"] = [*record.answers] or record.answer
        columns |= {"task": record.task, "id": record.id}
    keys = dict.fromkeys(key for columns in known for key in columns)
    arguments: dict[str, Any] = {
        key: [columns.get(key) for columns in known] for key in keys if key not in _NAMED_OTHERWISE
    }
    if any(record.images for record in records):
        arguments["images"] = _Pictures(records, list)
        arguments["image"] = _Pictures(records, lambda images: images[0] if images else None)
    chats = [_own(record.chat) for record in records]
    texts = zip(chats, asked.completions, strict=True)
    return {
        **arguments,
        "prompts": [chat or record.prompt for chat, record in zip(chats, records, strict=True)],
        "completions": [
            [{"role": "assistant", "content": text}] if chat else text for chat, text in texts
        ],
        "completion_ids": [np.array([*ids], int).tolist() for ids in asked.completion_ids],
        "trainer_state": asked.state,
        **logs,
    }


def _own(value: Any) -> Any:
    """A copy of nested lists and dicts, which the function may change; the rest as it is."""
    if isinstance(value, dict):
        return {key: _own(item) for key, item in value.items()}
    return [_own(item) for item in value] if isinstance(value, list) else value


class _Pictures(Sequence):
    """The records' images, each decoded once, and only if somebody looks."""

    def __init__(self, records: Sequence[Scorable], shown: Callable[[tuple], Any]):
        self._records, self._shown = records, shown
        self._decoded: dict[int, tuple] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        record = self._records[index]
        if id(record) not in self._decoded:
            self._decoded[id(record)] = record.pictures()
        return self._shown(self._decoded[id(record)])


def _culprit(function: RewardFunction, asked: Asked) -> str:
    """The first record on which the function also raises when called with it alone."""
    nowhere = Logged(1).arguments([0])
    for row in range(len(asked)):
        one = asked.only([row])
        try:
            returned = function(**_arguments(one, nowhere))
            if inspect.isawaitable(returned):
                asyncio.run_coroutine_threadsafe(_awaited(returned), _event_loop()).result()
        except Exception:
            return one.name
    return f"the {len(asked)} {asked.name} together"


def _checked(name: str, returned: Any, asked: Asked) -> list[float]:
    listed = isinstance(returned, list | tuple) or np.ndim(returned) == 1
    found = len(returned) if listed else type(returned).__name__
    if found != len(asked):
        raise ValueError(
            f"reward function {name!r}: expected {len(asked)} values, one per completion "
            f"({asked.name}), found {found}"
        )
    pairs = zip(returned, asked.records, strict=True)
    return [_number(name, value, record) for value, record in pairs]


def _number(name: str, value: Any, record: Scorable) -> float:
    if value is None:
        return math.nan
    try:
        number = math.nan if isinstance(value, str | bytes | bytearray) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= LIMIT:
        raise ValueError(
            f"reward function {name!r} returned {value!r} for record {record.id!r}; expected a "
            f"number within ±{LIMIT:g}, or None where the reward does not apply"
        )
    return number
