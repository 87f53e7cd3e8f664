"""Where a study is: a live display on a terminal, one line per finished run elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rdbcl_jax.reporting.numbers import duration


class StudyProgress:
    """Runs that are over, running and left, with an estimate of the time they take."""

    def __init__(
        self,
        name: str,
        workers: int,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.name, self.workers = name, workers
        self._stream, self._clock = stream or sys.stdout, clock
        self._began = clock()
        self._seconds: list[float] = []
        self._running: dict[str, float] = {}
        self._total = self._done = self._failed = 0
        console = Console(file=self._stream)
        self._live = None
        if console.is_terminal and not console.is_dumb_terminal:
            self._live = Live(console=console, get_renderable=self._draw, transient=True)

    def __enter__(self) -> StudyProgress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, total: int, done: int, failed: int) -> None:
        """Runs wanted, over (failed ones too) and failed."""
        if self._total != total and not self._done:
            self._total, self._done, self._failed = total, done, failed
            self._say(f"{self.name}: {total} runs, {done} there already, {self.workers} workers")
        self._total, self._done, self._failed = total, done, failed

    def started(self, name: str) -> None:
        """A job has begun."""
        self._running[name] = self._clock()

    def finished(
        self, name: str, seconds: float, error: str, done: int, failed: int, lack: str = ""
    ) -> None:
        """A job is over, and with it so many runs. `lack`: why it had nothing to learn from."""
        self._done, self._failed = done, failed
        del self._running[name]
        self._seconds.append(seconds)
        state = f"FAILED: {error}" if error else f"had no data: {lack}" if lack else "done"
        self._say(f"{name} {state} in {duration(seconds)}; {self.summary()}")

    def summary(self) -> str:
        """`12/40 runs, 1 failed, 1h 02m left`."""
        parts = [f"{self._done}/{self._total} runs"]
        if self._failed:
            parts.append(f"{self._failed} failed")
        if self._seconds:
            parts.append(f"{duration(self.seconds_left())} left")
        return ", ".join(parts)

    def seconds_left(self) -> float:
        """From the mean time of the runs so far."""
        mean = sum(self._seconds) / max(len(self._seconds), 1)
        gone = sum(min(self._clock() - began, mean) for began in self._running.values())
        return max((self._total - self._done) * mean - gone, 0.0) / self.workers

    def _say(self, text: str) -> None:
        if self._live:
            self._live.console.print(Text(text))
        else:
            gone = duration(self._clock() - self._began)
            print(f"[{gone:>7}] {text}", file=self._stream, flush=True)

    def _draw(self) -> Group:
        head = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=max(self._total, 1), completed=self._done, width=24)
        head.add_row(Text(self.name, style="bold"), bar, Text(self.summary()))
        now = self._clock()
        lines = (Text(f"{duration(now - t):>7} {n}") for n, t in dict(self._running).items())
        return Group(head, *lines)
