"""Group advantages against float64, and what a reward that does not apply may touch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdbcl_jax import group_advantages, leave_one_out_advantages

seeds = st.integers(0, 2**32 - 1)


def draw(seed, P=4, G=6):
    rng = np.random.default_rng(seed)
    rewards = rng.choice([0.0, 0.1, 0.5, 1.0, np.nan], (P, G))
    rewards[0] = 0.1  # a group without information
    rewards[1, 1:] = np.nan  # one that has a single reward
    rewards[2] = np.nan
    return rewards


def reference(rewards, scale, ddof):
    out = np.zeros_like(rewards)
    for i, row in enumerate(rewards):
        kept = row[~np.isnan(row)]
        if len(kept) < 2 or kept.min() == kept.max():
            continue
        width = kept.std(ddof=ddof) + 1e-4 if scale == "std" else 1.0
        out[i] = np.where(np.isnan(row), 0.0, (row - kept.mean()) / width)
    return out


@settings(max_examples=30, deadline=None)
@given(seed=seeds, scale=st.sampled_from(["std", "none"]), ddof=st.sampled_from([0, 1]))
def test_matches_float64(seed, scale, ddof):
    rewards = draw(seed)
    actual = group_advantages(rewards, scale=scale, ddof=ddof)
    np.testing.assert_allclose(actual, reference(rewards, scale, ddof), rtol=2e-4, atol=1e-5)
    assert not actual[:3].any()


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_leave_one_out(seed):
    rewards = draw(seed)
    actual = np.asarray(leave_one_out_advantages(rewards))
    for i, g in np.ndindex(rewards.shape):
        others = np.delete(rewards[i], g)
        others = others[~np.isnan(others)]
        applies = len(others) and not np.isnan(rewards[i, g])
        expected = rewards[i, g] - others.mean() if applies else 0.0
        np.testing.assert_allclose(actual[i, g], expected, atol=1e-6)


@pytest.mark.parametrize("function", [group_advantages, leave_one_out_advantages])
def test_properties(function):
    rewards = np.random.default_rng(0).random((3, 5))
    advantages = function(rewards)
    np.testing.assert_allclose(advantages.sum(-1), 0, atol=1e-5)
    np.testing.assert_allclose(function(rewards + 5.0), advantages, atol=1e-4)
    np.testing.assert_allclose(function(rewards[:, ::-1]), advantages[:, ::-1], atol=1e-5)
    np.testing.assert_array_equal(function(rewards[:, :1]), 0)  # G = 1
    np.testing.assert_array_equal(function(np.full((2, 3), 0.1)), 0)  # 0.1 is not exact in binary
    np.testing.assert_allclose(jax.jit(jax.vmap(function))(rewards), advantages, atol=1e-5)
    assert function(jnp.ones((2, 2), jnp.bfloat16)).dtype == jnp.float32


def test_gradients_are_finite_in_groups_without_information():
    gradient = jax.grad(lambda r: (group_advantages(r) ** 2).sum())(
        jnp.array([[1.0, 1.0, 1.0], [0.0, jnp.nan, jnp.nan], [1.0, 0.0, jnp.nan]])
    )
    assert np.isfinite(gradient).all()


def test_unknown_scale():
    with pytest.raises(ValueError, match="std"):
        group_advantages(np.zeros((1, 2)), scale="max")
