"""What libraries do and say while a run goes on: what XLA compiles; warnings, which go to a file
and not into the display."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from rdbcl_jax import programs

# jitted functions that take long, as the display calls them
PROGRAMS = {
    "sample": "sampler",
    "update": "update",
    "compiled_logprobs": "log-probs",
}
_LOGS = ("jax._src.interpreters.pxla", "jax._src.dispatch")  # of what is compiled, and when it is
_EVENT = re.compile(
    r"(Compiling|Finished XLA compilation of) (?:jit\()?(\w+)(?:.* in ([\d.]+) sec)?"
)
_KEPT_STARTS = "Error (reading|writing) persistent compilation cache entry"
_KEPT = re.compile(rf"{_KEPT_STARTS} for '([^']*)': (\w+): ([^\n]*)")
_KINDS: list[type[Exception]] = [OSError, *OSError.__subclasses__()]
_OF_FILES = {"Timeout", *(kind.__name__ for kind in _KINDS)}  # of a lock, too


class Compilations(logging.Filter):
    """Within a `with` block, tells of each of `PROGRAMS` that is compiled: its name and how many
    there were, then None once none is. What jax logs of it is seen, and goes no further.

    Attributes:
      seconds: of every program that was compiled, or found where they are kept, by its name; all
        but `PROGRAMS` are "others".
    """

    def __init__(self, tell: Callable[[str | None], None], expected: int):
        super().__init__()
        self._tell, self._expected, self._count = tell, expected, 0
        self._now: list[tuple[str, str]] = []  # what is compiled, and what was told of it
        self._levels: list[int] = []
        self.seconds: dict[str, list[float]] = {}

    def __enter__(self) -> Compilations:
        for logger in map(logging.getLogger, _LOGS):
            self._levels.append(logger.level)
            logger.setLevel(logging.DEBUG)
            logger.addFilter(self)
        return self

    def __exit__(self, *_: object) -> None:
        for logger, level in zip(map(logging.getLogger, _LOGS), self._levels, strict=True):
            logger.removeFilter(self)
            logger.setLevel(level)

    def __str__(self) -> str:
        """How many programs there were, and in how many seconds."""
        parts = [
            f"{name} {len(seconds)} in {sum(seconds):.1f} s"
            for name, seconds in sorted(self.seconds.items(), key=lambda item: -sum(item[1]))
        ]
        return ", ".join(parts) or "none"

    def filter(self, record: logging.LogRecord) -> bool:
        found = _EVENT.match(record.getMessage())
        program = PROGRAMS.get(found[2]) if found else None
        if program and found and found[1] == "Compiling":
            self._count += 1
            total = max(self._count, self._expected)
            self._now.append((program, f"compiling {program} ({self._count} of {total})"))
            self._tell(self._now[-1][1])
        elif found and found[1] != "Compiling":
            self.seconds.setdefault(program or "others", []).append(float(found[3]))
            if program:
                self._end(program)
        return record.levelno > logging.DEBUG

    def _end(self, program: str) -> None:
        """One of that name is there; others may still be compiled beside it."""
        if begun := next((pair for pair in self._now if pair[0] == program), None):
            self._now.remove(begun)
        self._tell(self._now[-1][1] if self._now else None)


class KeptPrograms(logging.Filter):
    """Hears where JAX could not read or write a compiled program that is kept: one that is damaged
    is removed, so that it can be replaced; anything else is told once."""

    def __init__(self, tell: Callable[[str], None]):
        super().__init__()
        self._tell, self._told = tell, False

    def filter(self, record: logging.LogRecord) -> bool:
        found = _KEPT.search(record.getMessage())
        if not found:
            return True
        verb, name, kind, why = found.groups()
        if verb == "reading" and kind not in _OF_FILES and programs.forget(name):
            self._tell(
                f"note: {name}, a compiled program that was kept, is damaged: it is replaced"
            )
        elif not self._told:
            self._told = True
            self._tell(f"note: compiled programs cannot be kept or read: {name}: {kind}: {why}")
        return True


@contextlib.contextmanager
def warnings_to(path: Path, tell: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Within the block what libraries warn of goes to the end of a file, not to the terminal; but
    `tell` is told of what `KeptPrograms` hears."""
    handler = logging.FileHandler(path, delay=True, encoding="utf-8")
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    known = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict)]
    replaced = [
        (logger, other)
        for logger in (logging.root, *known)
        for other in logger.handlers
        if type(other) is logging.StreamHandler
        or getattr(other, "stream", None) in (sys.stderr, sys.stdout)
    ]
    alone = {logger for logger, _ in replaced if not logger.propagate} | {logging.root}
    for logger, other in replaced:
        logger.removeHandler(other)
    for logger in alone:
        logger.addHandler(handler)
    heard, source = KeptPrograms(tell), logging.getLogger("py.warnings")
    source.addFilter(heard)
    logging.captureWarnings(True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("always", _KEPT_STARTS)  # each program, not one for all
            yield
    finally:
        logging.captureWarnings(False)
        source.removeFilter(heard)
        for logger in alone:
            logger.removeHandler(handler)
        for logger, other in replaced:
            logger.addHandler(other)
        handler.close()
