"""The command line.

rdbcl train --config=configs/quickstart.py --workdir=DIR [--config.FIELD=VALUE …]
rdbcl report DIR [DIR …] [--out=DIR]
rdbcl score --config=FILE --checkpoint=POLICY --reference=POLICY --records=SOURCE --ood=SOURCE
rdbcl export WORKDIR[@K] --out=DIR
rdbcl collect WORKDIR --out=DIR
rdbcl gate --config=FILE --workdir=DIR
rdbcl dynamics --config=FILE --checkpoint=POLICY --train=KIND:SOURCE --probe=KIND:SOURCE
rdbcl study --config=configs/studies/rdb_cl.py --workdir=DIR [--ci] [--workers=N] [--gate]
"""

from __future__ import annotations

import contextlib
import itertools
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
  rdbcl score --config=FILE --checkpoint=POLICY --reference=POLICY --out=DIR
              --records=SOURCE [...] --ood=SOURCE [...]
      How well RP, of every kind and level, tells which reasoning of the previous policy (reference)
      the trained one can build on, in and out of distribution: samples.parquet, summary.json,
      summary.md, score.png. POLICY: a checkpoint directory, or WORKDIR@K, a run after K tasks.
      SOURCE: a file, a pattern, tfds:NAME/SPLIT, digits:TASK, or a task of the config.
  rdbcl export WORKDIR[@K] --out=DIR [--dtype=bfloat16]
      The policy after K tasks (default: the last finished one) as a Hugging Face directory:
      weights with adapters merged, config, tokenizer and processor files.
  rdbcl collect WORKDIR --out=DIR [--samples=4] [--limit=0]
      What the policy that had just learned a task answers rightly on its training records, for each
      finished task: TASK.parquet, from which config.method=rft_sft learns.
  rdbcl gate --config=FILE --workdir=DIR|--checkpoint=DIR [--out=DIR]
      Checks on built-in tasks that answers hang on the reasoning: in the base model, made if there
      is none, and after the last task learned. Writes gate.md and gate.json; fails if a check does.
  rdbcl dynamics --config=FILE --checkpoint=POLICY --out=DIR [--teacher=POLICY]
                 --train=KIND:SOURCE [...] --probe=KIND:SOURCE [...]
      Learning dynamics: how far a step on one set of texts moves the predictions on another, and
      the perplexity of each under the policy. KIND: answer, trace, own, or rollout (of a teacher).
  rdbcl study --config=FILE --workdir=DIR [--ci] [--workers=N] [--gate]
      A grid of methods, seeds and settings (configs/studies/): chooses hyper-parameters on
      validation data, runs what is left to run, several runs at a time, and writes study.md,
      study.json and pictures. --ci: the study's own small form. --workers=0: the report alone.
      --gate: no run starts from a base that does not pass the gate; the first such ends the study.
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
        _quiet()
        import jax

        if distributed.value:
            _join_processes(jax)
        from rdbcl_jax.training.run import train

        with _errors_in_one_line("train"):
            train(config.value, workdir.value)

    app.run(main, argv=argv)


