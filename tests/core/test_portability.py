"""Portability and the coefficients made from it: values, order, bounds, masks, controls."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdbcl_jax import (
    accuracy_kl_coefficients,
    invert_kl_coefficients,
    kl_coefficients,
    matched_constant_kl_coefficients,
    reasoning_portability,
    shuffle_kl_coefficients,
    verified_kl_coefficients,
)

MAPPINGS = ["sigmoid", "clip", "minmax", "rank", "constant"]
RANGE = {"beta_min": 0.01, "beta_max": 0.1}
seeds = st.integers(0, 2**32 - 1)
portabilities = st.lists(st.floats(0, 3, width=32), min_size=9, max_size=9)


@cache
def coefficients_of(mapping):
    return jax.jit(partial(kl_coefficients, **RANGE, mapping=mapping))


def draw(seed=0, B=5, T=9):
    rng = np.random.default_rng(seed)
    policy = -rng.exponential(1.0, (B, T))
    span = rng.random((B, T)) < 0.5
    span[0], span[1] = True, False
    return policy, policy - rng.exponential(0.3, (B, T)), span


def test_ratio_and_confidence_match_float64():
    policy, reference, span = draw()
    for kind, logs in (("ratio", reference - policy), ("confidence", reference)):
        rp = reasoning_portability(policy, reference, span, kind=kind, empty_value=0.25)
        for i in range(len(span)):
            expected = np.exp(logs[i, span[i]].mean()) if span[i].any() else 0.25
            np.testing.assert_allclose(rp[i], expected, rtol=1e-5)
        assert rp.dtype == jnp.float32 and rp.shape == (5,)


def test_portability_is_exactly_one_before_the_first_update():
    policy, _, span = draw()
    np.testing.assert_array_equal(reasoning_portability(policy, policy, span), 1.0)


def test_portability_falls_as_the_policy_leaves_the_reference():
    policy, _, span = draw()
    rp = [reasoning_portability(policy, policy - d, span)[0] for d in (0.0, 0.1, 0.5, 2.0)]
    assert all(np.diff(rp) < 0)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["ratio", "confidence"])
def test_portability_ignores_what_is_outside_the_span(garbage, kind):
    policy, reference, span = draw()
    dirty = [np.where(span, x, garbage) for x in (policy, reference)]
    clean = reasoning_portability(policy, reference, span, kind=kind)
    np.testing.assert_array_equal(clean, reasoning_portability(*dirty, span, kind=kind))


def test_portability_has_no_gradient_stays_finite_and_transforms():
    policy, reference, span = map(jnp.asarray, draw())
    gradient = jax.grad(lambda p, r: reasoning_portability(p, r, span).sum(), (0, 1))
    assert not any(g.any() for g in gradient(policy, reference))
    assert np.isfinite(reasoning_portability(policy - 1e6, reference, span)).all()
    rp = reasoning_portability(policy, reference, span)
    mapped = jax.jit(jax.vmap(reasoning_portability))(policy, reference, span)
    np.testing.assert_allclose(mapped, rp, rtol=1e-6)
    grouped = [x.reshape(1, 5, 9) for x in (policy, reference, span)]
    np.testing.assert_allclose(reasoning_portability(*grouped)[0], rp, rtol=1e-6)


def unit_reference(rp, valid, mapping, temperature):
    kept = rp[valid].astype(np.float64)
    if mapping == "clip":
        return np.clip(rp, 0, 1)
    if mapping == "sigmoid":
        z = (rp - kept.mean()) / max(kept.std(), 0.02)
        return 1 / (1 + np.exp(-z / temperature))
    if mapping == "minmax":
        return np.clip((rp - kept.min()) / (kept.max() - kept.min()), 0, 1)
    if mapping == "rank":
        below = (kept < rp[:, None]).sum(1)
        equal = (kept == rp[:, None]).sum(1)
        return np.clip((below + (equal - 1) / 2) / (len(kept) - 1), 0, 1)
    return np.ones_like(rp)


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_mappings_match_float64(mapping, temperature):
    rng = np.random.default_rng(0)
    rp = np.float32(rng.choice(rng.uniform(0.2, 1.2, 12), 30))
    valid = rng.random(30) < 0.7
    beta = kl_coefficients(rp, **RANGE, mapping=mapping, temperature=temperature, valid=valid)
    expected = 0.01 + 0.09 * unit_reference(rp, valid, mapping, temperature)
    np.testing.assert_allclose(beta, expected, rtol=1e-4)


@pytest.mark.parametrize("mapping", MAPPINGS)
@settings(max_examples=20, deadline=None)
@given(rp=portabilities, seed=seeds)
def test_bounded_monotone_and_permutation_equivariant(mapping, rp, seed):
    rng = np.random.default_rng(seed)
    rp, valid = np.float32(rp), rng.random(len(rp)) < 0.8
    f = coefficients_of(mapping)
    beta = np.asarray(f(rp, valid=valid))
    assert (beta >= np.float32(0.01)).all() and (beta <= np.float32(0.1)).all()
    assert (np.diff(beta[np.argsort(rp, kind="stable")]) >= -1e-7).all()
    order = rng.permutation(len(rp))
    shuffled = f(rp[order], valid=valid[order])
    np.testing.assert_allclose(shuffled, beta[order], rtol=1e-4)


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_equal_portabilities_say_nothing(mapping):
    middle = {"clip": 0.1, "constant": 0.1}.get(mapping, 0.055)
    for rp in (np.ones(7), np.ones(1), 1 + 1e-7 * np.arange(-3, 4)):
        if mapping == "rank" and len(set(np.float32(rp))) > 1:
            continue  # a rank is a rank, however small the difference
        np.testing.assert_allclose(kl_coefficients(rp, **RANGE, mapping=mapping), middle, rtol=1e-2)


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("garbage", [np.nan, -np.inf])
def test_invalid_samples_do_not_move_the_valid_ones(mapping, garbage):
    rp = np.array([0.3, 0.8, 0.5, 0.9, 0.8])
    alone = kl_coefficients(rp, **RANGE, mapping=mapping)
    padded, valid = np.r_[rp, garbage, garbage], np.arange(7) < 5
    beta = kl_coefficients(padded, **RANGE, mapping=mapping, valid=valid)
    np.testing.assert_allclose(beta[:5], alone, rtol=1e-6)
    assert np.isfinite(beta).all() and (beta >= 0.0099).all() and (beta <= 0.1001).all()
    if not np.isfinite(garbage):  # never valid, whoever says so
        unasked = kl_coefficients(padded, **RANGE, mapping=mapping)
        np.testing.assert_allclose(unasked[:5], alone, rtol=1e-6)
    nobody = kl_coefficients(padded, **RANGE, mapping=mapping, valid=np.zeros(7, bool))
    assert np.isfinite(nobody).all()


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_coefficients_transform_and_have_no_gradient(mapping):
    rp = jnp.asarray(np.random.default_rng(1).random((3, 6)), jnp.float32)
    f = coefficients_of(mapping)
    np.testing.assert_allclose(jax.vmap(f)(rp), [f(row) for row in rp], rtol=1e-5)
    assert not jax.grad(lambda rp: f(rp).sum())(rp).any()
    np.testing.assert_allclose(f(rp).ravel(), f(rp.ravel()), rtol=1e-6)  # [P, G] is one batch


def test_the_range_may_be_traced():
    f = jax.jit(
        lambda low, high: kl_coefficients(jnp.array([0.1, 0.9]), beta_min=low, beta_max=high)
    )
    expected = kl_coefficients(jnp.array([0.1, 0.9]), **RANGE)
    np.testing.assert_allclose(f(0.01, 0.1), expected, rtol=1e-6)


def test_controls():
    rp = np.random.default_rng(2).random(50)
    valid = np.arange(50) % 3 > 0
    beta = kl_coefficients(rp, **RANGE, valid=valid)
    inverted = np.asarray(invert_kl_coefficients(beta, **RANGE))
    assert (np.diff(inverted[np.argsort(rp)]) <= 0).all()
    np.testing.assert_allclose(invert_kl_coefficients(inverted, **RANGE), beta, rtol=1e-5)
    outside = invert_kl_coefficients(np.array([0.5, -0.5]), **RANGE)
    np.testing.assert_allclose(outside, [0.01, 0.1], rtol=1e-6)
    everything = matched_constant_kl_coefficients(np.array([0.2, 0.4]))
    np.testing.assert_allclose(everything, [0.3, 0.3], rtol=1e-6)
    constant = matched_constant_kl_coefficients(beta, valid)
    np.testing.assert_allclose(constant, np.full(50, beta[valid].mean()), rtol=1e-6)
    kl = np.where(valid, np.random.default_rng(3).random(50), np.nan)
    equal = matched_constant_kl_coefficients(beta, valid, kl=kl)
    np.testing.assert_allclose((equal * kl)[valid].sum(), (beta * kl)[valid].sum(), rtol=1e-5)
    assert np.ptp(equal) == 0
    still = matched_constant_kl_coefficients(beta, valid, kl=np.zeros(50))
    np.testing.assert_array_equal(still, constant)  # nothing has moved yet
    out_of_range = accuracy_kl_coefficients(np.array([-1.0, 1.5]), **RANGE)
    np.testing.assert_allclose(out_of_range, [0.1, 0.1], rtol=1e-5)
    accuracy = accuracy_kl_coefficients(np.array([0, 0.25, 0.5, 1.0]), **RANGE)
    np.testing.assert_allclose(accuracy, [0.1, 0.0325, 0.01, 0.1], rtol=1e-5)


def test_only_what_is_right_is_anchored():
    found = verified_kl_coefficients(
        np.array([0.1, 0.05, 0.1]), np.array([1, 0, 0.5]), beta_min=0.01
    )
    np.testing.assert_allclose(found, [0.1, 0.01, 0.055], rtol=1e-6)
    # verdicts out of range count as the nearest that there is
    found = verified_kl_coefficients(np.array([0.1, 0.1]), np.array([1.5, -0.5]), beta_min=0.01)
    np.testing.assert_allclose(found, [0.1, 0.01], rtol=1e-6)
    gradient = jax.grad(lambda a: verified_kl_coefficients(a, a, beta_min=0.0).sum())(
        jnp.array([0.5])
    )
    np.testing.assert_allclose(gradient, 0.5)  # none through the verdict


def test_shuffle_deals_the_valid_ones_among_themselves():
    beta, valid = jnp.arange(40.0), np.arange(40) % 4 > 0
    one, two = (shuffle_kl_coefficients(jax.random.key(i), beta, valid) for i in (0, 1))
    np.testing.assert_array_equal(np.sort(one[valid]), beta[valid])
    np.testing.assert_array_equal(one[~valid], beta[~valid])
    assert (one != two).any() and (one[valid] != beta[valid]).mean() > 0.8
    again = jax.jit(shuffle_kl_coefficients)(jax.random.key(0), beta, valid)
    np.testing.assert_array_equal(one, again)
    square = shuffle_kl_coefficients(jax.random.key(0), beta.reshape(8, 5), valid.reshape(8, 5))
    np.testing.assert_array_equal(square.ravel(), one)


def test_errors():
    with pytest.raises(ValueError, match="confidence"):
        reasoning_portability(np.zeros((1, 2)), np.zeros((1, 2)), np.ones((1, 2)), kind="rate")
    with pytest.raises(ValueError, match="sigmoid"):
        kl_coefficients(np.ones(2), **RANGE, mapping="linear")
    with pytest.raises(ValueError, match="beta_min"):
        kl_coefficients(np.ones(2), beta_min=0.2, beta_max=0.1)
    for function in (invert_kl_coefficients, accuracy_kl_coefficients):
        for low, high in ((0.2, 0.1), (-0.1, 0.1)):
            with pytest.raises(ValueError, match="beta_min"):
                function(np.ones(2), beta_min=low, beta_max=high)
    with pytest.raises(ValueError, match="temperature"):
        kl_coefficients(np.ones(2), **RANGE, temperature=0.0)


def test_the_floor_of_the_z_score():
    """RP that differ by less than 0.02 stay near the midpoint: z is in units of the floor."""
    rp = np.array([0.499, 0.501])
    z = np.array([-0.05, 0.05])  # 0.001 / 0.02
    expected = 1 / (1 + np.exp(-z))
    actual = kl_coefficients(rp, beta_min=0.0, beta_max=1.0, mapping="sigmoid")
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    hot = kl_coefficients(rp, beta_min=0.0, beta_max=1.0, mapping="sigmoid", temperature=0.1)
    np.testing.assert_allclose(hot, 1 / (1 + np.exp(-10 * z)), rtol=1e-5)


def test_the_floor_of_the_range():
    # 0.001 + (0.08 - 0.001) is more than 0.08 in float32
    rounded = kl_coefficients(np.ones(1), beta_min=0.001, beta_max=0.08, mapping="constant")
    assert rounded == np.float32(0.08)
    actual = kl_coefficients(np.array([0.5, 0.50001]), beta_min=0.0, beta_max=1.0, mapping="minmax")
    np.testing.assert_allclose(actual, [0.45, 0.55], atol=2e-3)  # 1e-5 of 1e-4


@pytest.mark.parametrize("mapping", ["sigmoid", "minmax", "rank"])
def test_a_single_valid_sample_is_at_the_midpoint(mapping):
    valid = np.array([False, True, False])
    actual = kl_coefficients(
        np.array([0.1, 0.5, 0.9]), beta_min=0.2, beta_max=0.4, mapping=mapping, valid=valid
    )
    assert float(actual[1]) == pytest.approx(0.3)
    none = kl_coefficients(
        np.array([0.1, 0.5]), beta_min=0.2, beta_max=0.4, mapping=mapping, valid=np.zeros(2, bool)
    )
    np.testing.assert_allclose(none, 0.3, rtol=1e-6)


def test_ranks_by_hand():
    actual = kl_coefficients(
        np.array([0.3, 0.1, 0.2, 0.2]), beta_min=0.0, beta_max=1.0, mapping="rank"
    )
    np.testing.assert_allclose(actual, [1.0, 0.0, 0.5, 0.5], atol=1e-6)
