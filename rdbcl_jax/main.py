"""The command line.

rdbcl train --config=configs/quickstart.py --workdir=DIR [--config.FIELD=VALUE …]
rdbcl report DIR [DIR …] [--out=DIR]
"""

from __future__ import annotations

import logging
import os
import pathlib
import sys

from absl import app, flags
from ml_collections import config_flags

USAGE = """rdbcl: continual RL with verifiable rewards for vision-language models

  rdbcl train --config=FILE --workdir=DIR [--config.FIELD=VALUE ...]
      Learns a sequence of tasks; a second call with the same workdir resumes. Writes results.json,
      report.html, samples/, metrics.jsonl, tb/ and checkpoints/ to the workdir.
  rdbcl report DIR [DIR ...] [--out=DIR]
      One workdir: writes its report.html again. Several: compares the runs in one HTML page, a
      Markdown and a LaTeX table, in --out (default: ./report).
  rdbcl COMMAND --help
      All flags of a command. Every field of a config is one: rdbcl_jax/config.py describes them.
"""


def run() -> None:
    """Entry point of the console script."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command not in COMMANDS:
        wrong = command not in ("", "help", "-h", "--help", "--helpfull")
        message = f"rdbcl: unknown command {command!r}\n\n{USAGE}" if wrong else USAGE
        print(message, file=sys.stderr if wrong else sys.stdout)
        sys.exit(2 if wrong else 0)
    COMMANDS[command](["rdbcl " + command, *sys.argv[2:]])


def _train(argv: list[str]) -> None:
    config = config_flags.DEFINE_config_file("config", None, "Config file, see configs/.")
    workdir = flags.DEFINE_string("workdir", None, "Where everything is written.")
    distributed = flags.DEFINE_bool(
        "distributed", False, "One of several processes: calls jax.distributed.initialize first."
    )
    flags.mark_flags_as_required(["config", "workdir"])

    def main(_):
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # of missing torch
        for noisy in ("absl", "orbax", "grain", "jax"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        import jax

        if distributed.value:
            _join_processes(jax)
        from rdbcl_jax.continual import train

        try:
            train(config.value, workdir.value)
        except (ValueError, FileNotFoundError) as error:
            if os.environ.get("RDBCL_TRACEBACK"):
                raise
            sys.exit(f"rdbcl train: {error}\n(RDBCL_TRACEBACK=1 shows where this was raised)")

    app.run(main, argv=argv)


def _join_processes(jax) -> None:
    """TPU pods and SLURM tell JAX all it needs; elsewhere three variables do."""
    number = {
        "num_processes": os.environ.get("JAX_NUM_PROCESSES"),
        "process_id": os.environ.get("JAX_PROCESS_ID"),
    }
    jax.distributed.initialize(
        coordinator_address=os.environ.get("JAX_COORDINATOR_ADDRESS"),
        **{name: int(value) for name, value in number.items() if value is not None},
    )


def _report(argv: list[str]) -> None:
    out = flags.DEFINE_string("out", "report", "Where a comparison is written.")

    def main(args):
        from rdbcl_jax.reporting.compare import compare_runs
        from rdbcl_jax.reporting.report import write_report

        directories = [pathlib.Path(a) for a in args[1:]]
        if not directories:
            sys.exit("rdbcl report: give one or several workdirs")
        try:
            if len(directories) == 1:
                print(write_report(directories[0]))
            else:
                compare_runs(directories, out.value)
                print(pathlib.Path(out.value))
        except FileNotFoundError as error:
            sys.exit(f"rdbcl report: {error}")

    app.run(main, argv=argv)


COMMANDS = {"train": _train, "report": _report}

if __name__ == "__main__":
    run()
