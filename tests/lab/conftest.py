"""A tiny base model of little skill, and a policy trained from it: real files, seconds to make."""

import jax
import pytest

from rdbcl_jax.checkpoint import Checkpoints
from rdbcl_jax.config import RunConfig
from rdbcl_jax.policy import load_policy
from rdbcl_jax.sharding import make_mesh
from rdbcl_jax.toy.base import make_base
from tests import engine


@pytest.fixture(scope="session")
def config():
    config = engine.small_config()
    config.data.test_count = 16
    return RunConfig.of(config)


@pytest.fixture(scope="session")
def workdir(config, tmp_path_factory):
    """`@0` has learned the format of responses in a few steps; `@1` has drifted from it."""
    workdir = tmp_path_factory.mktemp("run")
    base = make_base(config, workdir / "base", make_mesh(), lambda step, loss: None)
    _, params = load_policy(config.changed({"model.path": str(base)}), make_mesh())
    keys = iter(jax.random.split(jax.random.key(5), 100))
    moved = jax.tree.map(lambda a: a + 0.005 * jax.random.normal(next(keys), a.shape), params)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save_task(1, moved)
    return workdir
