"""What a run holds in each of its phases, for the long forms that compare it with its plan."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator


class Watch:
    """The most that `held` says in each phase, in bytes, asked every so many seconds."""

    def __init__(self, held: Callable[[], int], every: float) -> None:
        self.most: dict[str, int] = {}
        self.phase = "start"
        threading.Thread(target=self._look, args=(held, every), daemon=True).start()

    def _look(self, held: Callable[[], int], every: float) -> None:
        while True:
            self.most[self.phase] = max(self.most.get(self.phase, 0), held())
            time.sleep(every)

    @contextlib.contextmanager
    def within(self, phase: str) -> Iterator[None]:
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def over_phases(self, after: Callable[[], object] = lambda: None) -> None:
        """Watches each phase of the runs of this process; `after` is called when one is over."""
        from rdbcl_jax.training import memory

        inner = memory.within_memory

        @contextlib.contextmanager
        def watched(config, phase):
            with self.within(phase), inner(config, phase):
                yield
            after()

        memory.within_memory = watched
