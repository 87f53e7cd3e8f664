"""The laboratory's part of the command line."""

from __future__ import annotations

import argparse
import pathlib
import sys

from rdbcl_jax.commands import Command, Run, add_config, add_repeatable, natural, read_config


def _score(parser: argparse.ArgumentParser) -> Run:
    add_config(parser, required=True)
    for flag, which in (("--checkpoint", "trained"), ("--reference", "previous")):
        text = f"The {which} policy: DIR or WORKDIR@K."
        parser.add_argument(flag, metavar="POLICY", required=True, help=text)
    add_repeatable(parser, "--records", "SOURCE", "Data the reference has learned; repeatable.")
    add_repeatable(parser, "--ood", "SOURCE", "Data it has not learned; repeatable.")
    parser.add_argument("--out", metavar="DIR", required=True, help="Where everything is written.")
    parser.add_argument(
        "--split", default="test", help="The split taken, of data that has splits; default: test."
    )
    parser.add_argument(
        "--limit", metavar="N", type=natural, default=0, help="Most records of each source; 0: all."
    )

    def run(args: argparse.Namespace) -> None:
        config = read_config(args)
        from rdbcl_jax.lab.portability.report import run_score

        run_score(
            config,
            args.checkpoint,
            args.reference,
            args.records,
            args.ood,
            args.out,
            split=args.split,
            limit=args.limit,
        )
        print(pathlib.Path(args.out) / "summary.md")

    return run


def _gate(parser: argparse.ArgumentParser) -> Run:
    add_config(parser, required=True)
    parser.add_argument("--workdir", metavar="DIR", help="A run's: its base and its last policy.")
    parser.add_argument("--checkpoint", metavar="DIR", help="A Hugging Face directory.")
    parser.add_argument(
        "--out", metavar="DIR", help="Where gate.md and gate.json go; default: the workdir."
    )

    def run(args: argparse.Namespace) -> None:
        config = read_config(args)
        from rdbcl_jax.lab.faithfulness import report
        from rdbcl_jax.lab.faithfulness.run import run_gate

        found = run_gate(config, args.workdir, args.checkpoint)
        if folder := args.out or args.workdir:
            report.write(found, folder)
        print(report.to_markdown(found))
        sys.exit(not report.passed(found))

    return run


def _dynamics(parser: argparse.ArgumentParser) -> Run:
    add_config(parser, required=True)
    parser.add_argument(
        "--checkpoint",
        metavar="POLICY",
        required=True,
        help="The policy to train: DIR or WORKDIR@K.",
    )
    parser.add_argument(
        "--teacher",
        metavar="POLICY",
        default="",
        help="The policy whose right samples `rollout` takes.",
    )
    add_repeatable(parser, "--train", "KIND:SOURCE", "A training set; repeatable.")
    add_repeatable(parser, "--probe", "KIND:SOURCE", "A probe set; repeatable.")
    parser.add_argument("--out", metavar="DIR", required=True, help="Where everything is written.")
    parser.add_argument(
        "--limit", metavar="N", type=natural, default=32, help="Most texts of each set; default 32."
    )

    def run(args: argparse.Namespace) -> None:
        config = read_config(args)
        from rdbcl_jax.lab.dynamics.report import run_dynamics

        run_dynamics(
            config,
            args.checkpoint,
            args.train,
            args.probe,
            args.out,
            teacher=args.teacher,
            limit=args.limit,
        )
        print(pathlib.Path(args.out) / "dynamics.md")

    return run


def _study(parser: argparse.ArgumentParser) -> Run:
    add_config(parser, "Study file, see configs/studies/.", required=True)
    parser.add_argument(
        "--workdir", metavar="DIR", required=True, help="Where everything is written."
    )
    parser.add_argument(
        "--ci", action="store_true", help="The study's small form: its file's get_config('ci')."
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=natural,
        help="Processes; default: one per core, or one with an accelerator; 0: report alone.",
    )
    parser.add_argument(
        "--gate", action="store_true", help="Stop at the first base that does not pass the gate."
    )

    def run(args: argparse.Namespace) -> None:
        form = "ci" if args.ci else ""
        config = read_config(args, form)
        from rdbcl_jax.lab.study.run import run_study

        file, _, own = args.config.partition(":")
        results = run_study(
            config,
            args.workdir,
            name=pathlib.Path(file).stem,
            workers=args.workers,
            gate=args.gate,
            config_file=":".join(filter(None, (file, own or form))),
            compilation_cache=args.compilation_cache or "",
        )
        print(pathlib.Path(args.workdir) / "study.md")
        if lacking := len(results.lacking):
            message = f"{lacking} had nothing to learn from, see study.md"
            print(f"rdbcl study: {message}", file=sys.stderr)
        if results.stopped:
            print(f"rdbcl study: {results.stopped}", file=sys.stderr)
        elif results.failed:
            print(f"rdbcl study: {len(results.failed)} failed, see study.md", file=sys.stderr)
        sys.exit(bool(results.stopped or results.failed))

    return run


COMMANDS = {
    command.name: command
    for command in (
        Command(
            "score",
            "Says how well RP tells which reasoning carries over.",
            """\
How well RP, of every kind and level, tells which reasoning of the previous policy (reference)
the trained one can build on, in and out of distribution: samples.parquet, summary.json,
summary.md, score.png. POLICY: a checkpoint directory, or WORKDIR@K, a run after K tasks.
SOURCE: a file, a pattern, tfds:NAME/SPLIT, SUITE:TASK such as digits:sum, or a task of the
config.""",
            """\
rdbcl score --config=configs/quickstart.py --checkpoint=/tmp/quickstart@3 \\
    --reference=/tmp/quickstart@2 --records=digits:sum --ood=digits:alt --out=/tmp/score""",
            _score,
        ),
        Command(
            "gate",
            "Asks whether the answer depends on the reasoning.",
            """\
Checks on tasks of suites that answers depend on the reasoning: in the base model, made if there
is none, and after the last task learned. Writes gate.md and gate.json; fails if a check does.
Takes either a workdir or a checkpoint.""",
            "rdbcl gate --config=configs/quickstart.py --workdir=/tmp/quickstart",
            _gate,
        ),
        Command(
            "dynamics",
            "Measures what a step on some texts does to others.",
            """\
Learning dynamics: how far a step on one set of texts moves the predictions on another, and
the perplexity of each under the policy. KIND: answer, trace, own, or rollout (of a teacher).""",
            """\
rdbcl dynamics --config=configs/quickstart.py --checkpoint=/tmp/quickstart@2 \\
    --train=answer:digits:alt --probe=own:digits:sum --out=/tmp/dynamics""",
            _dynamics,
        ),
        Command(
            "study",
            "Compares methods over seeds and settings.",
            """\
A grid of methods, seeds and settings (configs/studies/): chooses hyper-parameters on
validation data, runs what is left to run, several runs at a time, and writes study.md,
study.json and pictures.""",
            """\
rdbcl study --config=configs/studies/rdb_cl.py --workdir=/tmp/study --ci
rdbcl study --config=configs/studies/rdb_cl.py --workdir=/tmp/study --workers=0""",
            _study,
        ),
    )
}
