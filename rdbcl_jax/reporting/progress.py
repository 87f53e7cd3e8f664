"""Progress of a run as a person wants it: a live display on a terminal; elsewhere a line where
something begins or ends, and one every so many seconds.

    with Progress(["sum", "walk"], steps=60) as progress:
        progress.phase("evaluating the base model")
        progress.start_task(0)
        progress.step(metrics)              # a row of metrics.jsonl
        progress.end_task(0, accuracies)    # row 1 of the matrix

Whatever goes wrong in here, the run goes on: a method that fails turns the display off.
"""

from __future__ import annotations

import functools
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rdbcl_jax.reporting import metric_table
from rdbcl_jax.reporting.metric_table import Place
from rdbcl_jax.reporting.numbers import duration, fixed


def never_fails(method: Callable) -> Callable:
    """Logs the first error, turns the display off, and lets the run go on."""

    @functools.wraps(method)
    def safe(self: Progress, *args: Any, **kwargs: Any) -> None:
        if not self.enabled:
            return
        try:
            method(self, *args, **kwargs)
        except Exception:
            self.enabled = False
            logging.getLogger(__name__).warning("progress display is off", exc_info=True)
            self._stop_live()

    return safe


class Progress:
    """Where the run is. `steps` is one number for all tasks, or one per task; `held_out` are tasks
    that are evaluated after them and not learned; `every`: seconds between lines of steps where
    there is no terminal."""

    def __init__(
        self,
        tasks: Sequence[str],
        steps: int | Sequence[int],
        *,
        held_out: Sequence[str] = (),
        enabled: bool = True,
        every: float = 30.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.tasks, self.held_out = list(tasks), list(held_out)
        self.steps = [steps] * len(self.tasks) if isinstance(steps, int) else list(steps)
        self.enabled, self._every = enabled, every
        self._compiling: str | None = None
        self._stream = stream or sys.stdout
        self._clock = clock
        self._task, self._done, self._phase = -1, 0, "starting"
        self._metrics: dict[str, Any] = {}
        self._step_seconds: deque[float] = deque(maxlen=50)
        self._tokens: deque[tuple[float, float]] = deque(maxlen=50)  # (time, tokens so far)
        self._between: list[float] = []  # seconds from a task's last step to its end
        self._started = self._last = self._line = clock()
        self._said: set[tuple[int, str]] = set()
        self._live: Live | None = None
        self._header_shown = False
        self._open_live()

    # ------------------------------------------------------------------ what the run calls

    @never_fails
    def phase(self, name: str) -> None:
        """Says what happens now: compiling, sampling, evaluating …"""
        self._phase = name
        if self._live is None and (self._task, name) not in self._said:
            self._said.add((self._task, name))  # a phase of every step is said once per task
            self._say(name)

    @never_fails
    def compiling(self, what: str | None) -> None:
        """Says that something is compiled, until it is called with None."""
        self._compiling = what and f"{what} …"
        if self._live is None and self._compiling and (-1, self._compiling) not in self._said:
            self._said.add((-1, self._compiling))  # it is said again when one beside it is there
            self._say(self._compiling)

    @never_fails
    def start_task(self, index: int, *, step: int = 0) -> None:
        """Task `index` begins, with `step` steps done already (after a resume)."""
        self._task, self._done, self._metrics = index, step, {}
        self._phase = "training"
        self._last = self._clock()
        self._say(f"task {index + 1}/{len(self.tasks)} {self.tasks[index]}: {self._step_count()}")

    @never_fails
    def step(self, metrics: Mapping[str, Any]) -> None:
        """One more step is done; `metrics` is its row of metrics.jsonl."""
        now = self._clock()
        self._step_seconds.append(now - self._last)
        self._last = now
        self._done += 1
        skipped, before = (m.get("skipped_updates", 0) for m in (metrics, self._metrics))
        if skipped > before:
            step = metrics.get("step", self._done)
            self._say(
                f"step {step}: its update was left out, since its loss or gradient is not finite "
                f"({skipped:.0f} so far in this task)",
                live=True,
            )
        self._metrics = dict(metrics)
        if metrics.get("num_tokens") is not None:
            self._tokens.append((now, float(metrics["num_tokens"])))
        if self._live is None and now - self._line >= self._every:
            self._line = now
            count = f"{self.tasks[self._task]} {self._done}/{self.steps[self._task]}"
            shown, times = self._facts()
            self._say(" · ".join([count, *shown, *(t for t in times if not t.endswith("gone"))]))

    @never_fails
    def end_task(self, index: int, accuracies: Sequence[float]) -> None:
        """Task `index` is over (−1: the base model); prints its row of the accuracy matrix."""
        now = self._clock()
        if index >= 0:
            self._between.append(now - self._last)
        self._last = now
        self._task, self._done, self._metrics = index + 1, 0, {}
        self._tokens.clear()
        name = "base" if index < 0 else f"after {self.tasks[index]}"
        self._print_row(name, [float(a) for a in accuracies], trained=index)

    @never_fails
    def message(self, text: str) -> None:
        """Prints one line, above the live display where there is one."""
        self._say(text, live=True)

    def close(self) -> None:
        """Takes the live display down. Safe to call twice."""
        self._stop_live()
        self.enabled = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------ time left

    def seconds_left(self) -> float:
        """Estimate for the whole run; NaN before the first steps."""
        if len(self._step_seconds) < 2:
            return math.nan
        task = max(self._task, 0)
        steps = sum(self.steps[task:]) - self._done
        typical = sorted(self._step_seconds)[len(self._step_seconds) // 2]  # compilations aside
        between = sum(self._between) / len(self._between) if self._between else 0.0
        return max(steps, 0) * typical + (len(self.tasks) - task) * between

    def tokens_per_second(self) -> float:
        """Over the last steps; NaN before the second."""
        if len(self._tokens) < 2:
            return math.nan
        (start, before), (end, after) = self._tokens[0], self._tokens[-1]
        return (after - before) / (end - start) if end > start else math.nan

    # ------------------------------------------------------------------ drawing

    @never_fails
    def _open_live(self) -> None:
        terminal = getattr(self._stream, "isatty", lambda: False)()
        console = Console(file=self._stream) if terminal else None
        if console is None or console.is_dumb_terminal or not console.is_terminal:
            return
        self._live = Live(
            console=console, get_renderable=self._render, refresh_per_second=4, transient=True
        )
        self._live.start()

    def _stop_live(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            try:
                live.stop()
            except Exception:
                logging.getLogger(__name__).debug("live display did not stop", exc_info=True)

    def _render(self) -> Group | Text:
        """The live display; called from rich's own thread, so it must not raise either."""
        try:
            return self._draw()
        except Exception:
            return Text(self._phase)

    def _draw(self) -> Group:
        task, total = max(self._task, 0), len(self.tasks)
        name, count = "all tasks trained", ""
        if self._task < 0:
            name = f"before task 1/{total}"
        elif task < total:
            name = f"task {task + 1}/{total} {self.tasks[task]}"
            count = f"step {self._done}/{self.steps[task]}"
        done = sum(self.steps[:task]) + self._done
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(name, style="bold"),
            ProgressBar(total=max(sum(self.steps), 1), completed=done, width=24),
            Text(count),
            Text(self._compiling or self._phase, style="cyan"),
        )
        lines = (Text(" · ".join(f), overflow="ellipsis", no_wrap=True) for f in self._facts() if f)
        return Group(head, *lines)

    def _facts(self) -> tuple[list[str], list[str]]:
        metrics, times = [], []
        for name, metric in metric_table.at(Place.PROGRESS).items():
            value = self._metrics.get(name)
            if value is not None and math.isfinite(float(value)):
                metrics.append(f"{metric.label} {fixed(float(value), metric.digits)}")
        speed, left = self.tokens_per_second(), self.seconds_left()
        if math.isfinite(speed):
            times.append(f"{speed:,.0f} tokens/s")
        times.append(f"{duration(self._clock() - self._started)} gone")
        if math.isfinite(left):
            times.append(f"{duration(left)} left")
        return metrics, times

    def _step_count(self) -> str:
        steps = self.steps[self._task]
        return f"steps {self._done} to {steps}" if self._done else f"{steps} steps"

    def _say(self, text: str, *, live: bool = False) -> None:
        if self._live is None:
            gone = duration(self._clock() - self._started)
            print(f"[{gone:>7}] {text}", file=self._stream, flush=True)
        elif live:
            self._live.console.print(Text(text))

    def _print_row(self, name: str, accuracies: list[float], trained: int) -> None:
        """One row of the matrix; on a terminal the rows form a table, trained tasks in bold."""
        columns = [*self.tasks, *self.held_out]
        cells = list(zip(columns, accuracies, strict=True))
        if self._live is None:
            self._say(f"accuracy {name}: " + ", ".join(f"{t} {a:.1%}" for t, a in cells))
            return
        width = max(len(f"after {task}") for task in self.tasks) + 1
        if not self._header_shown:
            header = "accuracy, %".ljust(width) + "".join(f"  {t:>5}" for t in columns)
            self._live.console.print(Text(header, style="dim"))
            self._header_shown = True
        row = Text(name.ljust(width), style="dim")
        for j, (task, accuracy) in enumerate(cells):
            style = "bold not dim" if j <= trained else "not dim"
            row.append(f"  {100 * accuracy:>{max(len(task), 5)}.1f}", style=style)
        self._live.console.print(row)
