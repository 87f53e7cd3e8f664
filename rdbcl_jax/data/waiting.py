"""What a long wait for records says of itself."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")
SAYS_EVERY = 30.0  # seconds, where there is no terminal


def shown(results: Iterable[T], count: int, what: str) -> Iterator[T]:
    """The results, while a bar on the terminal, or a line now and then, says how many there are."""
    console = Console(stderr=True)
    if console.is_terminal:
        yield from track(results, what, total=count, console=console, transient=True)
        return
    said = time.monotonic()
    for done, result in enumerate(results):
        if time.monotonic() - said > SAYS_EVERY:
            said = time.monotonic()
            print(f"{what}: {done} of {count} records", file=sys.stderr, flush=True)
        yield result
