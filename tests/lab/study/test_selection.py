"""Choice of a point and paired intervals, on numbers worked out by hand and on synthetic data."""

import itertools
import math

import numpy as np
import pytest

from rdbcl_jax.lab.study.selection import choose, paired_bootstrap

GRID = [{"kl.beta": beta} for beta in (0.0, 0.1, 0.5)]


def test_the_best_mean_is_chosen_and_the_first_of_equals():
    choice = choose(GRID, [[0.5, 0.5], [0.4, 0.8], [0.6, 0.6]])
    assert choice.index == 1 and choice.edges == ()
    np.testing.assert_allclose(choice.means, [0.5, 0.6, 0.6])


def test_a_point_with_a_failed_run_is_out():
    assert choose(GRID, [[0.5, 0.5], [0.9, math.nan], [0.4, 0.4]]).index == 0
    assert choose(GRID, [[math.nan], [math.nan], [math.nan]]) is None


@pytest.mark.parametrize("best,edges", [(0, ("kl.beta",)), (1, ()), (2, ("kl.beta",))])
def test_a_choice_at_the_edge_is_named(best, edges):
    assert choose(GRID, [[float(i == best)] for i in range(3)]).edges == edges


def test_two_pairs_by_hand():
    # means of two draws from {0, 1}: 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4
    assert paired_bootstrap([0.0, 1.0]) == (0.0, 1.0)
    assert paired_bootstrap([0.0, 1.0], level=0.4) == (0.5, 0.5)
    assert all(map(math.isnan, paired_bootstrap([0.3])))


def test_interval_knows_no_order_and_moves_with_the_data():
    values = [0.3, -0.1, 0.7, 0.2]
    intervals = {paired_bootstrap(order) for order in itertools.permutations(values)}
    assert len(intervals) == 1
    low, high = intervals.pop()
    assert min(values) <= low <= np.mean(values) <= high <= max(values)
    np.testing.assert_allclose(
        paired_bootstrap([2 * v + 1 for v in values]), (2 * low + 1, 2 * high + 1)
    )


@pytest.mark.parametrize("n,coverage", [(3, 0.75), (10, 0.92), (30, 0.94)])
def test_coverage_on_normal_data_is_what_the_docstring_says(n, coverage):
    data = np.random.default_rng(0).normal(size=(600, n))
    ends = np.array([paired_bootstrap(row, resamples=500) for row in data])
    found = np.mean((ends[:, 0] <= 0) & (ends[:, 1] >= 0))
    assert abs(found - coverage) < 0.05
