"""Freezes what runs compute, so that a redesign can show that it computes the same.

    python -m tests.frozen freeze FILE [--only=NAME …]   runs everything, writes FILE
    python -m tests.frozen compare BEFORE AFTER          lists what differs; exit 1 if any does

Every method in one process and in two, the quickstart at few steps, and a small study: results
without times, metrics of every step, samples, and a hash of every parameter after every task. Bits
hold on one machine with one set of packages, so the file is made anew before a change, not kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent
METHODS = {
    "grpo": {"kl.beta": 0.1, "kl.reference": "ema"},
    "dr_grpo": {},
    "dapo": {"rollout.resample": 2},
    "gspo": {"training.updates_per_batch": 2},
    "cispo": {},
    "rloo": {},
    "rdbcl": {"training.prompts_per_device": 2, "model.lora.rank": 4},
    "mssr": {"rollout.samples": 1, "mssr.shaping": "full", "mssr.survey": True},
    "dyme": {},
    "sft": {},
    "rft_sft": {},
    "rapo": {},
    "replay": {"kl.beta": 0.1, "replay.anchor": "old"},
    "portable_replay": {"portability.verified": True, "portability.control": "strength"},
    "ewc": {"ewc.sequences": 16},
    "lwf": {},
    "joint": {"model.freeze_vision": True},
    "zero_shot": {},
}
TIMES = ("step_time",)


def train(config, workdir: pathlib.Path) -> None:
    try:
        from rdbcl_jax.training.run import train as run
    except ImportError:  # the first house
        from rdbcl_jax.continual import train as run
    run(config, workdir)


# ------------------------------------------------------------------------------ the runs


def run_methods(folder: pathlib.Path) -> None:
    """All methods one after the other; those after the first start from its base."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tests.engine import small_config

    base = ""
    for method, overrides in METHODS.items():
        config = small_config()
        config.method, config.training.steps, config.model.path = method, 2, base
        config.base.steps = 4
        config.update_from_flattened_dict(overrides)
        if method == "rft_sft":
            rollouts = folder / "rollouts.parquet"
            ids = [f"{task}-train-0-{i}" for task in config.sequence for i in range(64)]
            texts = ["<think> 3 </think> <answer> 3 </answer>"] * len(ids)
            pq.write_table(pa.table({"record_id": ids, "completion": texts}), rollouts)
            config.demonstrations.rollouts = str(rollouts)
        print(method, flush=True)
        train(config, folder / method)
        base = base or str(folder / method / "base")


def run_quickstart(folder: pathlib.Path) -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("quickstart", ROOT / "configs/quickstart.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.update_from_flattened_dict(
        {
            "sequence": ("sum", "jigsaw"),
            "base.steps": 10,
            "training.steps": 3,
            "evaluation.every": 2,
            "training.collect": 1,
            "data.train_count": 128,
            "data.validation_count": 16,
            "data.test_count": 32,
            "evaluation.batch_size": 32,
        }
    )
    train(config, folder / "quickstart")


