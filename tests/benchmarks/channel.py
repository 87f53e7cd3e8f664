"""A worker's end of the line to the runner: JSON lines on stdin and stdout, and its own memory.

Standard library only, for the peers run in interpreters of their own.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata


class Channel:
    """Receives requests, sends replies. Whatever libraries print goes to stderr."""

    def __init__(self):
        self._replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def receive(self) -> dict | None:
        """The next request; None when the runner has hung up."""
        line = sys.stdin.readline()
        return json.loads(line) if line else None

    def send(self, reply: dict) -> None:
        self._replies.write(json.dumps(reply) + "\n")
        self._replies.flush()


class Memory:
    """Host memory that a step adds to what the process holds, at its peak. Linux only."""

    def start(self) -> None:
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")  # the peak begins anew
        self._before = _status("VmRSS")

    def added(self) -> int:
        """Bytes at the peak since `start`, less what was held then."""
        return _status("VmHWM") - self._before


def versions(*packages: str) -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _status(field: str) -> int:
    with open("/proc/self/status") as f:
        line = next(line for line in f if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024
