"""Several processes do what one process with as many devices does."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from rdbcl_jax import sharding
from rdbcl_jax.policy import allowed_sizes
from rdbcl_jax.reporting.run_files import read_run
from rdbcl_jax.reporting.samples import read_samples
from rdbcl_jax.sharding import RowShard
from rdbcl_jax.training import metrics, setup
from rdbcl_jax.training.metrics import component_means
from tests.compiler import QUICK
from tests.engine import small_config, write_random_model
from tests.train_several import KILLED_AT, METHODS

ROOT = pathlib.Path(__file__).parents[1]
TRAIN = ("rdbcl_jax.cli", "train", "--config=tests/small_config.py")


def start(devices, *command, **environment):
    flags = f"--xla_force_host_platform_device_count={devices} {QUICK}"
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes):
    for process in processes:
        out, _ = process.communicate(timeout=600)
        assert process.returncode == 0, out[-4000:]


def start_joined(processes, devices, *command, each=None):
    """Processes that run as one, with so many devices each; `each`: what differs in their
    environments."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    joined = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
    }
    return [
        start(devices, *command, JAX_PROCESS_ID=str(i), **joined, **own)
        for i, own in enumerate(each or [{}] * processes)
    ]


def run_both(folder, *command, processes=2, rest=(), option=""):
    """What the command, told where by `option`, leaves of several processes with four devices in
    all, and of one."""
    several, one = folder / "several", folder / "one"
    together = (*command, f"{option}{several}", *rest, "--distributed")
    finish(
        *start_joined(processes, 4 // processes, *together),
        start(4, *command, f"{option}{one}", *rest),
    )
    return several, one


def same_steps(several, one):
    """Every metric of every step, but for times. The gradient's norm less closely: Adam's first
    steps take as long a step where a gradient is no more than rounding, so parameters part there.
    """
    for mine, other in zip(*(read_run(w).steps for w in (one, several)), strict=True):
        for name in mine.keys() - {"step_time"}:
            expected = mine[name]
            if isinstance(expected, float):
                close = 1e-4 if name == "grad_norm" else 1e-5
                expected = pytest.approx(expected, rel=close, abs=1e-5, nan_ok=True)
            assert other[name] == expected, name


def same_samples(several, one, *, lead, processes):
    """Those processes log the samples of one process among them, and the others none."""
    folders = [several, *(several / f"processes/{i}" for i in range(1, processes))]
    logged = [read_samples(folder) for folder in folders]
    assert [i for i, table in enumerate(logged) if table is not None] == list(lead)
    ids = [name for i in lead for name in logged[i]["record_id"].to_pylist()]
    assert sorted(ids) == sorted(read_samples(one)["record_id"].to_pylist())


def splits(workdir):
    return json.loads((workdir / "results.json").read_text())["splits"]


@pytest.mark.long  # with a base that they make; those below are from one that is there
def test_two_processes_equal_one(tmp_path):
    two, one = run_both(tmp_path, *TRAIN, option="--workdir=")
    results = [json.loads((w / "results.json").read_text()) for w in (one, two)]
    assert all(r["status"] == "done" and r["device"].startswith("4 ×") for r in results)
    assert np.shape(results[1]["splits"]["test"]["accuracy"]) == (3, 2)
    for mine, other in zip(*(read_run(w).steps for w in (one, two)), strict=True):
        assert mine["num_tokens"] == pytest.approx(other["num_tokens"], rel=0.02)
        for name in ("reward", "loss", "kl", "rp/mean", "entropy", "completions/mean_length"):
            assert mine[name] == pytest.approx(other[name], rel=0.05, abs=0.02), name
    # each process logs the samples of its own rows
    rows = [read_samples(two), read_samples(two / "processes/1")]
    whole = read_samples(one)
    assert len(rows[0]) == len(rows[1]) == len(whole) / 2
    assert rows[0]["record_id"].to_pylist() + rows[1]["record_id"].to_pylist() != []
    first = [
        r
        for table in rows
        for r, s in zip(table["record_id"].to_pylist(), table["step"].to_pylist(), strict=True)
        if s == 0
    ]
    assert first == [
        r
        for r, s in zip(whole["record_id"].to_pylist(), whole["step"].to_pylist(), strict=True)
        if s == 0
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_random_model(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture(scope="module")
def methods(tmp_path_factory, base):
    folder = tmp_path_factory.mktemp("methods")
    return run_both(folder, "tests.train_several", processes=4, rest=(str(base), "METHODS"))


@pytest.mark.long  # two processes that hold the same rows, and others that do not, are below
@pytest.mark.parametrize("method", METHODS)
def test_methods_over_processes_of_which_two_hold_the_same_rows(methods, method):
    several, one = (folder / method for folder in methods)
    same_steps(several, one)
    assert splits(several) == splits(one)
    same_samples(several, one, lead=(0, 2), processes=4)


@pytest.mark.slow
def test_two_processes_go_on_over_another_mesh_and_equal_one(tmp_path, base):
    """Killed where both hold the same rows, and gone on with where each has its own."""
    folders = run_both(tmp_path, "tests.train_several", rest=(str(base), "KILLED"))
    several, one = (folder / "killed" for folder in folders)
    assert read_run(several).steps[-1]["step"] == KILLED_AT
    assert read_samples(several / "processes/1") is None  # process 0 has logged all rows
    again = ("tests.train_several", str(several.parent), str(base), "RESUMED", "--distributed")
    finish(*start_joined(2, 1, *again))
    same_steps(several, one)
    assert splits(several) == splits(one)
    same_samples(several, one, lead=(0, 1), processes=2)
    own = set(read_samples(several / "processes/1")["step"].to_pylist())
    assert own == {KILLED_AT, 2, 3}  # which was logged, but not saved yet


@pytest.mark.slow
def test_rows_are_the_same_however_the_mesh_lies_over_processes():
    finish(*start_joined(4, 2, "tests.rows_over_processes"))


def test_processes_that_see_other_folders_are_told_and_all_end_together(tmp_path):
    finish(*start_joined(2, 1, "tests.joined", str(tmp_path)))
    told = [(tmp_path / f"{process}.txt").read_text() for process in (0, 1)]
    assert all("process 1 of 2 does not find there what process 0, on" in text for text in told)


def test_processes_take_one_size_whatever_their_rows_need(monkeypatch):
    config = small_config()
    config.data.prompt_lengths, config.data.patch_slots = (16, 24), ()
    assert allowed_sizes(config, "prompt_lengths") == (16, 24)
    assert allowed_sizes(config, "patch_slots") == ()
    monkeypatch.setattr("jax.process_count", lambda: 2)
    assert allowed_sizes(config, "prompt_lengths") == (24,)
    with pytest.raises(ValueError, match="patch_slots is empty"):
        allowed_sizes(config, "patch_slots")


def test_processes_choose_a_layout_by_the_device_that_has_least(monkeypatch):
    """Not each by its own: they would run other programs and wait for one another."""
    here, there = 80 * 2**30, 60 * 2**30

    def gathered(mine):
        return np.stack([mine, np.int32(there // 2**20)])

    monkeypatch.setattr(sharding, "memory_of", lambda device: here)
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr(sharding.multihost_utils, "process_allgather", gathered)
    monkeypatch.setattr(setup, "least_memory", sharding.least_memory.__wrapped__)
    monkeypatch.setattr(setup.layout, "with_layout", lambda config, devices, memory, kernel: memory)
    config = small_config()
    assert setup._laid_out(config) is None  # a base that is still to be made
    config.model.path = "any"
    assert setup._laid_out(config) == there


def test_a_reward_that_applies_nowhere_in_one_process_is_counted_by_the_others(monkeypatch):
    nan = float("nan")
    here = {"format": np.array([1.0, 0.0]), "boxes": np.array([nan, nan]), "none": np.full(2, nan)}
    assert component_means(here, RowShard()) == {"rewards/format/mean": 0.5}
    there = np.array([(2.0, 2), (3.0, 4), (0, 0)])
    monkeypatch.setattr(metrics, "all_hosts_sum", lambda sums, shard: sums + there)
    assert component_means(here, RowShard()) == {
        "rewards/format/mean": 0.75,
        "rewards/boxes/mean": 0.75,
    }
