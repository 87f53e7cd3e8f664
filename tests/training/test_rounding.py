"""Parameters and moments held in bfloat16: rounded at random, they learn what float32 would."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdbcl_jax.config import OptimizerConfig, Refused, RunConfig
from rdbcl_jax.training.optimizer import make_optimizer
from rdbcl_jax.training.rounding import round_at_random
from rdbcl_jax.training.state import TrainState
from rdbcl_jax.training.update import _step

RATE, UPDATES = 1e-6, 50


def test_a_number_becomes_one_of_its_neighbours_and_the_mean_stays():
    x = jnp.concatenate([jnp.full(40_000, 0.0200001), jnp.full(40_000, -0.0200001)])
    found = round_at_random(jax.random.key(0), x, jnp.bfloat16)
    assert found.dtype == jnp.bfloat16
    wide = np.asarray(found, np.float32)
    assert len(np.unique(wide)) == 4
    np.testing.assert_allclose(wide[:40_000].mean(), 0.0200001, rtol=1e-4)
    np.testing.assert_allclose(wide[40_000:].mean(), -0.0200001, rtol=1e-4)
    again = round_at_random(jax.random.key(0), x, jnp.bfloat16)
    other = round_at_random(jax.random.key(1), x, jnp.bfloat16)
    assert (again == found).all() and (other != found).any()


def test_numbers_that_bfloat16_has_and_those_that_are_none_stay():
    x = jnp.array([0.0, -0.0, 1.0, -2.5, jnp.inf, -jnp.inf, jnp.nan], jnp.float32)
    found = round_at_random(jax.random.key(0), x, jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(found, np.float32), x)
    assert (np.signbit(found) == np.signbit(x)).all()
    assert round_at_random(jax.random.key(0), x, jnp.float32) is x


def after_updates(param_dtype, moments_dtype="float32"):
    """The state after updates of weights that bfloat16 has, by gradients that vary about 1."""
    options = OptimizerConfig(
        learning_rate=RATE, warmup_steps=1, moments_dtype=moments_dtype, clip_norm=0.0
    )
    optimizer = make_optimizer(options, UPDATES, param_dtype, seed=3)
    weights = jnp.full((64, 64), 0.02, jnp.bfloat16).astype(param_dtype)
    state = TrainState.create({"kernel": weights}, optimizer)
    step = jax.jit(lambda state, grads: _step(optimizer, state, grads, True, True, 3)[0])
    for noise in np.random.default_rng(0).normal(1, 0.3, (UPDATES, 64, 64)):
        state = step(state, {"kernel": jnp.asarray(noise, param_dtype)})
    return state, float((state.params["kernel"].astype(jnp.float32) - weights).mean())


def test_bfloat16_parameters_learn_at_rates_below_their_last_bit():
    """To the nearest none of them would ever move: the neighbours of 0.02 are 1.2e-4 away."""
    state, moved = after_updates("bfloat16")
    assert state.params["kernel"].dtype == jnp.bfloat16
    moments = [a for a in jax.tree.leaves(state.opt_state) if a.ndim]
    assert len(moments) == 2 and all(a.dtype == jnp.float32 for a in moments)
    expected = after_updates("float32")[1]
    assert moved == pytest.approx(expected, rel=0.1)
    assert moved == after_updates("bfloat16")[1]  # the seed says how it is rounded


def test_bfloat16_moments_do_what_float32_ones_do():
    state, moved = after_updates("float32", "bfloat16")
    moments = [a for a in jax.tree.leaves(state.opt_state) if a.ndim]
    assert len(moments) == 2 and all(a.dtype == jnp.bfloat16 for a in moments)
    whole, expected = after_updates("float32")
    assert moved == pytest.approx(expected, rel=0.01)
    wide = [a for a in jax.tree.leaves(whole.opt_state) if a.ndim]
    for a, b in zip(moments, wide, strict=True):
        assert float(a.astype(jnp.float32).mean()) == pytest.approx(float(b.mean()), rel=0.01)


def test_parameters_that_learn_in_float16_are_refused():
    with pytest.raises(Refused, match=r"model\.param_dtype is 'float16', expected one of"):
        RunConfig.of({"model": {"param_dtype": "float16"}})
