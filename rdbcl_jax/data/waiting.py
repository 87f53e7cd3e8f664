"""What a long wait for records says of itself, and how it is made shorter."""

from __future__ import annotations

import collections
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.progress import track

S = TypeVar("S")
T = TypeVar("T")
SAYS_FIRST, SAYS_EVERY = 2.0, 30.0  # seconds, where there is no terminal
MANY = 1000  # records
_AHEAD = 8  # items a thread, so that results of many never wait for one that takes long


def in_threads(function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """The function of each item, in their order, a few ahead: files may be far away, and decoding
    leaves the interpreter to others."""
    threads = min(32, (os.cpu_count() or 1) + 4)
    with ThreadPoolExecutor(threads) as pool:
        waiting: collections.deque = collections.deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= _AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def shown(results: Iterable[T], count: int, what: str) -> Iterator[T]:
    """The results, while a bar on the terminal says how many there are; elsewhere a line at once
    where they are many, and one now and then."""
    console = Console(stderr=True)
    if console.is_terminal:
        yield from track(results, what, total=count, console=console, transient=True)
        return
    said = time.monotonic()
    if count >= MANY:
        print(f"{what}: {count:,} records", file=sys.stderr, flush=True)
    else:
        said -= SAYS_EVERY - SAYS_FIRST
    for done, result in enumerate(results):
        if time.monotonic() - said > SAYS_EVERY:
            said = time.monotonic()
            print(f"{what}: {done:,} of {count:,} records", file=sys.stderr, flush=True)
        yield result
