"""KL estimators: values, slopes, and expected gradients by exact enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdbcl_jax import kl_bounded_fraction, kl_estimate
from rdbcl_jax.core.kl import K3_CUTOFF, is_bounded

KINDS = ["k1", "k2", "k3", "k3_bounded"]
nats = st.floats(-60, 60, allow_nan=False, width=32)


def policy(seed, vocabulary=6):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(0, 1, vocabulary), jnp.float32)


def full_kl(logits_p, logits_q):
    p, q = jax.nn.log_softmax(logits_p), jax.nn.log_softmax(logits_q)
    return (jnp.exp(p) * (p - q)).sum()


def expected_loss(logits, reference, kind):
    """E over tokens sampled from the frozen policy of the estimate, as a loss term sees it."""
    logps = jax.nn.log_softmax(logits)
    sampled = jax.lax.stop_gradient(jnp.exp(logps))
    return (sampled * kl_estimate(logps, jax.nn.log_softmax(reference), kind)).sum()


@pytest.mark.parametrize("seed", range(3))
def test_expected_gradients_by_enumeration(seed):
    logits, reference = policy(seed), policy(seed + 100)
    gradient = {kind: jax.grad(expected_loss)(logits, reference, kind) for kind in KINDS}
    np.testing.assert_allclose(gradient["k1"], 0, atol=1e-6)
    reverse = jax.grad(full_kl)(logits, reference)
    np.testing.assert_allclose(gradient["k2"], reverse, atol=1e-6)
    forward = jax.grad(lambda x: full_kl(reference, x))(logits)
    np.testing.assert_allclose(gradient["k3"], forward, atol=1e-6)
    assert not np.allclose(forward, reverse, atol=1e-2)


def test_k1_and_k3_are_unbiased():
    logits, reference = policy(1), policy(2)
    exact = full_kl(logits, reference)
    for kind in ("k1", "k3"):
        np.testing.assert_allclose(expected_loss(logits, reference, kind), exact, rtol=1e-5)


def test_a_gradient_step_on_each_usable_kind_lowers_the_kl():
    logits, reference = policy(3), policy(4)
    for kind in ("k2", "k3", "k3_bounded"):
        step = logits - 0.05 * jax.grad(expected_loss)(logits, reference, kind)
        assert full_kl(step, reference) < full_kl(logits, reference)


@pytest.mark.parametrize("kind", KINDS)
def test_values_match_float64(kind):
    rng = np.random.default_rng(0)
    logps, reference = -rng.exponential(2, 500), -rng.exponential(2, 500)
    d = reference - logps
    k3 = np.exp(d) - d - 1
    line = 9 - np.log(10) + 9 * (d - np.log(10))
    bounded = np.where(d <= np.log(10), k3, line)
    expected = {"k1": -d, "k2": d**2 / 2, "k3": k3, "k3_bounded": bounded}[kind]
    actual = kl_estimate(logps, reference, kind)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)


@settings(max_examples=100, deadline=None)
@given(d=nats)
def test_bounded_k3_never_lets_go_and_never_explodes(d):
    def estimate(logp, kind="k3_bounded"):
        return kl_estimate(logp, jnp.float32(d), kind)

    value, slope = jax.value_and_grad(estimate)(jnp.float32(0))
    assert np.isfinite(value) and value >= 0
    assert -9.001 <= slope <= 1
    if d > 0.01:
        assert slope < 0  # pulled up, towards the reference
    if d < -0.01:
        assert slope > 0
    if d <= K3_CUTOFF:
        np.testing.assert_allclose(value, estimate(jnp.float32(0), "k3"), rtol=1e-6)
    else:
        assert value <= estimate(jnp.float32(0), "k3") and slope < -8.99


def test_bounded_k3_is_smooth_at_the_cut_off():
    near = jnp.float32(K3_CUTOFF) + jnp.array([-1e-3, 1e-3])
    slope = jax.vmap(jax.grad(lambda logp, r: kl_estimate(logp, r, "k3_bounded")), (None, 0))(
        jnp.float32(0), near
    )
    np.testing.assert_allclose(slope, -9, atol=0.02)


def test_extreme_drift_has_a_finite_bounded_gradient():
    slope = jax.grad(lambda x: kl_estimate(x, 0.0, "k3_bounded"))(-1e4)
    np.testing.assert_allclose(slope, -9, rtol=1e-5)


def test_what_is_bounded_by_hand():
    """Where the reference is more than 10 times as sure, not where it is exactly that."""
    cut = np.float32(K3_CUTOFF)
    logps = np.array([-3.0, -1.0, -cut, -0.5], np.float32)
    reference = np.array([-0.5, -3.5, 0.0, -2.0], np.float32)
    np.testing.assert_array_equal(is_bounded(logps, reference), [1, 0, 0, 0])


def test_fraction_bounded():
    logps, reference = jnp.zeros(4), jnp.array([3.0, 2.0, -5.0, jnp.nan])
    mask = jnp.array([1, 1, 1, 0])
    np.testing.assert_allclose(kl_bounded_fraction(logps, reference, mask), 1 / 3, rtol=1e-6)


def test_equal_policies_have_exactly_zero_kl_and_transforms_work():
    logps = -jnp.arange(6.0).reshape(2, 3) * 1.7
    for kind in KINDS:
        np.testing.assert_array_equal(kl_estimate(logps, logps, kind), 0)
        f = jax.jit(jax.vmap(lambda a, b, kind=kind: kl_estimate(a, b, kind)))
        np.testing.assert_allclose(f(logps, logps + 1), kl_estimate(logps, logps + 1, kind))


def test_unknown_kind():
    with pytest.raises(ValueError, match="k3_bounded"):
        kl_estimate(0.0, 0.0, "k4")
