"""The command line: `rdbcl help` says what there is, from the tables of commands."""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import pathlib
import shutil
import sys
from typing import Any

from rdbcl_jax.commands import (
    HELP,
    Command,
    Run,
    Usage,
    add_config,
    add_repeatable,
    count,
    errors_in_one_line,
    natural,
    read_config,
    start,
)
from rdbcl_jax.config import RunConfig
from rdbcl_jax.messages import did_you_mean

HEAD = """\
rdbcl: continual RL with verifiable rewards for vision-language models

  rdbcl train --config=configs/quickstart.py --workdir=/tmp/quickstart
"""
FOOT = """
`rdbcl COMMAND --help` has a command's flags and examples; every field of a config is a flag,
--config.FIELD=VALUE. An error is one line; RDBCL_TRACEBACK=1 gives Python's whole traceback."""


def run() -> None:
    """Entry point of the console script."""
    name, *argv = sys.argv[1:] or ["help"]
    if name in HELP and argv[:1] and argv[0] not in HELP:  # help COMMAND
        name, argv = argv[0], ["--help"]
    if name in COMMANDS:
        start(COMMANDS[name], argv)
    lab = _lab()
    if name in lab:
        start(lab[name], argv)
    if name in HELP:
        with errors_in_one_line("help"):
            print(_help(COMMANDS, lab), flush=True)
    else:
        near = did_you_mean(name, COMMANDS | lab)
        print(f"rdbcl: unknown command {name!r}{near} (rdbcl help)", file=sys.stderr)
        sys.exit(2)


def _help(library: dict[str, Command], lab: dict[str, Command]) -> str:
    lines = [HEAD]
    for title, commands in (("Commands", library), ("The laboratory", lab)):
        lines += [f"{title}:", *(f"  {c.name:<10}{c.summary}" for c in commands.values()), ""]
    return "\n".join(lines).rstrip() + "\n" + FOOT


def _lab() -> dict[str, Command]:
    """The laboratory's commands, imported only where they may be needed."""
    from rdbcl_jax.lab.commands import COMMANDS

    return COMMANDS


def _init(parser: argparse.ArgumentParser) -> Run:
    parser.add_argument("directory", metavar="DIR", help="A new directory.")

    def run(args: argparse.Namespace) -> None:
        from rdbcl_jax.toy.starter import write_starter

        for path in write_starter(args.directory):
            print(path)
        print(f"\nNow: rdbcl check --config={args.directory}/config.py")

    return run


def _train(parser: argparse.ArgumentParser) -> Run:
    add_config(parser, required=True)
    parser.add_argument(
        "--workdir", metavar="DIR", required=True, help="Where everything is written."
    )
    parser.add_argument(
        "--distributed",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="One of several processes: calls jax.distributed.initialize first.",
    )

    def run(args: argparse.Namespace) -> None:
        config = read_config(args)
        print(_reading(RunConfig.of(config)), flush=True)
        if args.distributed:
            from rdbcl_jax.distributed import join_processes
            from rdbcl_jax.lock import check_free

            check_free(args.workdir)
            join_processes()
        from rdbcl_jax.training.run import train

        train(config, args.workdir)

    return run


def _check(parser: argparse.ArgumentParser) -> Run:
    add_config(parser)
    text = "Data to check instead of the config's tasks; repeatable."
    add_repeatable(parser, "--records", "SOURCE", text)
    text = "Layout of --records: scienceqa and the like, or a table of columns as in a config."
    parser.add_argument("--format", type=_format, default="", help=text)

    def run(args: argparse.Namespace) -> None:
        if not (args.config or args.records):
            raise Usage("give --config=FILE, --records=SOURCE or both")
        config = read_config(args)
        text = (
            f"reading {', '.join(args.records)}" if args.records else _reading(RunConfig.of(config))
        )
        print(text, file=sys.stderr, flush=True)
        from rdbcl_jax.training.check import check_all

        found = check_all(config, args.records, args.format)
        for problem in found.problems:
            print(problem)
        for note in found.notes:
            print(f"note: {note}")
        if len(found.counts) > 1:
            for name, count in found.counts.items():
                print(f"{name}: {count}")
        print(f"good records: {sum(found.counts.values())}, problems: {len(found.problems)}")
        sys.exit(bool(found.problems))

    return run


def _reading(config: RunConfig) -> str:
    """What is said first: libraries that take seconds, and perhaps many records, come before any
    other line."""
    names = [*config.sequence, *config.evaluation.tasks]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"reading the records of {', '.join(names[:8])}{more}"


