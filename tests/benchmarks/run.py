"""Benchmarks: `python -m tests.benchmarks.run --suite=NAME --out=DIR [--small]`.

Every measured program is a process that stays alive; the runner asks each for a step in turn, so
that what disturbs the machine disturbs all of them, and reports ratios round by round. DIR gets
NAME.json (every repeat) and NAME.md (a table); both grow row by row.

  peers    GRPO steps of TRL and tunix over ours: same architecture, sizes, dtype, forced lengths
  prefix   ours without shared prompts over ours with them, and what the token count predicts
  tail     sampling of long-tailed lengths over as many steps in which no rollout has ended
  limit    FLOP/s and bytes/s over what the machine was measured to do in the same rounds
  drafts   a decode step of k times as many rows: what drafted tokens could gain at most
  compile  how long the quickstart takes to its first step, and with its programs compiled before
  scaling  one axis doubled: time and memory over the base's, and over the arithmetic's

The peers run in the interpreters that --trl-python and --tunix-python name, by default this one
(`pip install -e '.[bench]'` brings TRL; google-tunix==0.1.7 asks for an older safetensors, so it
needs an environment of its own). A peer that is not installed is left out, and the table says so.
"""

from __future__ import annotations

import argparse
import datetime
import os
import pathlib
import platform
import subprocess
import sys

from tests.benchmarks.suites import SUITES, Settings
from tests.benchmarks.tables import Results


def main(argv: list[str] | None = None) -> None:
    flags = _parser().parse_args(argv)
    chosen = list(SUITES) if flags.suite == "all" else [flags.suite]
    pythons = {"trl": flags.trl_python, "tunix": flags.tunix_python}
    settings = Settings(
        out=flags.out,
        small=flags.small,
        sizes=tuple(flags.sizes.split(",")) if flags.sizes else None,
        repeats=flags.repeats,
        programs=tuple(flags.programs.split(",")),
        pythons={name: python for name, python in pythons.items() if _has(python, name)},
    )
    for name in chosen:
        results = Results(name, flags.out, _header())
        SUITES[name](settings, results)
        results.write()
        print(results.markdown())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--suite", required=True, choices=[*SUITES, "all"])
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--small", action="store_true", help="seconds only: does it run?")
    parser.add_argument("--sizes", help="of peers and limit, e.g. small,medium,large")
    parser.add_argument("--repeats", type=int, help="default: by size, 3 to 9")
    parser.add_argument("--programs", default="ours,trl,tunix")
    parser.add_argument("--trl-python", default=sys.executable)
    parser.add_argument("--tunix-python", default=sys.executable)
    return parser


def _has(python: str, package: str) -> bool:
    """Whether the interpreter has the package."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    return subprocess.run([python, "-c", code], cwd="/", check=False).returncode == 0


def _header() -> dict:
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": {
            "cpu": _cpu_model(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
            "system": platform.platform(),
            "load_at_start": os.getloadavg()[0],
        },
    }


def _cpu_model() -> str:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


if __name__ == "__main__":
    main()
