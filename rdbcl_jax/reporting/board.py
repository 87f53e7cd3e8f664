"""TensorBoard events, written by the caller's own thread: one that fails there, as on a full disk,
would leave a queue that nobody empties, and a run that waits for ever."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Mapping

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from rdbcl_jax.json_files import writing

_FLUSH_SECONDS = 30.0


class Board:
    """One file of events in `folder`.

    Args:
      resume_step: TensorBoard hides what earlier files hold of this step and later ones.
    """

    def __init__(self, folder: pathlib.Path, resume_step: int = 0):
        self.folder, self._open = folder, True
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # two files of one second must not collide
            self._events = EventsWriter(str(folder / "events"), f".{resume_step:08d}")
            if resume_step:
                self._add(step=resume_step, file_version="brain.Event:2")
                self._add(step=resume_step, session_log=SessionLog(status=SessionLog.START))
        self._flushed = time.monotonic()

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        with writing(self.folder):
            for name, value in values.items():
                self._add(step=step, summary=scalar(name, value))
            if time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self._events.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        """Safe to call twice."""
        was_open, self._open = self._open, False
        if was_open:
            with writing(self.folder):
                self._events.close()

    def _add(self, **event) -> None:
        self._events.write_event(Event(wall_time=time.time(), **event))
