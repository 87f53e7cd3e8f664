"""Room on the disk: what a run's checkpoints will take, said before there is anything to lose."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator

from rdbcl_jax.config import RunConfig
from rdbcl_jax.distributed import on_main
from rdbcl_jax.methods import Method
from rdbcl_jax.models.partition import Trained
from rdbcl_jax.remote import Store, files_below
from rdbcl_jax.sharding import bytes_of, numbers_in
from rdbcl_jax.training.learner import Learner

_SAID = 1e9  # bytes from which on it is worth a line


@dataclasses.dataclass(frozen=True)
class Part:
    """Of a run's checkpoints: so many of one kind, of so many bytes each."""

    name: str
    count: int
    size: int


def parts_of(config: RunConfig, method: Method, learner: Learner, like: Trained) -> Iterator[Part]:
    """What lies in checkpoints/ when it is fullest, before compression. Of the states of all tasks
    the last `checkpoint.keep` stay, and one is removed when the one after it is whole."""
    if method.responses == "none":
        return
    training, tasks = config.training, len(config.sequence)
    often = 0 < training.checkpoint_every < training.steps
    due = (training.steps - 1) // training.checkpoint_every if often else 0
    saved = due * tasks + 1  # and a signal's
    yield Part("states", min(saved, config.checkpoint.keep + 1), bytes_of(learner.like))
    yield Part("policies", tasks, bytes_of(like))
    if method.consolidation:
        yield Part("Fisher matrices", tasks, 4 * numbers_in(like))


def check_room(store: Store, parts: list[Part]) -> str:
    """What is to be said of the room that checkpoints take; empty: nothing.

    Raises:
      ValueError: the disk has less; one line.
    """
    needed = sum(part.count * part.size for part in parts)
    kinds = ", ".join(f"{part.count} {part.name} of {_size(part.size)}" for part in parts)
    takes = f"checkpoints take up to {_size(needed)} ({kinds})"

    def look() -> str:
        if store.there is not None:
            return f"{takes} in {store.name}"
        folder = store.local / "checkpoints"
        there = sum(f.size for f in files_below(folder).values()) if folder.is_dir() else 0
        free = shutil.disk_usage(store.local).free
        if needed - there > free:
            found = f", of which {_size(there)} are there" if there else ""
            raise ValueError(
                f"{store.name}: {takes}{found}, and {_size(free)} of its disk are free; make room, "
                "lower checkpoint.keep, or take a workdir on another disk"
            )
        return f"{takes}; {_size(free)} are free"

    said = on_main(look)
    return said if needed >= _SAID else ""


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
