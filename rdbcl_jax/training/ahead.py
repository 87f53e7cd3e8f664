"""Programs that are compiled before they are called, in threads: a compiler leaves most cores idle,
and so does a host that reads data or waits for the base's evaluation."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from concurrent import futures

import jax

_MOST = 3  # programs at once: those of a step


class Ahead:
    """Compiles programs in the order given. JAX finds one that is there when it is called with
    arguments as it was lowered for, and compiles any other then, as ever; the bits are the same."""

    def __init__(self) -> None:
        self._pool = futures.ThreadPoolExecutor(max(1, min(_MOST, (os.cpu_count() or 2) - 1)))
        self._begun: dict[str, futures.Future[None]] = {}

    def begin(self, name: str, lower: Callable[[], jax.stages.Lowered]) -> None:
        self._begun[name] = self._pool.submit(_compile, lower)

    def wait(self, name: str) -> None:
        """Returns once a program is there, if it was begun: before its first call, which would
        compile it a second time."""
        if begun := self._begun.pop(name, None):
            futures.wait([begun])

    def close(self) -> None:
        """Begins no further one, and does not wait for those that were."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _compile(lower: Callable[[], jax.stages.Lowered]) -> None:
    with contextlib.suppress(Exception):  # it fails again where it is called, and is told there
        lower().compile()
