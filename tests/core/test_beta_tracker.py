"""MSSR's tracker against numbers worked out by hand, and its bounds."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rdbcl_jax.core.beta_tracker import RHO_MAX, RHO_MIN, baselines, forgetting, observe, start


def test_starts_with_eight_pseudo_counts():
    tracker = start(jnp.array([0.0, 0.25, 1.0]))
    np.testing.assert_allclose(tracker.alpha, [0, 2, 8])
    np.testing.assert_allclose(tracker.beta, [8, 6, 0])
    np.testing.assert_allclose(baselines(tracker, jnp.array([1, 1, 2])), [0.25, 0.25, 1.0])


def test_a_prompt_seen_twice_in_a_batch_forgets_once():
    tracker = observe(
        start(jnp.full(3, 0.5)), jnp.array([2, 0, 2]), jnp.array([1.0, 0.0, 1.0]), 0.9
    )
    np.testing.assert_allclose(tracker.alpha, [3.6, 4, 5.6], rtol=1e-6)
    np.testing.assert_allclose(tracker.beta, [4.6, 4, 3.6], rtol=1e-6)


def test_forgetting_follows_the_codes_rule():
    np.testing.assert_allclose(forgetting(0.0), RHO_MIN)
    np.testing.assert_allclose(forgetting(0.005), (RHO_MIN + RHO_MAX) / 2, rtol=1e-6)
    np.testing.assert_allclose(forgetting(0.01), RHO_MAX, rtol=1e-6)
    np.testing.assert_allclose(forgetting(0.0101), RHO_MIN)
    assert forgetting(jnp.bfloat16(0.005)).dtype == jnp.float32
    np.testing.assert_allclose(forgetting(0.5, 1.0, 0.2, 0.4), 0.3, rtol=1e-6)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=40), st.floats(0.875, 0.96))
def test_baselines_stay_rates_and_constant_success_is_learned(seen, rho):
    tracker = start(jnp.full(5, 0.5))
    for prompt, outcome in seen:
        tracker = observe(tracker, np.array([prompt]), np.array([float(outcome)]), rho)
    found = np.asarray(baselines(tracker, jnp.arange(5)))
    assert ((found > 0) & (found < 1)).all() and found[4] == 0.5
    for _ in range(60):
        tracker = observe(tracker, np.array([4]), np.array([1.0]), rho)
    assert baselines(tracker, jnp.array([4])) > 0.95
