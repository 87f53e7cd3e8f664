"""The command line: `rdbcl help` says what there is, from the tables of commands."""

from __future__ import annotations

import pathlib
import sys

from absl import flags

from rdbcl_jax.commands import HELP, Command, Run, config_file, start
from rdbcl_jax.spelling import did_you_mean

HEAD = "rdbcl: continual RL with verifiable rewards for vision-language models"
FOOT = """\
  rdbcl COMMAND --help
      All flags of a command. Every field of a config is one: rdbcl_jax/config.py describes them."""


def run() -> None:
    """Entry point of the console script."""
    name, *argv = sys.argv[1:] or ["help"]
    if name in HELP and argv[:1] and argv[0] not in HELP:  # help COMMAND
        name, argv = argv[0], ["--help"]
    if name in COMMANDS:
        start(COMMANDS[name], argv)
    every = COMMANDS | _lab()
    if name in every:
        start(every[name], argv)
    elif name in HELP or not name:
        print("\n\n".join([HEAD, "\n".join([*(c.help() for c in every.values()), FOOT])]))
    else:
        near = did_you_mean(name, every)
        print(f"rdbcl: unknown command {name!r}{near} (rdbcl help)", file=sys.stderr)
        sys.exit(2)


def _lab() -> dict[str, Command]:
    """The laboratory's commands, imported only where they may be needed."""
    from rdbcl_jax.lab.commands import COMMANDS

    return COMMANDS


def _train() -> Run:
    config = config_file()
    flags.mark_flag_as_required("config")
    workdir = flags.DEFINE_string("workdir", None, "Where everything is written.", required=True)
    distributed = flags.DEFINE_bool(
        "distributed", False, "One of several processes: calls jax.distributed.initialize first."
    )

    def run(args: list[str]) -> None:
        if distributed.value:
            from rdbcl_jax.distributed import join_processes

            join_processes()
        from rdbcl_jax.training.run import train

        train(config.value, workdir.value)

    return run


def _check() -> Run:
    config = config_file()
    records = flags.DEFINE_multi_string(
        "records", [], "Data to check instead of the config's tasks; repeatable."
    )

    def run(args: list[str]) -> None:
        from rdbcl_jax.training.check import check_all

        if args or not (config.value or records.value):
            sys.exit("rdbcl check: give --config=FILE, --records=SOURCE or both")
        found, problems = check_all(config.value, records.value)
        for problem in problems:
            print(problem)
        print(f"good records: {found}, problems: {len(problems)}")
        sys.exit(bool(problems))

    return run


def _memory() -> Run:
    config = config_file()
    flags.mark_flag_as_required("config")

    def run(args: list[str]) -> None:
        from rdbcl_jax.config import RunConfig
        from rdbcl_jax.training.footprint import footprint

        print("\n".join(footprint(RunConfig.of(config.value)).lines()))

    return run


def _report() -> Run:
    out = flags.DEFINE_string("out", "report", "Where a comparison of runs is written.")

    def run(args: list[str]) -> None:
        from rdbcl_jax.reporting.compare import compare_runs
        from rdbcl_jax.reporting.report import write_report

        directories = [pathlib.Path(a) for a in args]
        if not directories:
            sys.exit("rdbcl report: give one or more workdirs")
        if len(directories) == 1:
            print(write_report(directories[0]))
        else:
            compare_runs(directories, out.value)
            print(pathlib.Path(out.value))

    return run


def _export() -> Run:
    config = config_file("Config file of the run; default: what its results.json says.")
    out = flags.DEFINE_string(
        "out", None, "Where the policy is written: a new directory.", required=True
    )
    dtype = flags.DEFINE_enum(
        "dtype", "", ["", "float32", "bfloat16", "float16"], "Of the weights; empty: the base's."
    )

    def run(args: list[str]) -> None:
        from rdbcl_jax.export import export

        if len(args) != 1:
            sys.exit("rdbcl export: give one policy, WORKDIR or WORKDIR@K")
        print(export(args[0], out.value, config.value, dtype.value))

    return run


def _collect() -> Run:
    config = config_file("Config file of the run; default: what its results.json says.")
    out = flags.DEFINE_string("out", None, "Where the files are written.", required=True)
    samples = flags.DEFINE_integer("samples", 4, "Responses to each record.", lower_bound=1)
    limit = flags.DEFINE_integer("limit", 0, "Most records of each task; 0: all.", lower_bound=0)

    def run(args: list[str]) -> None:
        from rdbcl_jax.training.collect import collect

        if len(args) != 1:
            sys.exit("rdbcl collect: give one workdir")
        found = collect(args[0], out.value, config.value, samples=samples.value, limit=limit.value)
        for task, (kept, tried) in found.items():
            print(f"{pathlib.Path(out.value) / task}.parquet: {kept} of {tried} responses")

    return run


COMMANDS = {
    command.name: command
    for command in (
        Command(
            "train",
            "Learns a sequence of tasks.",
            "--config=FILE --workdir=DIR [--config.FIELD=VALUE ...]",
            """\
Learns a sequence of tasks; a second call with the same workdir resumes, after a kill too. SIGTERM
and Ctrl-C save first. Writes results.json, report.html, samples/, metrics.jsonl, tb/ and
checkpoints/ to the workdir.""",
            _train,
        ),
        Command(
            "check",
            "Lists all that is wrong with records.",
            "--config=FILE [--config.FIELD=VALUE ...] [--records=SOURCE ...]",
            """\
Reads every record as a run would: pictures decoded, prompts encoded and measured against the
sizes allowed, gold answers parsed. --records: those of a file, a pattern or tfds:NAME/SPLIT,
instead of the config's tasks, or without a config. Lists all problems; exit status 1 if any.""",
            _check,
        ),
        Command(
            "memory",
            "Says what a run will hold on one device.",
            "--config=FILE [--config.FIELD=VALUE ...]",
            """\
Reads config.json, tokenizer and processor files of model.path, no weights: parameters, optimizer,
earlier policies, and what an update and the sampler need beside them.""",
            _memory,
        ),
        Command(
            "report",
            "Shows one run, or compares several.",
            "DIR [DIR ...] [--out=DIR]",
            """\
One workdir: writes its report.html again. Several: compares the runs in one HTML page, a
Markdown and a LaTeX table, in --out (default: ./report).""",
            _report,
        ),
        Command(
            "export",
            "Writes a policy as a Hugging Face directory.",
            "WORKDIR[@K] --out=DIR [--dtype=bfloat16]",
            """\
The policy after K tasks (default: the last finished one) as a Hugging Face directory:
weights with adapters merged, config, tokenizer and processor files.""",
            _export,
        ),
        Command(
            "collect",
            "Keeps a run's right responses, to learn from.",
            "WORKDIR --out=DIR [--config=FILE] [--samples=4] [--limit=0]",
            """\
For each finished task, the right responses to its training records of the policy that had just
learned it: TASK.parquet, from which config.method=rft_sft learns. A run with functions, verifiers
or suites of its own needs its config file: nothing is imported because a workdir says so.""",
            _collect,
        ),
    )
}

if __name__ == "__main__":
    run()
