"""Batches in an order that is a pure function of (seed, step): resume by number, shard by rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import grain
import numpy as np

from rdbcl_jax.sharding import ALL_ROWS, RowShard

T = TypeVar("T")


def indices(length: int, batch_size: int, seed: int) -> grain.MapDataset:
    """Endless random-access batches of indices [batch_size] below `length`.

    Batch i depends on (length, batch_size, seed, i) alone. Every index comes once per pass, and
    every pass has an order of its own; batches run across the ends of passes.
    """
    return grain.MapDataset.range(length).shuffle(seed).repeat().batch(batch_size)


def rehearsed(
    own: int, old: int, batch_size: int, old_per_batch: int, seed: int
) -> grain.MapDataset:
    """Batches of a task's `own` indices, but for the last `old_per_batch` rows, which are among the
    `old` indices after those; each part in an order of its own."""
    new = indices(own, batch_size - old_per_batch, seed)
    before = indices(old, old_per_batch, seed + 1)
    count = grain.MapDataset.range(2**40)
    return count.map(lambda i: np.concatenate([new[i], own + np.asarray(before[i])]))


def batches(
    source: Sequence[Any],
    encode: Callable[[list[Any], np.ndarray], T],
    *,
    order: grain.MapDataset,
    start: int = 0,
    shard: RowShard = ALL_ROWS,
    threads: int = 1,
    prefetch: int = 4,
) -> Iterator[T]:
    """Batch `start`, `start + 1`, … without end, each encoded ahead of its use by `threads`.

    Args:
      source: random-access items: records, or `suite.Demonstrations`.
      encode: (items, their indices) → batch. Runs in the threads.
      order: the global batches of indices, as `indices` gives them; this process encodes `shard`'s
        part of each.
      prefetch: batches held ready.
    """

    def make(batch: np.ndarray) -> T:
        mine = np.asarray(batch)[shard.rows(len(batch))]
        return encode([source[i] for i in mine.tolist()], mine)

    # the slice of an endless dataset has no length, so the start is added to the index instead
    dataset = grain.MapDataset.range(start, start + 2**40).map(lambda i: make(order[i]))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(dataset.to_iter_dataset(options))


class EvalBatch(NamedTuple):
    batch: Any
    valid: np.ndarray  # [rows] bool: False for the rows that only fill the last batch


def eval_batches(
    records: Sequence[Any],
    encode: Callable[[list[Any], np.ndarray], Any],
    batch_size: int,
    shard: RowShard = ALL_ROWS,
) -> Iterator[EvalBatch]:
    """All records once, in order; the last batch repeats the last record to keep its shape."""
    for first in range(0, len(records), batch_size):
        wanted = first + shard.rows(batch_size)
        ids = np.minimum(wanted, len(records) - 1)
        yield EvalBatch(encode([records[i] for i in ids], ids), wanted < len(records))
