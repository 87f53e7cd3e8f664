r"""Launches `rdbcl train` over seeds × methods with xmanager, one work unit a run.

    python launch/xm_train.py --config=configs/quickstart.py --workdir=runs \
        --methods=rdbcl,grpo --seeds=0,1,2 --config.training.steps=100

A run goes to WORKDIR/METHOD/seedSEED; a second launch resumes what is unfinished. Flags that start
with `--config.` go to every run, flags that start with `--xm_` to xmanager. `--show` prints the
command lines and needs no xmanager. Where the runs go:

    --executor=local   processes on this machine, `--parallel` at a time; no Docker
    --executor=pod     the same through `gcloud compute tpus tpu-vm ssh --worker=all`: one process
                       on every host of the TPU slice `--tpu`, which must have the package installed
    --executor=vertex  a Vertex AI job in a container, `--resources=a100=8` or `tpu_v3=8`

What was run: `local`, with xmanager 0.8.5. `pod` was run with a stand-in for gcloud, never on a
TPU; two trainer processes with `--distributed` were run on one CPU machine.
`vertex` was never run: its executor was built and its machine asked for, no job was submitted.
The only Vertex TPUs that xmanager 0.8.5 knows are v2 and v3, so slices of later ones are for `pod`.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import pathlib
import shlex
import shutil
import sys
from collections.abc import Sequence

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
MODULE = "rdbcl_jax.cli"
VERTEX_TPUS = ("tpu_v2", "tpu_v3")
INSTALL = "pip install xmanager==0.8.5 -c launch/constraints.txt"


@dataclasses.dataclass(frozen=True)
class Run:
    """One work unit."""

    method: str
    seed: int
    workdir: str
    flags: tuple[str, ...]  # of `rdbcl train`

    @property
    def name(self) -> str:
        return f"{self.method}-seed{self.seed}"


# ------------------------------------------------------------------------------ what to run


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str], list[str]]:
    """(options, `--config.…` flags, `--xm_…` flags)."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", required=True, help="config file, see configs/")
    add("--workdir", required=True, help="parent of the runs' directories")
    add("--methods", type=_names, default=["rdbcl"], help="comma-separated")
    add("--seeds", type=_seeds, default=[0], help="comma-separated")
    add("--executor", choices=("local", "pod", "vertex"), default="local")
    add("--parallel", type=int, default=1, help="local: runs at one time")
    add("--python", default="", help="interpreter that has the package; local: default is this one")
    add("--tpu", default="", help="pod: name of the slice")
    add("--zone", default="", help="pod: its zone")
    add("--directory", default="rdbcl_jax", help="pod: where on its hosts the repository is")
    add("--resources", type=_resources, default={}, help="vertex: NAME=COUNT, comma-separated")
    add("--title", default="rdbcl", help="of the experiment")
    add("--show", action="store_true", help="print the command lines and stop")
    options, rest = parser.parse_known_args(argv)
    overrides = [flag for flag in rest if flag.startswith("--config.") and "=" in flag]
    xm_flags = [flag for flag in rest if flag.startswith("--xm_")]
    wrong = [flag for flag in rest if flag not in overrides + xm_flags]
    if wrong:
        parser.error(f"not understood: {shlex.join(wrong)} (overrides are --config.FIELD=VALUE)")
    if options.parallel < 1:
        parser.error(f"--parallel is {options.parallel}, expected at least 1")
    if options.executor == "pod" and not (options.tpu and options.zone):
        parser.error("--executor=pod needs --tpu and --zone, the name and zone of the slice")
    if options.executor == "vertex":
        unknown = [r for r in options.resources if r.startswith("tpu") and r not in VERTEX_TPUS]
        if not options.resources or unknown:
            parser.error(
                "--executor=vertex needs --resources, as a100=8 or tpu_v3=8; of TPUs xmanager "
                f"knows {' and '.join(VERTEX_TPUS)} on Vertex; use --executor=pod for others"
            )
    return options, overrides, xm_flags


def _names(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    if not names or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r}: expected different names, at least one")
    return names


def _seeds(text: str) -> list[int]:
    return [int(name) for name in _names(text)]


def _resources(text: str) -> dict[str, int]:
    pairs = (name.partition("=") for name in _names(text))
    return {name.lower(): int(count) for name, _, count in pairs}


