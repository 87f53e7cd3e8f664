r"""Launches `rdbcl train` over seeds × methods × settings with xmanager, one work unit a run.

    python launch/xm_train.py --config=configs/quickstart.py --workdir=runs \
        --methods=rdbcl,grpo --seeds=0,1,2 --sweep=kl.beta=0.01,0.04 --config.training.steps=100

A run goes to WORKDIR/METHOD/seedSEED, with a sweep to WORKDIR/METHOD,kl.beta=0.01/seedSEED; a
second launch resumes what is unfinished. Flags that start with `--config.` go to every run, flags
that start with `--xm_` to xmanager. `--show` prints the command lines and needs no xmanager. Where
the runs go:

    --executor=local   processes on this machine, `--parallel` at a time; no Docker
    --executor=pod     all hosts of a TPU slice, by launch/tpu_pod.sh: of the slice `--tpu` that is
                       there, one run after another; or with `--accelerator` and `--runtime` of one
                       that each run gets for itself, and again after it was preempted
    --executor=vertex  a Vertex AI job in a container on one host, `--resources=a100=8`

launch/README.md says what of this was run, and what never was.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import pathlib
import re
import shlex
import shutil
import sys
from collections.abc import Sequence

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
MODULE = "rdbcl_jax.cli"
POD = REPOSITORY / "launch" / "tpu_pod.sh"
# what xmanager 0.8.5 finds the right Vertex machine for, and what serves JAX: how many, on one host
VERTEX = {
    "a100": (1, 2, 4, 8, 16),
    "l4": (1, 2, 4, 8),
    "t4": (1, 2, 4),
    "tpu_v2": (8,),
    "tpu_v3": (8,),
}
POD_OPTIONS = {
    "project": "default: gcloud's own",
    "accelerator": "makes a slice for each run, such as v5litepod-16",
    "runtime": "its software, such as v2-alpha-tpuv5-lite",
    "setup": "what installs the package on its hosts; default: see launch/tpu_pod.sh",
    "retries": "starts after the first, where a slice was preempted",
    "poll": "seconds between looks at a slice that is waited for",
}
XM_NAMES = {"l4": "l4_24th"}
INSTALL = "pip install xmanager==0.8.5 -c launch/constraints.txt"


@dataclasses.dataclass(frozen=True)
class Run:
    """One work unit."""

    index: int
    name: str
    workdir: str
    flags: tuple[str, ...]  # of `rdbcl train`


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
    add("--sweep", type=_values, action="append", default=[], help="FIELD=VALUE,VALUE; repeatable")
    add("--executor", choices=("local", "pod", "vertex"), default="local")
    add("--parallel", type=int, default=1, help="runs at one time")
    add("--python", default="", help="interpreter that has the package; local: default is this one")
    add("--tpu", default="", help="pod: name of the slice, or what those that are made begin with")
    add("--zone", default="", help="pod: its zone")
    add("--directory", default="rdbcl_jax", help="pod: where on its hosts the repository is")
    for name, help_ in POD_OPTIONS.items():
        add(f"--{name}", default="", help=f"pod: {help_}")
    add("--spot", action="store_true", help="pod: a slice that may be preempted")
    add("--resources", type=_resources, default={}, help="vertex: NAME=COUNT")
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
    if options.executor == "pod":
        if problem := _pod_problem(options):
            parser.error(problem)
    elif options.spot or any(getattr(options, name) for name in ("tpu", "zone", *POD_OPTIONS)):
        parser.error("--tpu, --zone and what says more of a slice are for --executor=pod")
    if options.executor == "vertex" and (problem := _vertex_problem(options)):
        parser.error(problem)
    return options, overrides, xm_flags


def _pod_problem(options: argparse.Namespace) -> str:
    if not (options.tpu and options.zone):
        return "--executor=pod needs --tpu and --zone, the name and zone of the slice"
    if bool(options.accelerator) != bool(options.runtime):
        return "--accelerator and --runtime go together: a slice that is made needs both"
    if not options.accelerator and (options.spot or options.parallel > 1):
        return (
            f"the slice {options.tpu} serves one run at a time, as it is; --parallel and --spot "
            "are for slices that are made: --accelerator and --runtime are missing"
        )
    return ""


def _vertex_problem(options: argparse.Namespace) -> str:
    known = ", ".join(f"{name}={'|'.join(map(str, count))}" for name, count in VERTEX.items())
    found = [f"{name}={count}" for name, count in options.resources.items()]
    if len(found) != 1 or any(c not in VERTEX.get(n, ()) for n, c in options.resources.items()):
        return (
            f"--executor=vertex needs --resources of one kind, on one host: {known}; found "
            f"{', '.join(found) or 'none'}. Of others xmanager 0.8.5 asks for a machine that does "
            "not have them, and processes on several hosts would not find each other: for TPUs of "
            "later kinds, and for slices, use --executor=pod"
        )
    if not options.workdir.startswith(("/gcs/", "gs://")):
        return (
            f"--workdir={options.workdir} is inside the job's container, and ends with it; "
            "expected /gcs/BUCKET/… or gs://BUCKET/…"
        )
    return ""


def _names(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    if not names or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r}: expected different names, at least one")
    return names


def _seeds(text: str) -> list[int]:
    return [int(name) for name in _names(text)]


def _values(text: str) -> tuple[str, list[str]]:
    """(field, its values)."""
    field, _, values = text.removeprefix("config.").partition("=")
    if field in ("", "method", "seed") or not values:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected FIELD=VALUE,VALUE; methods and seeds have options of their own"
        )
    return field, _names(values)


def _resources(text: str) -> dict[str, int]:
    pairs = (name.partition("=") for name in _names(text))
    return {name.lower(): int(count) for name, _, count in pairs}


def make_runs(options: argparse.Namespace, overrides: Sequence[str]) -> list[Run]:
    """Every seed of every method and setting, seed by seed: a launch that is cut short can be
    compared."""
    runs = list[Run]()
    settings = [[f"{field}={value}" for value in values] for field, values in options.sweep]
    for seed, method, *setting in itertools.product(options.seeds, options.methods, *settings):
        kind = ",".join([method, *(part.replace("/", "_") for part in setting)])
        workdir = f"{options.workdir.rstrip('/')}/{kind}/seed{seed}"
        flags = (
            f"--config={options.config}",
            f"--workdir={workdir}",
            *overrides,
            *(f"--config.{part}" for part in setting),
            f"--config.method={method}",
            f"--config.seed={seed}",
        )
        name = re.sub(r"[^\w-]+", "-", f"{kind}-seed{seed}")
        runs.append(Run(len(runs), name, workdir, flags))
    return runs


def command(run: Run, options: argparse.Namespace) -> list[str]:
    """The command line that this machine executes for a run."""
    if options.executor != "pod":
        local = options.executor == "local"
        return [options.python or (sys.executable if local else "python3"), *_train(run)]
    made, slice_ = options.accelerator, [f"--tpu={options.tpu}", f"--zone={options.zone}"]
    if made:
        slice_[0] += f"-{run.index}"
    given = [f"--{n}={value}" for n in POD_OPTIONS if (value := getattr(options, n))]
    slice_ += [f"--directory={options.directory}", *given, *["--spot"] * options.spot]
    python = options.python or (".venv/bin/python" if made else "python3")
    return [str(POD), *slice_, "--", python, *_train(run), "--distributed"]


def _train(run: Run) -> list[str]:
    return ["-m", MODULE, "train", *run.flags]


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
        ((kind, count),) = options.resources.items()
        executor = xm_local.Vertex(xm.JobRequirements(**{XM_NAMES.get(kind, kind): count}))
        extra = "tpu" if kind.startswith("tpu") else "cuda"
        return executor, xm.python_container(
            executor.Spec(),
            path=str(REPOSITORY),
            base_image="python:3.11",
            docker_instructions=[
                f"COPY {REPOSITORY.name}/ /rdbcl_jax",
                "WORKDIR /rdbcl_jax",
                f"RUN pip install -e '.[{extra},gs]'",
            ],
            entrypoint=xm.CommandList([f'python3 -m {MODULE} train "$@"']),
        )
    executor = xm_local.Local()
    program = command(Run(0, "", "", ()), options)[0]
    for needed in (program, *["gcloud"] * (options.executor == "pod")):
        if not shutil.which(needed):
            sys.exit(f"xm_train.py: {needed} is not on this machine's PATH")
    return executor, xm.binary(executor.Spec(), shutil.which(program))


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
