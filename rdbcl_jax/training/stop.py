"""SIGTERM and Ctrl-C: the run saves its state within a step and ends. A second Ctrl-C ends it at
once, whatever it is doing, and so does a second SIGTERM that is no echo of the first.

Of several processes JAX's preemption service hears SIGTERM, in each of them, and has all agree on
the step after which they stop; a Ctrl-C is passed on to it. No device is asked for that.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_POINTS = itertools.count(1)  # at which processes may agree; the same on all of them
ECHO = 5.0  # seconds: a scheduler, a launcher and a shell may each pass the same SIGTERM on


class Stopped(KeyboardInterrupt):
    """A run that was asked to stop has saved its state.

    Attributes:
      code: what the process should end with: 0 after SIGTERM, 130 after Ctrl-C.
      at_once: it was in the middle of something. Threads may still compile or read: Python's own
        end would wait for them, and take away what they use.
    """

    def __init__(self, signum: int, where: str, *, at_once: bool = False):
        super().__init__(f"stopped by {_name(signum)} {where}; the same command goes on from there")
        self.code = 130 if signum == signal.SIGINT else 0
        self.at_once = at_once


def _name(signum: int) -> str:
    return "Ctrl-C" if signum == signal.SIGINT else "SIGTERM"


class Stop:
    """Listens within a `with` block, where that is in the main thread: elsewhere there are no
    signals."""

    def __init__(self) -> None:
        self._asked = 0  # the first signal
        self._agreed = False  # all processes of the run stop here
        self._alone = jax.process_count() == 1
        self._at_once = ""  # what may be left in the middle
        self._before: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None
        self._wakeup = -1

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            heard = _SIGNALS if self._alone else (signal.SIGINT,)
            self._before = {number: signal.signal(number, self._handle) for number in heard}
            threading.Thread(target=self._watch, args=(self._pipe[0],), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._pipe:
            signal.set_wakeup_fd(self._wakeup)
            for number, handler in self._before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
            os.close(self._pipe[1])  # the watcher ends, and closes its own end
            self._pipe = None

    def asked(self) -> int:
        """The signal by which any process of the run was asked to stop, 0 for none. All of them
        ask at the same time."""
        if self._alone:
            return self._asked
        point = next(_POINTS)
        self._agreed = self._agreed or multihost_utils.reached_preemption_sync_point(point)
        return (self._asked or signal.SIGTERM) if self._agreed else 0

    def check(self, where: str) -> None:
        """Raises Stopped where a stop was asked for: all is saved, as `where` says."""
        if signum := self.asked():
            raise Stopped(signum, where)

    @contextlib.contextmanager
    def at_once(self, doing: str) -> Iterator[None]:
        """Within, nothing is to be saved, so that a stop waits for nothing. Of several processes
        each would leave the others waiting: they go on to where all of them `check`."""
        self._at_once = doing if self._alone else ""
        try:
            if self._at_once and self._asked:
                raise Stopped(self._asked, doing, at_once=True)
            yield
        finally:
            self._at_once = ""

    def _handle(self, signum: int, frame: Any) -> None:
        first, self._asked = not self._asked, self._asked or signum
        if first and not self._alone:
            os.kill(os.getpid(), signal.SIGTERM)  # which the preemption service hears
        if self._at_once:
            raise Stopped(signum, self._at_once, at_once=True)

    def _watch(self, pipe: int) -> None:
        """The interpreter may be busy for minutes, as in a compilation; this thread is not."""
        asked = 0.0  # when
        while received := os.read(pipe, 1):
            signum, now = received[0], time.monotonic()
            echo = signum == signal.SIGTERM and now - asked < ECHO
            if signum in _SIGNALS and asked and not echo:
                show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
                print(f"{show_cursor}stopped at once: what was saved is there", file=sys.stderr)
                sys.stderr.flush()
                os._exit(128 + signum)
            if signum in _SIGNALS and not asked:
                asked = now
                again = f"{_name(signum)} again: at once"
                print(f"stopping after this step ({again})", file=sys.stderr)
                sys.stderr.flush()
        os.close(pipe)
