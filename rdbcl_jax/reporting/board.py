"""TensorBoard events, written by the caller's own thread: one that fails there, as on a full disk,
would leave a queue that nobody empties, and a run that waits for ever."""

from __future__ import annotations

import io
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from PIL import Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import scalar
from tensorboardX.summary import text as text_summary

from rdbcl_jax.json_files import plain, writing

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

    def config(self, values: Mapping[str, Any]) -> None:
        text = json.dumps(plain(values), indent=2, ensure_ascii=False)
        self.text("config", "\n".join(f"    {line}" for line in text.splitlines()), 0)

    def text(self, name: str, markdown: str, step: int) -> None:
        with writing(self.folder):
            self._add(step=step, summary=text_summary(name, markdown))

    def picture(self, name: str, png: bytes, step: int) -> None:
        width, height = Image.open(io.BytesIO(png)).size
        image = Summary.Image(encoded_image_string=png, height=height, width=width, colorspace=3)
        with writing(self.folder):
            self._add(step=step, summary=Summary(value=[Summary.Value(tag=name, image=image)]))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
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
