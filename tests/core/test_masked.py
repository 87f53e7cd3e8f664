"""Masked reductions against float64, and their indifference to what a mask hides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdbcl_jax.core import masked

jitted_rank = jax.jit(masked.masked_rank)
seeds = st.integers(0, 2**32 - 1)
REDUCTIONS = [
    masked.masked_mean,
    masked.masked_variance,
    masked.masked_min,
    masked.masked_max,
    masked.masked_zscore,
    lambda x, m, axis=None: masked.masked_sum_and_count(x, m, axis)[0],
]


def draw(seed, shape=(5, 7)):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 3, shape), rng.random(shape) < rng.random()


def reference(name, values):
    if not len(values):
        return 0.0
    return {
        "masked_mean": np.mean,
        "masked_variance": np.var,
        "masked_min": np.min,
        "masked_max": np.max,
    }[name](values)


@pytest.mark.parametrize("reduction", REDUCTIONS[:4], ids=lambda f: f.__name__)
@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_reductions_match_float64(reduction, seed):
    x, mask = draw(seed)
    rows = [reference(reduction.__name__, r[m]) for r, m in zip(x, mask, strict=True)]
    np.testing.assert_allclose(reduction(x, mask, -1), rows, rtol=1e-5, atol=1e-5)
    whole = reference(reduction.__name__, x[mask])
    np.testing.assert_allclose(reduction(x, mask), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axis", [None, 0, -1])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("garbage", [np.nan, np.inf])
def test_garbage_behind_the_mask_changes_no_value_and_no_gradient(reduction, axis, garbage):
    x, mask = draw(3)
    mask[1] = False  # a row with nothing to reduce
    mask[:, 2] = False

    def value(x):
        return jnp.sin(reduction(x, mask, axis)).sum()

    clean, dirty = jnp.where(mask, x, 0.0), jnp.where(mask, x, garbage)
    np.testing.assert_array_equal(value(clean), value(dirty))
    gradient = jax.grad(value)(dirty)
    np.testing.assert_array_equal(jax.grad(value)(clean), gradient)
    assert np.isfinite(gradient).all()
    assert not gradient[~mask].any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_valid_gives_zero(reduction):
    empty = reduction(jnp.full((3, 4), jnp.nan), jnp.zeros((3, 4), bool), -1)
    np.testing.assert_array_equal(empty, 0)


def test_sums_and_counts_add_over_micro_batches():
    x, mask = draw(5, (8, 6))
    parts = [masked.masked_sum_and_count(x[i : i + 2], mask[i : i + 2]) for i in range(0, 8, 2)]
    total, count = map(sum, zip(*parts, strict=True))
    np.testing.assert_allclose(masked.divide(total, count), masked.masked_mean(x, mask), rtol=1e-6)


def test_mask_broadcasts_and_numbers_of_any_dtype_count():
    x = jnp.arange(12, dtype=jnp.bfloat16).reshape(3, 4)
    np.testing.assert_allclose(masked.masked_mean(x, np.array([1, 0, 1, 0])), 5.0)
    assert masked.masked_mean(x, True).dtype == jnp.float32
    ones = jnp.ones(4096, jnp.bfloat16)  # bfloat16 cannot count past 256
    assert masked.masked_sum_and_count(ones, True)[0] == 4096


def test_zscore_has_zero_mean_unit_variance_and_a_floor():
    x, mask = draw(9, (40,))
    mask[:5] = True
    z = np.asarray(masked.masked_zscore(x, mask))
    np.testing.assert_allclose([z[mask].mean(), z[mask].var()], [0, 1], atol=1e-5)
    same = masked.masked_zscore(jnp.full(4, 0.1), jnp.ones(4, bool))
    np.testing.assert_allclose(same, 0, atol=1e-4)
    with pytest.raises(ValueError, match="floor"):
        masked.masked_zscore(x, mask, floor=0.0)


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.integers(0, 4), min_size=7, max_size=7), seed=seeds)
def test_rank_averages_ties(values, seed):
    mask = np.random.default_rng(seed).random(7) < 0.7
    x = np.array(values, float)
    ranks = jitted_rank(x, mask)
    for i in range(len(x)):
        below, equal = (x[mask] < x[i]).sum(), (x[mask] == x[i]).sum()
        assert ranks[i] == below + (equal - 1) / 2


def test_transforms():
    x, mask = map(jnp.asarray, draw(11))
    for reduction in REDUCTIONS:
        rows = jax.vmap(reduction)(x, mask)
        for i in range(len(x)):
            np.testing.assert_allclose(rows[i], jax.jit(reduction)(x[i], mask[i]), rtol=1e-5)


def test_sums_are_carried_in_at_least_float32():
    for dtype in (bool, np.int32, jnp.bfloat16, np.float16, np.float32):
        assert masked.to_float(jnp.ones(1, dtype)).dtype == np.float32
    with jax.enable_x64(True):
        assert masked.to_float(jnp.ones(1, np.float64)).dtype == np.float64
