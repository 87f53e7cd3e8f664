"""Room on the disk: what a run's checkpoints will take, said before there is anything to lose."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator

from rdbcl_jax.config import RunConfig
from rdbcl_jax.distributed import on_main
from rdbcl_jax.methods import Method
from rdbcl_jax.models.partition import Trained
from rdbcl_jax.remote import Store
from rdbcl_jax.sharding import bytes_of, numbers_in
from rdbcl_jax.training.learner import Learner

_SAID = 1e9  # bytes from which on it is worth a line


@dataclasses.dataclass(frozen=True)
class Part:
    """Of a run's checkpoints: so many of one kind, of so many bytes each."""

    name: str
    count: int
    size: int


def parts_of(
    config: RunConfig, method: Method, learner: Learner, like: Trained, done: int, there: int
) -> Iterator[Part]:
    """What comes to checkpoints/ until it is fullest, before compression; nothing once the run is
    over. Of the states of all tasks the last `checkpoint.keep` stay, and one is removed when the
    one after it is whole.

    Args:
      done: steps of the run that lie behind it.
      there: states that lie there.
    """
    training = config.training
    tasks = len(config.sequence) - done // training.steps  # that are still to be learned
    if method.responses == "none" or not tasks:
        return
    often = 0 < training.checkpoint_every < training.steps
    due = (training.steps - 1) // training.checkpoint_every if often else 0
    saved = due * tasks + 1  # and a signal's
    states = min(saved, max(config.checkpoint.keep + 1 - there, 1))
    yield Part("states", states, bytes_of(learner.like))
    yield Part("policies", tasks, bytes_of(like))
    if method.consolidation:
        yield Part("Fisher matrices", tasks, 4 * numbers_in(like))


def check_room(store: Store, parts: list[Part]) -> str:
    """What is to be said of the room that checkpoints will take; empty: nothing.

    Raises:
      ValueError: the disk has less; one line.
    """
    needed = sum(part.count * part.size for part in parts)
    kinds = ", ".join(f"{part.count} {part.name} of {_size(part.size)}" for part in parts)
    takes = f"checkpoints to come take up to {_size(needed)} ({kinds})"

    def look() -> str:
        if store.there is not None:
            return f"{takes} in {store.name}"
        free = shutil.disk_usage(store.local).free
        if needed > free:
            raise ValueError(
                f"{store.name}: {takes}, and {_size(free)} of its disk are free; make room, lower "
                "checkpoint.keep, or take a workdir on another disk"
            )
        return f"{takes}; {_size(free)} are free"

    said = on_main(look)
    return said if needed >= _SAID else ""


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
