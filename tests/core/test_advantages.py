"""Group advantages against float64, and what a reward that does not apply may touch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdbcl_jax import group_advantages, leave_one_out_advantages
from rdbcl_jax.core.advantages import (
    entropy_shaped,
    memorise_or_explore,
    retention_reward,
    whiten,
)

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


def test_leave_one_out_of_two():
    actual = leave_one_out_advantages(np.array([[1.0, 0.25], [np.nan, 3.0]]))
    np.testing.assert_allclose(actual, [[0.75, -0.75], [0.0, 0.0]])


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


def test_whitening_by_hand():
    # mean 2, variance 2/3
    expected = np.array([-1.0, 0.0, 1.0]) / np.sqrt(2 / 3)
    np.testing.assert_allclose(whiten(np.array([1.0, 2.0, 3.0])), expected, rtol=1e-6)
    # a variance of 1e-8 is below the floor of 1e-6
    np.testing.assert_allclose(whiten(np.array([-1e-4, 1e-4])), [-0.1, 0.1], rtol=1e-6)
    np.testing.assert_array_equal(whiten(np.full((2, 2), 5.0)), 0)
    # 0.1 is not the mean of itself in float32
    np.testing.assert_array_equal(whiten(np.array([np.nan] * 4 + [0.1], np.float32)), 0)
    np.testing.assert_array_equal(whiten(np.array([-0.2, np.nan, -0.2, np.nan], np.float32)), 0)


def test_entropy_shaping_by_hand():
    logps = np.log([[0.5, 0.25, 0.25], [0.25, 0.5, 0.125]])
    mask = np.array([[True, True, False], [True, True, True]])
    sampled = -np.exp(logps) * logps  # of the sampled token: -p log p
    actual = entropy_shaped(np.array([1.0, -0.5]), logps, mask)
    expected = [
        [1 + 0.4 * sampled[0, 0], 1 + 0.4 * sampled[0, 1], 0],
        -0.5 + 0.4 * sampled[1],  # less than half of 0.5, the cap
    ]
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    capped = entropy_shaped(np.array([1.0, -0.5]), logps, mask, scale=10.0, share=0.25)
    np.testing.assert_allclose(capped, [[1.25, 1.25, 0], [-0.375] * 3], rtol=1e-6)
    whole = np.array([[0.1, 0.2, np.nan], [0.3, 0.4, 0.0]])
    given_ones = entropy_shaped(np.array([1.0, 2.0]), logps, mask, scale=0.5, entropies=whole)
    np.testing.assert_allclose(given_ones, [[1.05, 1.1, 0], [2.15, 2.2, 2.0]], rtol=1e-6)


def test_entropy_shaping_ignores_what_is_masked_and_has_no_gradient():
    mask = np.array([[True, False]])
    shaped = entropy_shaped(np.array([1.0]), np.array([[-1.0, np.nan]]), mask)
    assert np.isfinite(shaped).all() and shaped[0, 1] == 0
    gradients = jax.grad(lambda a, l: entropy_shaped(a, l, mask).sum(), argnums=(0, 1))(
        jnp.array([1.0]), jnp.array([[-1.0, -2.0]])
    )
    assert not any(gradient.any() for gradient in gradients)


def test_memorise_or_explore_by_hand():
    rewards = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 2.0], [1.0, 0.5, 0.0]])
    accuracies = np.array([[0.0, 0.5, 0.0], [0.0, 1.0, 0.6], [1.0, 1.0, 0.75]])
    given_ones = np.array([[False, False, True], [True, False, False], [True, False, False]])
    actual = memorise_or_explore(rewards, accuracies, given_ones)
    np.testing.assert_array_equal(actual[0], [0, 0, 1])  # none is right: 0.5 is not
    np.testing.assert_allclose(actual[1], np.array([-1, 0, 1]) / (1 + 1e-4), rtol=1e-6)
    np.testing.assert_array_equal(actual[2], 0)  # all are
    # groups of another number than responses in each, and leading axes
    pair = memorise_or_explore(rewards[None, 1:], accuracies[None, 1:], given_ones[None, 1:])
    np.testing.assert_array_equal(pair, actual[None, 1:])
    half = memorise_or_explore(jnp.asarray(rewards, jnp.bfloat16), accuracies, given_ones)
    assert half.dtype == jnp.float32
    wide = memorise_or_explore(rewards, accuracies, given_ones, eps=1.0)
    np.testing.assert_allclose(wide[1], [-0.5, 0, 0.5], rtol=1e-6)


def test_the_retention_reward_by_hand():
    now = np.array([[-1.0, -2.0, np.nan], [-3.0, -1.0, -1.0], [-0.5, -0.5, -0.5]])
    before = np.array([[-1.1, -2.3, np.nan], [-1.0, -1.0, -1.0], [-0.5, -0.5, -0.5]])
    mask = np.array([[True, True, False], [True, True, True], [False, False, False]])
    # mean drifts 0.2, -2/3 (nearer than before: none) and nothing
    actual = retention_reward(now, before, mask)
    np.testing.assert_allclose(actual, [0.5 * np.exp(-4.0), 0.5, 0.5], rtol=1e-5)
    nested = retention_reward(now[:, None], before[:, None], mask[:, None])
    np.testing.assert_array_equal(nested, actual[:, None])
    other = retention_reward(now, before, mask, weight=2.0, sharpness=5.0)
    np.testing.assert_allclose(other, [2 * np.exp(-1.0), 2.0, 2.0], rtol=1e-5)
    gradient = jax.grad(lambda x: retention_reward(x, before[:2], mask[:2]).sum())(
        jnp.array(now[:2])
    )
    assert not np.nan_to_num(gradient, nan=1.0).any()
