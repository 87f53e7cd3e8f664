"""The long form: runs that are killed again and again, and one that goes on for long.

    python -m tests.reliability.trials kills FOLDER [--count=200] [--seed=0] [--only=METHOD …]
    python -m tests.reliability.trials two FOLDER [--count=6]
    python -m tests.reliability.trials base FOLDER [--wait=30]
    python -m tests.reliability.trials mesh FOLDER
    python -m tests.reliability.trials soak FOLDER [--steps=2000]

`kills`: each method runs once untouched; then runs of it are killed with SIGKILL at random moments,
up to eight times each, and must end in the same bits: every metric of every step, every sampled
response, every parameter after every task. `two`: the same of two processes that are one run, both
killed, or one. `base`: two that make their base, one of which is told to stop. `mesh`: killed on
one mesh, gone on with on another. `soak`: memory, threads, handles and compilations of one task of
many steps.

docs/reliability.md has what was measured. A trial that fails leaves its workdir, and ends with 1.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

from tests.compiler import QUICK

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", QUICK)

METHODS = {
    "mssr": {"rollout.samples": 1, "mssr.survey": True},
    "dyme": {},
    "replay": {"kl.beta": 0.1},
    "ewc": {"ewc.sequences": 16},
    "rdbcl": {"model.lora.rank": 4},
    "dapo": {"rollout.resample": 2},
    "sft": {"training.collect": 1},
    "portable_replay": {"replay.per_task": 8},
    "rapo": {},
    "lwf": {},
    "joint": {},
    "grpo": {"model.path": "", "base.steps": 60},  # it makes its base itself
}
MOST_KILLS = 8  # of one run


def config_of(base, method, overrides, steps=4):
    from tests.tiny_runs import tiny_config

    changes = {"training.steps": steps, "training.checkpoint_every": 1, **overrides}
    return tiny_config(base, method, **changes)


def made_base(folder):
    from tests.engine import write_random_model

    return folder / "base" if (folder / "base").exists() else write_random_model(folder / "base")


def said(line, **facts):
    print(json.dumps({"trial": line, **facts}), flush=True)


# ------------------------------------------------------------------------------ kills


def kills(folder, args):
    """Returns how many runs ended otherwise."""
    from tests.reliability import faults

    base, processes, draw = made_base(folder), faults.Processes(), random.Random(args.seed)
    methods = {name: METHODS[name] for name in args.only or METHODS}
    share, failed, total = -(-args.count // len(methods)), 0, 0
    for method, overrides in methods.items():
        config, whole = config_of(base, method, overrides), folder / f"{method}-whole"
        for earlier in (whole, folder / f"{method}-warm"):
            shutil.rmtree(earlier, ignore_errors=True)
        processes.run(config, folder / f"{method}-warm")  # its programs are compiled
        code, seconds = processes.run(config, whole)
        assert code == 0, f"{whole}.log"
        expected, killed, runs = faults.trace(whole), 0, 0
        while killed < share:
            workdir, mine = folder / f"{method}-{runs:03}", 0
            shutil.rmtree(workdir, ignore_errors=True)
            while mine < min(MOST_KILLS, share - killed):
                code, _ = processes.run(config, workdir, after=draw.uniform(0, seconds))
                mine += code == -signal.SIGKILL
                if code != -signal.SIGKILL:
                    break
            code, _ = processes.run(config, workdir)
            differing = ["exit code"] if code else faults.differing(expected, faults.trace(workdir))
            failed += bool(differing)
            killed, runs = killed + mine, runs + 1
            said("kills", method=method, workdir=str(workdir), killed=mine, differing=differing)
            if not differing:
                shutil.rmtree(workdir)
        total += killed
        said("kills", method=method, runs=runs, killed=killed, seconds_of_a_run=round(seconds, 1))
    said("kills", killed=total, failed=failed)
    return failed


# ------------------------------------------------------------------------------ two processes


def started(workdir, base=""):
    """Two processes that are one run, with two devices each; without a base they make it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    joined = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    flags = f"--xla_force_host_platform_device_count=2 {QUICK}"
    command = [sys.executable, "-m", "tests.reliability.trials", "part", str(workdir), str(base)]
    with open(f"{workdir}.log", "a") as log:
        return [
            subprocess.Popen(
                command,
                env={**os.environ, "XLA_FLAGS": flags, "JAX_PROCESS_ID": str(i), **joined},
                stdout=log,
                stderr=log,
            )
            for i in range(2)
        ]


def ended(parts):
    return [part.wait() for part in parts]


