"""Symbolic equality of mathematical answers, in a process of its own.

math_verify guards itself with signals, which fail outside the main thread: rewards would then be
silently 0 wherever they are computed in a thread. Without that guard, an answer as short as
`9^{9^{9}}` computes for ever. So its timeouts are off and the comparison runs in one long-lived
child process (`math_worker`), which the kernel ends once one question has used up its CPU time;
a new one is started for the next question.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import threading

from rdbcl_jax.rewards import math_worker

LONGEST = 512  # characters of an answer; parsing grows quickly with length


def prepare(gold: str) -> str:
    """Checks that the gold answer is one expression, in LaTeX or plain.

    Raises:
      ValueError: it cannot be parsed.
    """
    if not _equal(gold, gold):
        raise ValueError(f"expected one mathematical expression (LaTeX or plain), found {gold!r}")
    return gold


def compare(answer: str, gold: str) -> float:
    """1 if answer and gold are symbolically equal; 0 if not, or unparsable, or out of time."""
    return float(_equal(gold, answer))


@functools.lru_cache(maxsize=65536)
def _equal(gold: str, answer: str) -> bool:
    return max(len(gold), len(answer)) <= LONGEST and _WORKER.ask(gold, answer)


class _Worker:
    """One child process, started when first asked; questions are asked one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0  # a fork must not share its parent's pipes

    def ask(self, gold: str, answer: str) -> bool:
        with self._lock:
            if self._process is None or self._owner != os.getpid():
                self._process, self._owner = _started(), os.getpid()
            process = self._process
            assert process.stdin and process.stdout  # they are pipes
            try:
                process.stdin.write(json.dumps([gold, answer]) + "\n")
                process.stdin.flush()
                reply = process.stdout.readline()
            except BrokenPipeError:
                reply = ""
            if not reply:  # out of time or memory
                process.wait()
                self._process = None
            return reply == "equal\n"


def _started() -> subprocess.Popen[str]:
    # -P: the folder of the script stays off the path, since our module names are common words
    process = subprocess.Popen(
        [sys.executable, "-P", math_worker.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    )
    if process.stdout and process.stdout.readline() == "ready\n":
        return process
    raise RuntimeError(
        "the math verifier did not start: does `python -c 'import math_verify'` work?"
    )


_WORKER = _Worker()
