import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdbcl_jax.checkpoint import Checkpoints
from rdbcl_jax.sharding import ParamAxes, make_mesh, param_shardings
from rdbcl_jax.training.optimizer import make_optimizer
from rdbcl_jax.training.state import TrainState
from tests import engine


def make_state(name="adamw"):
    config = engine.small_config().optimizer
    config.name = name
    key = jax.random.key(0)
    params = {"layers": {"q_proj": {"kernel": jax.random.normal(key, (2, 16, 16))}}}
    params["norm"] = {"scale": jnp.ones(16, jnp.bfloat16)}
    return TrainState.create(params, make_optimizer(config, 10))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_round_trip_is_exact_and_only_the_latest_step_stays(tmp_path, name):
    state = make_state(name)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step() is None
    checkpoints.save_step(3, jax.tree.map(jnp.zeros_like, state))
    checkpoints.save_step(12, state)
    assert checkpoints.latest_step() == 12
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000012"]
    restored = Checkpoints(tmp_path).restore_step(12, jax.tree.map(jnp.zeros_like, state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert all(
        a.dtype == b.dtype for a, b in zip(*map(jax.tree.leaves, (restored, state)), strict=True)
    )


def test_restores_onto_another_mesh(tmp_path):
    params = make_state().params
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_task(1, params)
    shardings = param_shardings(
        params,
        ParamAxes((("q_proj/kernel$", ("embed", "heads")),), ("layers",)),
        make_mesh(2, 2, 2),
    )
    like = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), params, shardings
    )
    restored = checkpoints.restore_task(1, like)
    jax.tree.map(np.testing.assert_array_equal, restored, params)
    assert (
        restored["layers"]["q_proj"]["kernel"].sharding == shardings["layers"]["q_proj"]["kernel"]
    )


def test_another_structure_is_one_clear_error(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_step(1, make_state("adamw"))
    with pytest.raises(ValueError, match="another model or optimizer") as error:
        checkpoints.restore_step(1, make_state("muon"))
    assert "mu/layers/q_proj/kernel" in str(error.value)