def two(folder, args):
    """Two processes with two devices each; the second half of the trials kills only one."""
    from tests.reliability import faults

    base, draw = made_base(folder), random.Random(args.seed)

    def start(workdir):
        return started(workdir, base)

    whole, failed = folder / "two-whole", 0
    for earlier in (whole, folder / "two-warm"):
        shutil.rmtree(earlier, ignore_errors=True)
    ended(start(folder / "two-warm"))  # its programs are compiled
    began = time.monotonic()
    assert ended(start(whole)) == [0, 0], f"{whole}.log"
    seconds, expected = time.monotonic() - began, faults.trace(whole)
    for trial in range(args.count):
        workdir, one = folder / f"two-{trial:03}", trial % 2
        shutil.rmtree(workdir, ignore_errors=True)
        signum = (signal.SIGKILL, signal.SIGTERM)[trial // 2 % 2]
        parts = start(workdir)
        # imports take a third: before them there is nothing to kill
        time.sleep(draw.uniform(seconds / 3, seconds))
        parts[1].send_signal(signum)
        if not one:
            parts[0].send_signal(signum)
        elif signum == signal.SIGKILL:  # the other waits for it, until the service gives it up
            time.sleep(1)
            parts[0].kill()
        codes = ended(parts)
        again = ended(start(workdir))
        differing = faults.differing(expected, faults.trace(workdir)) if again == [0, 0] else again
        failed += bool(differing)
        said("two", signal=signum.name, only_one=bool(one), codes=codes, differing=differing)
    return failed


def base(folder, args):
    """One of two processes that make their base gets SIGTERM."""
    workdir = folder / "unmade"
    shutil.rmtree(workdir, ignore_errors=True)
    parts = started(workdir)
    while not (workdir / "base.draft").exists():
        time.sleep(0.1)
    time.sleep(args.wait)
    parts[1].send_signal(signal.SIGTERM)
    began = time.monotonic()
    codes, there = ended(parts), (workdir / "base").exists()
    said("base", codes=codes, made=there, seconds=round(time.monotonic() - began, 1))
    return int(codes != [0, 0] or there)


def part(folder, args):
    """One of two processes."""
    from rdbcl_jax.distributed import join_processes

    join_processes()
    from rdbcl_jax.training.run import train
    from rdbcl_jax.training.stop import Stopped

    try:
        endless = {} if args.base else {"model.path": "", "base.steps": 100_000}
        train(config_of(args.base, "mssr", METHODS["mssr"] | endless), folder)
    except Stopped as stopped:
        print(stopped)
        sys.exit(stopped.code)


# ------------------------------------------------------------------------------ another mesh


def mesh(folder, args):
    """Killed on one device, gone on with on four as (2, 2, 1), then as (1, 2, 2): rounding differs
    there, so that numbers of the first steps are bits, and later ones agree to 1e-5."""
    from rdbcl_jax.reporting.run_files import read_run
    from tests.reliability.faults import Processes

    os.environ["XLA_FLAGS"] = f"{QUICK} --xla_force_host_platform_device_count=4"
    base, processes = made_base(folder), Processes()
    sizes = [(4, 1, 1), (2, 2, 1), (1, 2, 2)]
    configs = [
        config_of(base, "rdbcl", {"mesh.data": d, "mesh.fsdp": f, "mesh.tensor": t})
        for d, f, t in sizes
    ]
    whole, workdir = folder / "mesh-whole", folder / "mesh-moved"
    for earlier in (whole, workdir):
        shutil.rmtree(earlier, ignore_errors=True)
    processes.run(configs[0], whole)
    for config, saved in zip(configs, (2, 6), strict=False):  # within the first task, the second
        state = workdir / f"checkpoints/manifests/step_{saved:08}.json"
        code, _ = processes.run(config, workdir, after=state.exists)
        assert code == -signal.SIGKILL, f"{workdir}.log"
    code, _ = processes.run(configs[2], workdir)
    worst = 0.0
    runs = [read_run(w) for w in (whole, workdir)]
    for one, other in zip(*(run.steps for run in runs), strict=True):
        for name in ("loss", "kl", "reward", "entropy", "grad_norm"):
            worst = max(worst, abs(one[name] - other[name]) / max(abs(one[name]), 1e-3))
    said("mesh", code=code, meshes=sizes, worst_relative_difference=worst)
    return int(code != 0 or worst > 1e-3)


# ------------------------------------------------------------------------------ soak


def soak(folder, args):
    import jax
    import psutil

    from rdbcl_jax.reporting.run_log import RunLog
    from rdbcl_jax.training.run import train

    compiled, rows, process = [], [], psutil.Process()
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: (
            compiled.append(event)
            if event == "/jax/core/compile/backend_compile_duration"
            else None
        )
    )
    write_step = RunLog.write_step

    def watch(self, row):
        write_step(self, row)
        if row["step"] % 100 == 99:
            rows.append(
                {
                    "step": row["step"] + 1,
                    "rss_mb": round(process.memory_info().rss / 2**20, 1),
                    "threads": process.num_threads(),
                    "handles": process.num_fds(),
                    "compiled": len(compiled),
                }
            )
            said("soak", **rows[-1])

    RunLog.write_step = watch
    overrides = {
        "sequence": ("sum",),
        "training.checkpoint_every": 100,
        "evaluation.every": 0,
        **METHODS["mssr"],
    }
    workdir = folder / "soak"
    shutil.rmtree(workdir, ignore_errors=True)
    train(config_of(made_base(folder), "mssr", overrides, args.steps), workdir)
    early = next(row for row in rows if row["step"] >= args.steps // 4)
    grown = rows[-1]["rss_mb"] / early["rss_mb"] - 1
    flat = all(rows[-1][name] <= early[name] for name in ("threads", "handles", "compiled"))
    said("soak", rss_growth=round(grown, 4), others_flat=flat)
    return int(grown > 0.02 or not flat)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("kills", "two", "base", "mesh", "soak", "part"))
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("base", nargs="?")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--wait", type=float, default=30, help="seconds, of `base`")
    parser.add_argument("--only", action="append", choices=METHODS)
    args = parser.parse_args()
    args.folder.parent.mkdir(parents=True, exist_ok=True)
    if args.what != "part":
        args.folder.mkdir(exist_ok=True)
    sys.exit(1 if globals()[args.what](args.folder, args) else 0)


if __name__ == "__main__":
    main()
