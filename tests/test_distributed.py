"""Two processes with two devices each do what one process with four does."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from rdbcl_jax.policy import allowed_sizes
from rdbcl_jax.reporting.run_files import read_run
from rdbcl_jax.reporting.samples import read_samples
from rdbcl_jax.training import metrics
from rdbcl_jax.training.metrics import component_means
from tests.compiler import QUICK
from tests.engine import small_config
from tests.train_several import METHODS

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


def run_both(folder, *command, option=""):
    """What the command, told where by `option`, leaves of two processes, and of one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    two, one = folder / "two", folder / "one"
    together = (*command, f"{option}{two}", "--distributed")
    finish(
        *(start(2, *together, JAX_PROCESS_ID=str(i), **common) for i in range(2)),
        start(4, *command, f"{option}{one}"),
    )
    return two, one


@pytest.mark.slow
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
def several(tmp_path_factory):
    return run_both(tmp_path_factory.mktemp("several"), "tests.train_several")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_methods_over_two_processes(several, method):
    two, one = (folder / method for folder in several)
    for mine, other in zip(*(read_run(w).steps for w in (one, two)), strict=True):
        same = ("reward", "loss", "grad_norm", "batches", "completions/mean_length")
        if method == "dapo":  # each process draws again for its own rows
            same = ("batches",)
        for name in same:
            assert mine[name] == pytest.approx(other[name], rel=0.05, abs=0.02), name


def test_processes_take_one_size_whatever_their_rows_need(monkeypatch):
    config = small_config()
    config.data.prompt_lengths, config.data.patch_slots = (16, 24), ()
    assert allowed_sizes(config, "prompt_lengths") == (16, 24)
    assert allowed_sizes(config, "patch_slots") == ()
    monkeypatch.setattr("jax.process_count", lambda: 2)
    assert allowed_sizes(config, "prompt_lengths") == (24,)
    with pytest.raises(ValueError, match="patch_slots is empty"):
        allowed_sizes(config, "patch_slots")


def test_a_reward_that_applies_nowhere_in_one_process_is_counted_by_the_others(monkeypatch):
    nan = float("nan")
    here = {"format": np.array([1.0, 0.0]), "boxes": np.array([nan, nan]), "none": np.full(2, nan)}
    assert component_means(here) == {"rewards/format/mean": 0.5}
    there = np.array([(2.0, 2), (3.0, 4), (0, 0)])
    monkeypatch.setattr(metrics, "all_hosts_sum", lambda sums: sums + there)
    assert component_means(here) == {"rewards/format/mean": 0.75, "rewards/boxes/mean": 0.75}