def _format(text: str) -> Any:
    """A layout's name, or a table as Python or JSON writes it."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        expected = "expected a table such as \"{'prompt': '{query}', 'answer': 'label'}\""
        raise argparse.ArgumentTypeError(f"is {text!r}, {expected}") from None


def _prepare(parser: argparse.ArgumentParser) -> Run:
    parser.add_argument("name", metavar="NAME", help="The data set.")
    parser.add_argument("--source", metavar="DIR", required=True, help="Where it was downloaded.")
    parser.add_argument("--out", metavar="DIR", required=True, help="Where records are written.")
    parser.add_argument(
        "--seed", metavar="N", type=natural, default=0, help="Of splits that are made; default 0."
    )

    def run(args: argparse.Namespace) -> None:
        from rdbcl_jax.data.preparing import prepare

        found = prepare(args.name, args.source, args.out, args.seed)
        for problem in found.problems:
            print(problem)
        for task, counts in found.counts.items():
            print(f"{task}: {', '.join(f'{split} {count}' for split, count in counts.items())}")
        print(f"{found.fragment} (left out: {len(found.problems)})")

    return run


def _config(parser: argparse.ArgumentParser) -> Run:
    add_config(parser)
    parser.add_argument(
        "section",
        metavar="SECTION",
        nargs="?",
        default="",
        help="A section (kl), a field (kl.beta) or a field's last name (beta); default: all.",
    )

    def run(args: argparse.Namespace) -> None:
        import rdbcl_jax.lab.config  # noqa: F401  # brings sections, too
        from rdbcl_jax.json_files import flatten
        from rdbcl_jax.settings import described

        config = read_config(args)
        values = flatten(config.to_dict()) if config else {}
        width = min(shutil.get_terminal_size().columns, 100)
        print(described(args.section, values, width))

    return run


def _plan(parser: argparse.ArgumentParser) -> Run:
    add_config(parser, required=True)
    text = "The chips: v5e:2x4, v5p:2x2x4, v6e:1x1, …; gpu:h100x8; or cpu, this machine."
    parser.add_argument("--topology", metavar="NAME", required=True, help=text)
    parser.add_argument("--json", action="store_true", help="Print all that is known, as JSON.")

    def run(args: argparse.Namespace) -> None:
        config = read_config(args)
        import json

        import jax

        jax.config.update("jax_platforms", "cpu")  # programs are compiled and not run
        from rdbcl_jax.planning.chips import topology_of

        run, topology = RunConfig.of(config), topology_of(args.topology)
        say = functools.partial(print, file=sys.stderr, flush=True)
        how = "computing" if topology.devices is None else "compiling the programs of"
        say(f"{how} a run of {args.config} for {topology.name}: large models take minutes")
        from rdbcl_jax.planning.make import make_plan
        from rdbcl_jax.planning.table import lines

        plan = make_plan(run, topology, say)
        print(json.dumps(plan.to_dict(), indent=1) if args.json else "\n".join(lines(plan)))
        sys.stdout.flush()
        sys.exit(not plan.fits)

    return run


def _report(parser: argparse.ArgumentParser) -> Run:
    parser.add_argument("workdirs", metavar="DIR", nargs="+", help="A run's workdir.")
    parser.add_argument(
        "--out", metavar="DIR", default="", help="Where a comparison goes; default: ./report."
    )

    def run(args: argparse.Namespace) -> None:
        from rdbcl_jax.remote import of_this_machine, opened
        from rdbcl_jax.reporting.compare import compare_runs
        from rdbcl_jax.reporting.report import write_report

        if len(args.workdirs) == 1 and args.out:
            raise Usage("--out is for several runs; the report of one lies in its workdir")
        with contextlib.ExitStack() as stack:
            folders = [stack.enter_context(opened(name)) for name in args.workdirs]
            if len(folders) == 1:
                print(f"{args.workdirs[0]}/{write_report(folders[0]).name}")
            else:
                out = of_this_machine(args.out or "report", "a comparison")
                compare_runs(folders, out)
                print(out)

    return run


def _export(parser: argparse.ArgumentParser) -> Run:
    parser.add_argument("policy", metavar="WORKDIR[@K]", help="A run's policy, after K tasks.")
    add_config(parser, "Config file of the run; default: what its results.json says.")
    parser.add_argument("--out", metavar="DIR", required=True, help="A new directory.")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="",
        help="Of the weights; default: the base's.",
    )

    def run(args: argparse.Namespace) -> None:
        config = read_config(args)
        from rdbcl_jax.export import export

        print(export(args.policy, args.out, config, args.dtype))

    return run


def _collect(parser: argparse.ArgumentParser) -> Run:
    parser.add_argument("workdir", metavar="WORKDIR", help="A run's.")
    add_config(parser, "Config file of the run; default: what its results.json says.")
    parser.add_argument("--out", metavar="DIR", required=True, help="Where the files are written.")
    parser.add_argument(
        "--samples", metavar="N", type=count, default=4, help="Responses to each record; default 4."
    )
    parser.add_argument(
        "--limit", metavar="N", type=natural, default=0, help="Most records of each task; 0: all."
    )

    def run(args: argparse.Namespace) -> None:
        config = read_config(args)
        from rdbcl_jax.training.collect import collect

        found = collect(args.workdir, args.out, config, samples=args.samples, limit=args.limit)
        for task, (kept, tried) in found.items():
            print(f"{pathlib.Path(args.out) / task}.parquet: {kept} of {tried} responses")

    return run


COMMANDS = {
    command.name: command
    for command in (
        Command(
            "init",
            "Writes a config, a reward and ten records of one's own to start from.",
            """\
