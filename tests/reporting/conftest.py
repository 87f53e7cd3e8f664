"""Real runs of two tasks and one that is held out, to read only; `copied` is for changes."""

import shutil

import pytest

from rdbcl_jax.training.run import train
from tests.engine import write_random_model
from tests.tiny_runs import killed_at, made_once, tiny_config


def make_runs(folder):
    base = write_random_model(folder / "base")
    common = {"evaluation.tasks": ("alt",)}
    train(tiny_config(base, **common), folder / "rdbcl-0")
    train(tiny_config(base, "grpo", **common, **{"kl.beta": 0.0}), folder / "grpo-0")
    train(tiny_config(base, "zero_shot", **common), folder / "zero-shot")
    killed_at(4, tiny_config(base, seed=1, profile=1, **common), folder / "killed")


@pytest.fixture(scope="session")
def runs(tmp_path_factory, worker_id):
    """A folder of workdirs: rdbcl-0, grpo-0, zero-shot, and one killed in its second task."""
    return made_once(tmp_path_factory, worker_id, "runs", make_runs)


@pytest.fixture
def copied(runs, tmp_path):
    """copied(name) → a copy of a workdir, without its policies."""

    def copy(name="rdbcl-0"):
        ignored = shutil.ignore_patterns("checkpoints", "tb")
        return shutil.copytree(runs / name, tmp_path / name, ignore=ignored)

    return copy
