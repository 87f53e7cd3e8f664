"""AUROC and Spearman against hand numbers, scikit-learn and scipy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from rdbcl_jax.lab.portability import ranking
from rdbcl_jax.lab.portability.ranking import auroc, mid_ranks, reliability, spearman

VALUES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), min_size=2, max_size=30)


def test_hand_numbers():
    signal, outcome = np.array([1.0, 2, 3, 4]), np.array([0.0, 1, 0, 1])
    assert auroc(signal, outcome) == [0.75]  # of four pairs one is in the wrong order
    assert auroc(-signal, outcome) == [0.25]
    assert auroc(np.array([1.0, 1, 1, 2]), outcome) == [0.75]  # 2 ties of 4 pairs, 2 right
    np.testing.assert_allclose(spearman(signal, np.array([1.0, 3, 2, 4])), [0.8])  # 1 − 6·2/60
    np.testing.assert_array_equal(mid_ranks(np.array([5.0, 1, 5]), np.ones((1, 3))), [[2, 0.5, 2]])


def test_not_defined_is_nan():
    assert np.isnan(auroc(np.arange(3.0), np.ones(3))).all()
    assert np.isnan(spearman(np.ones(3), np.arange(3.0))).all()
    assert np.isnan(auroc(np.zeros(0), np.zeros(0))).all()
    assert np.isnan(spearman(np.full(3, 0.1), np.arange(3.0), np.full((1, 3), 7.0))).all()
    found = reliability(np.zeros((0, 1)), np.zeros((0, 1)))
    assert np.isnan(found.auroc).all() and np.isnan(found.spearman).all() and found.rows == 0
    found = reliability(np.arange(4.0)[:, None], np.ones((4, 1)))
    assert np.isnan(found.auroc).all()
    found = reliability(np.full((4, 1), np.nan), np.ones((4, 1)))
    assert np.isnan(found.auroc).all() and found.rows == 0


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_as_scipy_and_scikit_learn_say(pairs):
    signal, outcome = np.array(pairs, float).T
    if 0 < outcome.mean() < 1:
        np.testing.assert_allclose(auroc(signal, outcome), roc_auc_score(outcome, signal))
    if len(set(signal)) > 1 and len(set(outcome)) > 1:
        expected = stats.spearmanr(signal, outcome).statistic
        np.testing.assert_allclose(spearman(signal, outcome), expected, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(VALUES, st.integers(0, 10**6))
def test_weights_are_repetitions(pairs, seed):
    signal, outcome = np.array(pairs, float).T
    counts = np.random.default_rng(seed).integers(0, 4, len(signal))
    for measure in (auroc, spearman):
        weighted = measure(signal, outcome, counts[None].astype(float))
        repeated = measure(np.repeat(signal, counts), np.repeat(outcome, counts))
        np.testing.assert_allclose(weighted, repeated, atol=1e-9)


def test_a_prompts_signal_stands_for_each_of_its_outcomes():
    rng = np.random.default_rng(0)
    signal, outcome = rng.normal(size=(20, 1)), rng.integers(0, 2, (20, 6)).astype(float)
    found = reliability(signal, outcome)
    listed = roc_auc_score(outcome.reshape(-1), np.repeat(signal, 6))
    assert found.auroc.value == pytest.approx(listed)
    expected = stats.spearmanr(signal[:, 0], outcome.mean(axis=1)).statistic
    assert found.spearman.value == pytest.approx(expected)


def test_intervals_cover_and_resample_prompts_not_samples():
    """Of 200 repetitions about 95 % cover the truth, though a prompt's samples are all alike."""
    covered = 0
    truth = stats.norm.cdf(1 / np.sqrt(2))  # of N(1, 1) against N(0, 1)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        outcome = rng.integers(0, 2, 60).astype(float)
        signal = rng.normal(outcome)
        found = reliability(
            *(np.repeat(a[:, None], 8, 1) for a in (signal, outcome)), resamples=200
        )
        covered += found.auroc.low <= truth <= found.auroc.high
    assert 0.89 < covered / 200 < 0.99


def test_some_replicates_at_a_time_are_all_of_them():
    drawn = np.random.default_rng(3).multinomial(7, np.full(7, 1 / 7), 120)
    whole, *parts = ranking._replicates(7, 120, 3)
    assert (whole == 1).all() and [len(part) for part in parts] == [50, 50, 20]
    np.testing.assert_array_equal(np.concatenate(parts), drawn)


def test_the_same_seed_gives_the_same_interval():
    rng = np.random.default_rng(1)
    data = rng.normal(size=(30, 2)), rng.integers(0, 2, (30, 2)).astype(float)
    assert reliability(*data, resamples=50) == reliability(*data, resamples=50)
    assert reliability(*data, resamples=50) != reliability(*data, resamples=50, seed=1)