DIR/config.py names two small tasks and explains each setting, DIR/my_rewards.py holds a reward
function, DIR/records/ ten records with a picture each. It trains as it is, on a tiny model.""",
            """\
rdbcl init mine
rdbcl check --config=mine/config.py
rdbcl train --config=mine/config.py --workdir=mine/run --config.dry_run=True""",
            _init,
        ),
        Command(
            "config",
            "Says what every field of a config means, its default and its legal values.",
            """\
With --config: the values of that file, and the default beside those that differ from it.""",
            """\
rdbcl config kl
rdbcl config temperature
rdbcl config --config=configs/quickstart.py rollout""",
            _config,
        ),
        Command(
            "check",
            "Lists all that is wrong with records.",
            """\
Reads every record as a run would: pictures decoded, prompts encoded and measured against the
sizes allowed, gold answers parsed; says which records of validation and test are in train, too.
--records: those of a file, a pattern or tfds:NAME/SPLIT, instead of the config's tasks, or without
a config (then pictures may lie anywhere). Lists all problems; exit status 1 if any.""",
            """\
rdbcl check --config=configs/quickstart.py
rdbcl check --records=data/train.jsonl --records='data/test-*.parquet'
rdbcl check --records=mine.jsonl --format="{'prompt': '{query}', 'answer': 'label'}\"""",
            _check,
        ),
        Command(
            "prepare",
            "Makes records of a published data set.",
            """\
A data set as it was downloaded, such as scienceqa, gqa or ucit (docs/data.md has them all), becomes
OUT/TASK/SPLIT.jsonl, which refer to pictures where they are, and OUT/NAME.py, what a config needs.
Says what to fetch where files are missing, makes splits that were not published, lists what is
wrong.""",
            """\
rdbcl prepare scienceqa --source=/data/raw/ScienceQA --out=/data
rdbcl prepare ucit --source=/data/raw/UCIT --out=/data/ucit""",
            _prepare,
        ),
        Command(
            "plan",
            "Says whether a run fits on chips, and how fast it can be.",
            """\
Compiles the run's own programs for TPUs that need not be there (pip install 'jax[tpu]' brings the
compiler; no TPU is needed), or computes what GPUs will hold. Reads config.json and no weights; of
a published model not even that. Memory of each phase on a chip, what a step computes and moves, and
how long that takes at least. Mesh and micro-batches are chosen where the config leaves them open,
as a run does. Exit status 1 where it does not fit, with what to change.""",
            """\
rdbcl plan --config=rdbcl_qwen2_5_vl_3b --topology=v5e:4x4
rdbcl plan --config=configs/quickstart.py --topology=cpu --json""",
            _plan,
        ),
        Command(
            "train",
            "Learns a sequence of tasks.",
            """\
A second call with the same workdir resumes, after a kill too. SIGTERM and Ctrl-C save first. Writes
results.json, report.html, samples/, metrics.jsonl, tb/ and checkpoints/ to the workdir.""",
            """\
rdbcl train --config=configs/quickstart.py --workdir=/tmp/quickstart
rdbcl train --config=configs/quickstart.py --workdir=/tmp/two --config.sequence=sum,walk \\
    --config.method=grpo --config.kl.beta=0.05""",
            _train,
        ),
        Command(
            "report",
            "Shows one run, or compares several.",
            """\
One workdir: writes its report.html again, while the run goes on, too. Several: compares the runs in
one HTML page, a Markdown and a LaTeX table, in --out.""",
            """\
rdbcl report /tmp/quickstart
rdbcl report runs/grpo/seed* runs/rdbcl/seed* --out=comparison""",
            _report,
        ),
        Command(
            "export",
            "Writes a policy as a Hugging Face directory.",
            """\
The policy after K tasks (default: the last finished one) as a Hugging Face directory:
weights with adapters merged, config, tokenizer and processor files.""",
            "rdbcl export /tmp/quickstart@3 --out=/tmp/after-three-tasks",
            _export,
        ),
        Command(
            "collect",
            "Keeps a run's right responses, to learn from.",
            """\
For each finished task, the right responses to its training records of the policy that had just
learned it: TASK.parquet, from which config.method=rft_sft learns. A run with functions, verifiers
or suites of its own needs its config file: nothing is imported because a workdir says so.""",
            "rdbcl collect /tmp/quickstart --out=/tmp/rollouts --samples=8",
            _collect,
        ),
    )
}

if __name__ == "__main__":
    run()
