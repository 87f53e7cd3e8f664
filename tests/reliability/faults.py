"""The fault injector: what goes wrong with a run's files and processes, done on purpose.

Used by the tests beside it, and by `python -m tests.reliability.trials`, the long form.
"""

import contextlib
import itertools
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rdbcl_jax.reporting.run_files import read_run
from rdbcl_jax.reporting.samples import read_samples
from rdbcl_jax.results import read_results
from rdbcl_jax.training import task

NOT_COMPARED = ("step_time",)

# ------------------------------------------------------------------------------ corrupt


def flip(file, count=40):
    """Flips bits in the middle of a file."""
    content = bytearray(file.read_bytes())
    start = max(0, len(content) // 2 - count // 2)
    for i in range(start, min(start + count, len(content))):
        content[i] ^= 0x55
    file.write_bytes(content)


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file):
    file.write_bytes(b"")


def delete(file):
    file.unlink()


HOW = {f.__name__: f for f in (flip, truncate, empty, delete)}


def biggest(folder):
    """The file that holds most of the arrays."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


# ------------------------------------------------------------------------------ NaN


def spoil(directory, part, value=np.nan):
    """One number of the first tensor of a checkpoint whose name has `part` in it; returns that
    name."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if part in name)
    tensors[name].flat[7] = value
    save_file(tensors, file, {"format": "pt"})
    return name


@contextlib.contextmanager
def reference_of_nan(from_step, row=slice(None)):
    """The reference log-probs of one prompt are NaN, or those of all, from a step on, of those
    that are made within."""
    found, steps = task.frozen_logprobs, itertools.count()

    def broken(*args, **kwargs):
        fields = found(*args, **kwargs)
        if next(steps) >= from_step:
            fields["reference_logps"] = fields["reference_logps"].at[row].set(np.nan)
        return fields

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "frozen_logprobs", broken)
        yield


# ------------------------------------------------------------------------------ hostile

# what a file holds that should hold one JSON object
NO_OBJECTS = {
    "nothing": "",
    "half": '{"a": ',
    "a number": "5",
    "null": "null",
    "a list": "[]",
    "deep": "[" * 100_000,
    "no text": b"\xff\xfe{\x00}\x00",
    "a directory": None,
}


def put(file, content):
    """Replaces a file, by a directory where there is no content."""
    file.rmdir() if file.is_dir() else file.unlink()
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())


def rewrite(file, change):
    """Changes what a JSON file holds."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


# ------------------------------------------------------------------------------ fill


@contextlib.contextmanager
def small_disk(folder, megabytes):
    """A file system of so few megabytes; only root may mount one.

    Raises:
      PermissionError: it may not.
    """
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        raise PermissionError("cannot mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def enlarge(folder, megabytes):
    subprocess.run(["mount", "-o", f"remount,size={megabytes}m", str(folder)], check=True)


def fill(file):
    """Takes all room that is left on a disk."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as rest:
        while True:
            rest.write(bytes(2**16))


# ------------------------------------------------------------------------------ kill


def train_quietly(config, workdir, started):
    """In a process of its own: the run, its output to a file beside the workdir."""
    output = os.open(f"{workdir}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    from rdbcl_jax.training.run import train
    from rdbcl_jax.training.stop import Stopped

    started.set()
    try:
        train(config, workdir)
    except Stopped as stopped:
        print(stopped)
        os._exit(stopped.code)


class Processes:
    """Starts runs in processes that have imported all they need, so that a kill costs little."""

    def __init__(self):
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["rdbcl_jax.training.run", "tests.engine"])

    def run(self, config, workdir, after=None, signum=signal.SIGKILL):
        """Runs to the end, or sends a signal some seconds after the start, or once `after()` holds;
        returns (exit code, seconds)."""
        started = self.context.Event()
        process = self.context.Process(target=train_quietly, args=(config, workdir, started))
        process.start()
        started.wait()
        began = time.monotonic()
        if callable(after):
            while process.is_alive() and not after():
                time.sleep(0.02)
        else:
            process.join(after)
        if process.is_alive():
            os.kill(process.pid, signum)
        process.join()
        return process.exitcode, time.monotonic() - began


# ------------------------------------------------------------------------------ what is left


def trace(workdir):
    """All that a finished run has computed, to be compared bit for bit."""
    run = read_run(workdir)
    steps = [{k: v for k, v in row.items() if k not in NOT_COMPARED} for row in run.steps]
    samples = read_samples(workdir)
    return {
        "status": run.results.status,
        "splits": read_results(workdir).splits,
        "steps": json.loads(json.dumps(steps)),
        "samples": samples and samples.to_pydict(),
        "files": sorted(p.name for p in workdir.glob("samples/*")),
        "examples": run.examples,
        "policies": {p.name: _arrays(p) for p in sorted(workdir.glob("checkpoints/task_*"))},
    }


def _arrays(path):
    from tests.frozen import parameter_hashes

    return parameter_hashes(path)


def differing(one, other):
    """Names of the parts in which two traces differ; NaN is NaN."""
    return [name for name in one if repr(one[name]) != repr(other[name])]


def copied(workdir, folder):
    return pathlib.Path(shutil.copytree(workdir, folder, symlinks=True))
