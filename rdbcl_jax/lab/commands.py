"""The laboratory's part of the command line."""

from __future__ import annotations

import itertools
import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from rdbcl_jax.commands import Command, Run, config_file


def _score() -> Run:
    config = config_file()
    flags.mark_flag_as_required("config")
    checkpoint = flags.DEFINE_string(
        "checkpoint", None, "The trained policy: DIR or WORKDIR@K.", required=True
    )
    reference = flags.DEFINE_string(
        "reference", None, "The previous policy: DIR or WORKDIR@K.", required=True
    )
    records = flags.DEFINE_multi_string(
        "records", [], "Data the reference has learned; repeatable."
    )
    ood = flags.DEFINE_multi_string("ood", [], "Data it has not learned; repeatable.")
    out = flags.DEFINE_string("out", None, "Where everything is written.", required=True)
    split = flags.DEFINE_string("split", "test", "The split taken, of data that has splits.")
    limit = flags.DEFINE_integer("limit", 0, "Most records of each source; 0: all.")

    def run(args: list[str]) -> None:
        from rdbcl_jax.lab.portability.report import run_score

        run_score(
            config.value,
            checkpoint.value,
            reference.value,
            records.value,
            ood.value,
            out.value,
            split=split.value,
            limit=limit.value,
        )
        print(pathlib.Path(out.value) / "summary.md")

    return run


def _gate() -> Run:
    config = config_file()
    flags.mark_flag_as_required("config")
    workdir = flags.DEFINE_string("workdir", None, "A run's, for its base and its last policy.")
    checkpoint = flags.DEFINE_string("checkpoint", None, "A Hugging Face directory.")
    out = flags.DEFINE_string("out", None, "Where gate.md and gate.json go; default: the workdir.")

    def run(args: list[str]) -> None:
        from rdbcl_jax.lab.faithfulness import report
        from rdbcl_jax.lab.faithfulness.run import run_gate

        found = run_gate(config.value, workdir.value, checkpoint.value)
        if folder := out.value or workdir.value:
            report.write(found, folder)
        print(report.to_markdown(found))
        sys.exit(not report.passed(found))

    return run


def _dynamics() -> Run:
    config = config_file()
    flags.mark_flag_as_required("config")
    checkpoint = flags.DEFINE_string(
        "checkpoint", None, "The policy to train: DIR or WORKDIR@K.", required=True
    )
    teacher = flags.DEFINE_string("teacher", "", "The policy whose right samples `rollout` takes.")
    train = flags.DEFINE_multi_string("train", [], "KIND:SOURCE of a training set; repeatable.")
    probe = flags.DEFINE_multi_string("probe", [], "KIND:SOURCE of a probe set; repeatable.")
    out = flags.DEFINE_string("out", None, "Where everything is written.", required=True)
    limit = flags.DEFINE_integer("limit", 32, "Most texts of each set.")

    def run(args: list[str]) -> None:
        from rdbcl_jax.lab.dynamics.report import run_dynamics

        run_dynamics(
            config.value,
            checkpoint.value,
            train.value,
            probe.value,
            out.value,
            teacher=teacher.value,
            limit=limit.value,
        )
        print(pathlib.Path(out.value) / "dynamics.md")

    return run


def _study() -> Run:
    config = config_file("Study file, see configs/studies/.")
    flags.mark_flag_as_required("config")
    workdir = flags.DEFINE_string("workdir", None, "Where everything is written.", required=True)
    flags.DEFINE_bool("ci", False, "The study's small form: its file's get_config('ci').")
    workers = flags.DEFINE_integer(
        "workers", None, "Processes; default: one per core, one in all with an accelerator."
    )
    gate = flags.DEFINE_bool("gate", False, "Stop at the first base that does not pass the gate.")

    def run(args: list[str]) -> None:
        from rdbcl_jax.lab.study.run import run_study

        file = config_flags.get_config_filename(flags.FLAGS["config"])
        results = run_study(
            config.value,
            workdir.value,
            name=pathlib.Path(file.partition(":")[0]).stem,
            workers=workers.value,
            gate=gate.value,
            config_file=file,
        )
        print(pathlib.Path(workdir.value) / "study.md")
        if results.stopped:
            sys.exit(f"rdbcl study: {results.stopped}")
        if results.failed:
            sys.exit(f"rdbcl study: {len(results.failed)} failed, see study.md")

    return run


def _ci_form(argv: list[str]) -> list[str]:
    """With --ci the config file is asked for its form "ci"."""
    if "--ci" not in argv:
        return argv
    pairs = itertools.pairwise(["", *argv])
    given = [a.startswith("--config=") or before == "--config" for before, a in pairs]
    return [a + ":ci" if g else a for g, a in zip(given, argv, strict=True)]


COMMANDS = {
    command.name: command
    for command in (
        Command(
            "score",
            "How well RP tells which reasoning carries over.",
            """\
--config=FILE --checkpoint=POLICY --reference=POLICY --out=DIR
--records=SOURCE [...] --ood=SOURCE [...]""",
            """\
How well RP, of every kind and level, tells which reasoning of the previous policy (reference)
the trained one can build on, in and out of distribution: samples.parquet, summary.json,
summary.md, score.png. POLICY: a checkpoint directory, or WORKDIR@K, a run after K tasks.
SOURCE: a file, a pattern, tfds:NAME/SPLIT, SUITE:TASK such as digits:sum, or a task of the
config.""",
            _score,
        ),
        Command(
            "gate",
            "Does the answer depend on the reasoning?",
            "--config=FILE --workdir=DIR|--checkpoint=DIR [--out=DIR]",
            """\
Checks on tasks of suites that answers depend on the reasoning: in the base model, made if there
is none, and after the last task learned. Writes gate.md and gate.json; fails if a check does.""",
            _gate,
        ),
        Command(
            "dynamics",
            "What a step on some texts does to others.",
            """\
--config=FILE --checkpoint=POLICY --out=DIR [--teacher=POLICY]
--train=KIND:SOURCE [...] --probe=KIND:SOURCE [...]""",
            """\
Learning dynamics: how far a step on one set of texts moves the predictions on another, and
the perplexity of each under the policy. KIND: answer, trace, own, or rollout (of a teacher).""",
            _dynamics,
        ),
        Command(
            "study",
            "Compares methods over seeds and settings.",
            "--config=FILE --workdir=DIR [--ci] [--workers=N] [--gate]",
            """\
A grid of methods, seeds and settings (configs/studies/): chooses hyper-parameters on
validation data, runs what is left to run, several runs at a time, and writes study.md,
study.json and pictures. --ci: the study's own small form. --workers=0: the report alone.
--gate: no run starts from a base that does not pass the gate; the first such ends the study.""",
            _study,
            _ci_form,
        ),
    )
}