def run_study(folder: pathlib.Path) -> None:
    command = ["study", f"--config={ROOT}/tests/{_study_file()}", f"--workdir={folder}/study"]
    module = "rdbcl_jax.cli" if (ROOT / "rdbcl_jax/cli.py").exists() else "rdbcl_jax.main"
    subprocess.run(
        [sys.executable, "-m", module, *command, "--workers=1", "--gate"],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def _study_file() -> str:
    places = ("lab/study/small_study.py", "study/small_study.py")
    return next(place for place in places if (ROOT / "tests" / place).exists())


RUNS = {"methods": run_methods, "quickstart": run_quickstart, "study": run_study}


def freeze(file: pathlib.Path, only: list[str]) -> None:
    """Runs in processes of their own: one with one device, two with one each."""
    with tempfile.TemporaryDirectory(prefix="frozen-") as name:
        folder = pathlib.Path(name)
        for run in only or (*RUNS, "two"):
            if run == "two":
                _two(folder / "two")
            else:
                (folder / run).mkdir()
                _finish(_start(run, folder / run))
        found = {str(p.parent.relative_to(folder)): p.parent for p in folder.rglob("results.json")}
        frozen = {name: summary(workdir) for name, workdir in sorted(found.items())}
        for study in folder.rglob("study.json"):
            frozen["study.json"] = _study(json.loads(study.read_text()))
    file.write_text(json.dumps(frozen, indent=1, sort_keys=True) + "\n")
    print(f"{file}: {len(frozen)} runs")


def _two(folder: pathlib.Path) -> None:
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    _finish(*(_start("methods", folder, JAX_PROCESS_ID=str(i), **common) for i in range(2)))


def _start(run: str, folder: pathlib.Path, **environment: str) -> subprocess.Popen:
    from tests.compiler import QUICK

    settings = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.frozen", "run", run, str(folder)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **settings, **environment})


def _finish(*processes: subprocess.Popen) -> None:
    if any([process.wait() for process in processes]):
        sys.exit("a run failed")


# ------------------------------------------------------------------------------ what they leave


def summary(workdir: pathlib.Path) -> dict:
    results = json.loads((workdir / "results.json").read_text())
    kept = ("method", "seed", "status", "tasks", "device")
    lines = (workdir / "metrics.jsonl").read_text().splitlines() if _learned(workdir) else []
    steps = [json.loads(line) for line in lines]
    return {
        "results": {name: results[name] for name in kept} | {"splits": _splits(results)},
        "steps": [{k: v for k, v in row.items() if k not in TIMES} for row in steps],
        "samples": {p.name: table_hash(p) for p in sorted(workdir.glob("samples/*.parquet"))},
        "rollouts": {p.name: table_hash(p) for p in sorted(workdir.glob("rollouts/*.parquet"))},
        "parameters": {
            p.name: parameter_hashes(p) for p in sorted(workdir.glob("checkpoints/task_*"))
        },
        "base": {
            p.name: hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(workdir.glob("base/*.safetensors"))
        },
    }


def _splits(results: dict) -> dict:
    """Of either version of results.json: version 1 says held for held out."""
    names = {"held_last": "held_out_last", "held_change": "held_out_change"}
    return {
        split: {**found, "metrics": {names.get(k, k): v for k, v in found["metrics"].items()}}
        for split, found in results["splits"].items()
    }


def _learned(workdir: pathlib.Path) -> bool:
    return (workdir / "metrics.jsonl").exists()


def table_hash(path: pathlib.Path) -> str:
    import pyarrow.parquet as pq

    rows = pq.read_table(path).to_pylist()
    return hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()


def parameter_hashes(path: pathlib.Path) -> str:
    """One hash over every leaf's name, type and bytes."""
    import jax
    import numpy as np
    from orbax.checkpoint import v1 as ocp

    digest = hashlib.sha256()
    abstract = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(
            a.shape, a.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
        ),
        ocp.metadata(path).metadata,
    )
    leaves = jax.tree_util.tree_leaves_with_path(ocp.load(path, abstract))
    for key, leaf in sorted((jax.tree_util.keystr(k), leaf) for k, leaf in leaves):
        array = np.asarray(leaf)
        digest.update(f"{key} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _study(found: dict) -> dict:
    """study.json without what a clock says."""
    if isinstance(found, dict):
        return {k: _study(v) for k, v in found.items() if k not in ("seconds", "schema_version")}
    return [_study(v) for v in found] if isinstance(found, list) else found


def compare(before: pathlib.Path, after: pathlib.Path) -> int:
    old, new = (json.loads(path.read_text()) for path in (before, after))
    differing = list(differences(old, new))
    for line in differing[:60]:
        print(line)
    print(f"{len(old)} runs before, {len(new)} after, {len(differing)} differences")
    return bool(differing)


def differences(old, new, where: str = ""):
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            missing = "(missing)"
            yield from differences(old.get(key, missing), new.get(key, missing), f"{where}/{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, pair in enumerate(zip(old, new, strict=True)):
            yield from differences(*pair, f"{where}/{i}")
    elif old != new and not (old != old and new != new):  # NaN is NaN
        yield f"{where}: {str(old)[:100]} -> {str(new)[:100]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("freeze")
    making.add_argument("file", type=pathlib.Path)
    making.add_argument("--only", action="append", default=[], choices=[*RUNS, "two"])
    running = commands.add_parser("run")
    running.add_argument("name", choices=RUNS)
    running.add_argument("folder", type=pathlib.Path)
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=pathlib.Path)
    comparing.add_argument("after", type=pathlib.Path)
    args = parser.parse_args()
    if args.command == "freeze":
        freeze(args.file.resolve(), args.only)
    elif args.command == "run":
        if "JAX_PROCESS_ID" in os.environ:
            import jax

            jax.distributed.initialize(
                os.environ["JAX_COORDINATOR_ADDRESS"],
                int(os.environ["JAX_NUM_PROCESSES"]),
                int(os.environ["JAX_PROCESS_ID"]),
            )
        RUNS[args.name](args.folder)
    else:
        sys.exit(compare(args.before, args.after))


if __name__ == "__main__":
    main()
