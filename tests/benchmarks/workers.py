"""The runner's end: worker processes that stay alive, and measuring them in turn."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[2]
_SETTLE = 0.05  # seconds: idle threads of the program before spin for a while
_SHARING = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # several workers on one accelerator


class WorkerError(RuntimeError):
    """A worker ended; the message ends with what it wrote last."""

    def __init__(self, worker: Worker, message: str):
        super().__init__(message)
        self.worker = worker


class Worker:
    """One measured program: `python -m tests.benchmarks.<module>` of some interpreter."""

    def __init__(self, module: str, log: pathlib.Path, python: str = sys.executable):
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        path = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
        with open(log, "w") as stderr:
            self.process = subprocess.Popen(
                [python, "-m", f"tests.benchmarks.{module}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=ROOT,
                env={**_SHARING, **os.environ, "PYTHONPATH": os.pathsep.join(path)},
            )

    def send(self, **request) -> None:
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def receive(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise self._ended()
        return json.loads(line)

    def ask(self, **request) -> dict:
        self.send(**request)
        return self.receive()

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def _ended(self) -> WorkerError:
        code = self.process.wait()
        tail = self.log.read_text()[-2000:]
        return WorkerError(self, f"worker ended with {code}; {self.log} ends with\n{tail}")


@contextlib.contextmanager
def started(**programs: tuple[Worker, dict]) -> Iterator[tuple[dict[str, Worker], dict]]:
    """Sets all programs up at the same time: (workers, what each says about itself)."""
    workers = {name: worker for name, (worker, _) in programs.items()}
    try:
        for worker, request in programs.values():
            worker.send(**request)
        yield workers, {name: worker.receive() for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()


def alternate(
    workers: dict[str, Worker],
    *,
    repeats: int,
    warmup: int,
    requests: dict[str, dict] | None = None,
    together: bool = True,
) -> dict[str, list[dict[str, float]]]:
    """One step of each worker after the other, `repeats` times; what each step replied.

    The warm-up's steps are not kept.

    Args:
      requests: what to send with a worker's step.
      together: in the warm-up's first step all compile, and run, at the same time; not where the
        memory would not hold all of them.
    """
    requests = requests or {}
    if together:
        for name, worker in workers.items():
            worker.send(**requests.get(name, {}))
        for worker in workers.values():
            worker.receive()
        warmup -= 1
    replies: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    for _ in range(warmup + repeats):
        for name, worker in workers.items():
            time.sleep(_SETTLE)
            replies[name].append(worker.ask(**requests.get(name, {})))
    return {name: steps[warmup:] for name, steps in replies.items()}