def _quiet() -> None:
    """Before the libraries are imported: their advice is not for our users."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # of missing torch
    for noisy in ("absl", "orbax", "grain", "jax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


@contextlib.contextmanager
def _errors_in_one_line(command: str):
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        if os.environ.get("RDBCL_TRACEBACK"):
            raise
        sys.exit(f"rdbcl {command}: {error}\n(RDBCL_TRACEBACK=1 shows where this was raised)")


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


def _gate(argv: list[str]) -> None:
    config = config_flags.DEFINE_config_file("config", None, "Config file, see configs/.")
    workdir = flags.DEFINE_string("workdir", None, "A run's: its base and its last policy.")
    checkpoint = flags.DEFINE_string("checkpoint", None, "A Hugging Face directory.")
    out = flags.DEFINE_string("out", None, "Where gate.md and gate.json go; default: the workdir.")
    flags.mark_flag_as_required("config")

    def main(_):
        _quiet()
        from rdbcl_jax.lab.faithfulness import report
        from rdbcl_jax.lab.faithfulness.run import run_gate

        with _errors_in_one_line("gate"):
            found = run_gate(config.value, workdir.value, checkpoint.value)
        if folder := out.value or workdir.value:
            report.write(found, folder)
        print(report.to_markdown(found))
        sys.exit(not report.passed(found))

    app.run(main, argv=argv)


def _score(argv: list[str]) -> None:
    config = config_flags.DEFINE_config_file("config", None, "Config file, see configs/.")
    checkpoint = flags.DEFINE_string("checkpoint", None, "The trained policy: DIR or WORKDIR@K.")
    reference = flags.DEFINE_string("reference", None, "The previous policy: DIR or WORKDIR@K.")
    records = flags.DEFINE_multi_string(
        "records", [], "Data the reference has learned; repeatable."
    )
    ood = flags.DEFINE_multi_string("ood", [], "Data it has not learned; repeatable.")
    out = flags.DEFINE_string("out", None, "Where everything is written.")
    split = flags.DEFINE_string("split", "test", "Of the data that has splits.")
    limit = flags.DEFINE_integer("limit", 0, "Most records of each source; 0: all.")
    flags.mark_flags_as_required(["config", "checkpoint", "reference", "out"])

    def main(_):
        _quiet()
        from rdbcl_jax.lab.portability.report import run_score

        with _errors_in_one_line("score"):
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

    app.run(main, argv=argv)


def _export(argv: list[str]) -> None:
    config = config_flags.DEFINE_config_file(
        "config", None, "Config file of the run; default: what its results.json says."
    )
    out = flags.DEFINE_string("out", None, "Where the policy is written: a new directory.")
    dtype = flags.DEFINE_enum(
        "dtype", "", ["", "float32", "bfloat16", "float16"], "Of the weights; empty: the run's."
    )
    flags.mark_flags_as_required(["out"])

    def main(args):
        _quiet()
        from rdbcl_jax.export import export

        if len(args) != 2:
            sys.exit("rdbcl export: give one policy, WORKDIR or WORKDIR@K")
        with _errors_in_one_line("export"):
            print(export(args[1], out.value, config.value, dtype.value))

    app.run(main, argv=argv)


def _collect(argv: list[str]) -> None:
    out = flags.DEFINE_string("out", None, "The directory that the files are written to.")
    samples = flags.DEFINE_integer("samples", 4, "Responses to each record.", lower_bound=1)
    limit = flags.DEFINE_integer("limit", 0, "Most records of each task; 0: all.", lower_bound=0)
    flags.mark_flags_as_required(["out"])

    def main(args):
        _quiet()
        from rdbcl_jax.training.collect import collect

        if len(args) != 2:
            sys.exit("rdbcl collect: give one workdir")
        with _errors_in_one_line("collect"):
            found = collect(args[1], out.value, samples=samples.value, limit=limit.value)
            for task, (kept, tried) in found.items():
                print(f"{pathlib.Path(out.value) / task}.parquet: {kept} of {tried} responses")

    app.run(main, argv=argv)


def _dynamics(argv: list[str]) -> None:
    config = config_flags.DEFINE_config_file("config", None, "Config file, see configs/.")
    checkpoint = flags.DEFINE_string("checkpoint", None, "The policy to train: DIR or WORKDIR@K.")
    teacher = flags.DEFINE_string("teacher", "", "Whose right samples the kind `rollout` takes.")
    train = flags.DEFINE_multi_string("train", [], "KIND:SOURCE of a training set; repeatable.")
    probe = flags.DEFINE_multi_string("probe", [], "KIND:SOURCE of a probe set; repeatable.")
    out = flags.DEFINE_string("out", None, "Where everything is written.")
    limit = flags.DEFINE_integer("limit", 32, "Most texts of each set.")
    flags.mark_flags_as_required(["config", "checkpoint", "out"])

    def main(_):
        _quiet()
        from rdbcl_jax.lab.dynamics.report import run_dynamics

        with _errors_in_one_line("dynamics"):
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

    app.run(main, argv=argv)


def _study(argv: list[str]) -> None:
    config = config_flags.DEFINE_config_file("config", None, "Study file, see configs/studies/.")
    workdir = flags.DEFINE_string("workdir", None, "Where everything is written.")
    flags.DEFINE_bool("ci", False, "The study's small form: its file's get_config('ci').")
    workers = flags.DEFINE_integer(
        "workers", None, "Processes; default: one per core, one in all with an accelerator."
    )
    gate = flags.DEFINE_bool("gate", False, "Stop at the first base that does not pass the gate.")
    flags.mark_flags_as_required(["config", "workdir"])

    def main(_):
        _quiet()
        from rdbcl_jax.lab.study.run import run_study

        with _errors_in_one_line("study"):
            file, _, _ = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
            name = pathlib.Path(file).stem
            results = run_study(
                config.value,
                workdir.value,
                name=name,
                workers=workers.value,
                gate=gate.value,
            )
        print(pathlib.Path(workdir.value) / "study.md")
        if results["stopped"]:
            sys.exit(f"rdbcl study: {results['stopped']}")
        if results["failed"]:
            sys.exit(f"rdbcl study: {len(results['failed'])} failed, see study.md")

    app.run(main, argv=_ci_form(argv))


def _ci_form(argv: list[str]) -> list[str]:
    """With --ci the config file is asked for its form "ci"."""
    if "--ci" not in argv:
        return argv
    pairs = itertools.pairwise(argv)
    given = [a.startswith("--config=") or before == "--config" for before, a in pairs]
    return [argv[0], *(a + ":ci" if g else a for g, a in zip(given, argv[1:], strict=True))]


COMMANDS = {
    "train": _train,
    "report": _report,
    "score": _score,
    "export": _export,
    "collect": _collect,
    "gate": _gate,
    "dynamics": _dynamics,
    "study": _study,
}

if __name__ == "__main__":
    run()