def make_runs(options: argparse.Namespace, overrides: Sequence[str]) -> list[Run]:
    """Every seed of every method, seed by seed: a launch that is cut short can be compared."""
    runs = []
    for seed in options.seeds:
        for method in options.methods:
            workdir = f"{options.workdir.rstrip('/')}/{method}/seed{seed}"
            flags = (
                f"--config={options.config}",
                f"--workdir={workdir}",
                *overrides,
                f"--config.method={method}",
                f"--config.seed={seed}",
            )
            runs.append(Run(method, seed, workdir, flags))
    return runs


def command(run: Run, options: argparse.Namespace) -> list[str]:
    """The command line that this machine executes for a run."""
    python = options.python or (sys.executable if options.executor == "local" else "python3")
    train = [python, "-m", MODULE, "train", *run.flags]
    if options.executor != "pod":
        return train
    remote = f"cd {shlex.quote(options.directory)} && {shlex.join([*train, '--distributed'])}"
    slice_ = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", options.tpu, f"--zone={options.zone}"]
    return [*slice_, "--worker=all", f"--command={remote}"]


# ------------------------------------------------------------------------------ running it


def import_xmanager():
    """(xm, xm_local), or an end with the command that installs them."""
    try:
        from xmanager import xm, xm_local
    except ImportError as error:
        sys.exit(
            f"xm_train.py: cannot import xmanager ({error}). Install it, best in an environment of "
            f"its own (then say --python=… for the runs), with\n  {INSTALL}\n"
            "or say --show to see the command lines and run them yourself."
        )
    return xm, xm_local


def package(xm, xm_local, options: argparse.Namespace):
    """(executor, what to package for it)."""
    if options.executor == "vertex":
        executor = xm_local.Vertex(xm.JobRequirements(**options.resources))
        extra = "tpu" if any(name.startswith("tpu") for name in options.resources) else "cuda"
        return executor, xm.python_container(
            executor.Spec(),
            path=str(REPOSITORY),
            base_image="python:3.11",
            docker_instructions=[
                f"COPY {REPOSITORY.name}/ /rdbcl_jax",
                "WORKDIR /rdbcl_jax",
                f"RUN pip install -e '.[{extra}]'",
            ],
            entrypoint=xm.CommandList([f'python3 -m {MODULE} train "$@"']),
        )
    executor = xm_local.Local()
    program = command(Run("", 0, "", ()), options)[0]
    path = shutil.which(program)
    if not path:
        sys.exit(f"xm_train.py: {program} is not on this machine's PATH")
    return executor, xm.binary(executor.Spec(), path)


async def launch(options: argparse.Namespace, runs: Sequence[Run]) -> list[str]:
    """Runs all of them and waits; returns the names of those that failed."""
    xm, xm_local = import_xmanager()
    executor, packageable = package(xm, xm_local, options)
    # a TPU, or a machine's GPUs, serve one run at a time; a cloud takes all at once
    gate = asyncio.Semaphore(len(runs) if options.executor == "vertex" else options.parallel)
    failed: list[str] = []

    async def one(run: Run, experiment, executable) -> None:
        args = list(run.flags) if options.executor == "vertex" else command(run, options)[1:]
        async with gate:
            job = xm.Job(executable, executor, name=run.name, args=args)
            unit = await experiment.add(job)
            try:
                await unit.wait_until_complete()
            except xm.ExperimentUnitError as error:
                failed.append(run.name)
                print(f"{run.name} failed: {error}", file=sys.stderr)

    try:
        async with xm_local.create_experiment(experiment_title=options.title) as experiment:
            (executable,) = experiment.package([packageable])
            await asyncio.gather(*(one(run, experiment, executable) for run in runs))
    except RuntimeError:
        if not failed:  # leaving the experiment raises a failed process's error once more
            raise
    return failed


def main(argv: Sequence[str]) -> None:
    options, overrides, xm_flags = parse(argv)
    runs = make_runs(options, overrides)
    if options.show:
        print("\n".join(shlex.join(command(run, options)) for run in runs))
        return
    import_xmanager()  # defines the --xm_ flags
    from absl import flags

    flags.FLAGS([sys.argv[0], *xm_flags])
    failed = asyncio.run(launch(options, runs))
    print(f"{len(runs) - len(failed)} of {len(runs)} runs done; see {options.workdir}")
    if failed:
        sys.exit(f"failed: {', '.join(sorted(failed))}; the same command resumes them")


if __name__ == "__main__":
    main(sys.argv[1:])
