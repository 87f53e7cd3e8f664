"""Where a run's numbers, texts and pictures go beside its own files: TensorBoard, Weights & Biases,
Trackio. One interface; `log.to` chooses.

(Not clu.metric_writers: its TensorBoard writer needs TensorFlow, and it has no other service.)
"""

from __future__ import annotations

import html
import importlib
import io
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from rdbcl_jax.config import LogConfig
from rdbcl_jax.json_files import plain, write_text


class Writer(Protocol):
    """Steps are global; what is written again of a step replaces what was there before a kill."""

    def config(self, values: Mapping[str, Any]) -> None: ...

    def scalars(self, values: Mapping[str, float], step: int) -> None: ...

    def text(self, name: str, markdown: str, step: int) -> None: ...

    def picture(self, name: str, png: bytes, step: int) -> None: ...

    def close(self) -> None:
        """Safe to call twice."""


class Tracker:
    """Weights & Biases, or Trackio, whose functions have the same names.

    A run that resumes goes on under the same identity, which the workdir keeps. Offline modes are
    the services' own: WANDB_MODE=offline; Trackio is local unless told otherwise.
    """

    def __init__(self, service: str, workdir: Path, project: str):
        self.service, self.workdir, self.project = service, workdir, project
        self._module = importlib.import_module(service)
        self._run: Any = None

    def config(self, values: Mapping[str, Any]) -> None:
        path = self.workdir / f"{self.service}.id"
        if not path.exists():
            write_text(path, uuid.uuid4().hex[:8])
        own = path.read_text().strip()
        name = f"{self.workdir.resolve().name}-{own}"
        if self.service == "wandb":
            self._run = self._module.init(
                project=self.project,
                id=own,
                name=name,
                dir=self.workdir,
                config=plain(values),
                resume="allow",
                settings=self._module.Settings(silent=True, console="off"),
            )
            # rows of steps that a killed run does again may come twice
            self._run.define_metric("*", step_metric="step")
        else:
            self._run = self._module.init(
                project=self.project, name=name, config=plain(values), resume="allow", embed=False
            )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def text(self, name: str, markdown: str, step: int) -> None:
        if self.service == "wandb":
            value = self._module.Html(f"<pre>{html.escape(markdown)}</pre>")
        else:
            value = self._module.Markdown(markdown)
        self._run.log({name: value, "step": step})

    def picture(self, name: str, png: bytes, step: int) -> None:
        image = self._module.Image(Image.open(io.BytesIO(png)).convert("RGB"))
        self._run.log({name: image, "step": step})

    def close(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.finish()


def make_writers(log: LogConfig, workdir: Path, resume_step: int) -> list[Writer]:
    """Those of `log.to`."""
    return [
        _board(workdir / "tb", resume_step)
        if service == "tensorboard"
        else Tracker(service, workdir, log.project)
        for service in dict.fromkeys(log.to)
    ]


def _board(folder: Path, resume_step: int) -> Writer:
    # its library imports torch where that is installed: two seconds, which no error waits for
    from rdbcl_jax.reporting.board import Board

    return Board(folder, resume_step)
