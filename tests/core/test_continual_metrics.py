"""Continual-learning metrics against loops in float64."""

import jax
import numpy as np
import pytest

from rdbcl_jax import continual_metrics
from rdbcl_jax.core.continual_metrics import held_out_metrics

NAMES = {
    "last",
    "avg_seen",
    "avg_all",
    "mft",
    "bwt",
    "bwt_over_t",
    "forgetting_first",
    "forgetting_max",
    "transfer",
    "fwt_zeroshot",
}


def reference(a):
    """The documented definitions, tasks and rows counted from 1 as in the papers."""
    T = a.shape[1]
    A = lambda i, j: a[i, j - 1]  # noqa: E731
    mean = lambda xs: float(np.mean(xs)) if len(xs) else 0.0  # noqa: E731
    tasks = range(1, T + 1)
    old = range(1, T)
    return {
        "last": mean([A(T, j) for j in tasks]),
        "avg_seen": mean([mean([A(i, j) for j in range(1, i + 1)]) for i in tasks]),
        "avg_all": mean([mean([A(i, j) for j in tasks]) for i in tasks]),
        "mft": mean([A(j, j) for j in tasks]),
        "bwt": mean([A(T, j) - A(j, j) for j in old]),
        "bwt_over_t": sum(A(T, j) - A(j, j) for j in old) / T,
        "forgetting_first": mean([A(j, j) - A(T, j) for j in old]),
        "forgetting_max": mean([max(A(i, j) for i in range(j, T)) - A(T, j) for j in old]),
        "transfer": mean([A(i, j) for i in tasks for j in range(i + 1, T + 1)]),
        "fwt_zeroshot": mean([A(j - 1, j) - A(0, j) for j in range(2, T + 1)]),
    }


@pytest.mark.parametrize("tasks", [1, 2, 3, 7])
def test_matches_float64(tasks):
    matrix = np.random.default_rng(tasks).random((tasks + 1, tasks))
    expected = reference(matrix)
    for actual in (continual_metrics(matrix), jax.jit(continual_metrics)(matrix)):
        assert actual.keys() == NAMES
        for name in NAMES:
            np.testing.assert_allclose(actual[name], expected[name], rtol=1e-5, atol=1e-6)


def test_a_worked_example():
    matrix = [[0.1, 0.2], [0.8, 0.4], [0.5, 0.9]]
    expected = {"last": 0.7, "bwt": -0.3, "forgetting_max": 0.3, "transfer": 0.4}
    expected |= {"fwt_zeroshot": 0.2, "mft": 0.85, "avg_seen": 0.75, "avg_all": 0.65}
    metrics = continual_metrics(np.array(matrix))
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5)


def test_one_task_has_no_past_and_no_future():
    metrics = continual_metrics(np.array([[0.2], [0.9]]))
    for name in NAMES:
        expected = 0.9 if name in {"last", "avg_seen", "avg_all", "mft"} else 0.0
        np.testing.assert_allclose(metrics[name], expected, rtol=1e-6)


def test_cells_that_were_not_measured_spoil_only_what_reads_them():
    matrix = np.random.default_rng(0).random((5, 4))
    full = continual_metrics(matrix)
    row, column = np.indices((4, 4))
    matrix[1:][column > row] = np.nan
    matrix[0] = np.nan
    partial = continual_metrics(matrix)
    unread = {"avg_all", "transfer", "fwt_zeroshot"}
    for name in NAMES - unread:
        np.testing.assert_allclose(partial[name], full[name], rtol=1e-6)
    assert all(np.isnan(partial[name]) for name in unread)


def test_vmap_and_grad():
    matrices = np.random.default_rng(0).random((3, 4, 3))
    many = jax.vmap(continual_metrics)(matrices)
    np.testing.assert_allclose(many["bwt"][1], continual_metrics(matrices[1])["bwt"], rtol=1e-6)
    for name in NAMES:
        gradient = jax.grad(lambda m, name=name: continual_metrics(m)[name])(
            np.float32(matrices[0])
        )
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("shape", [(3, 3), (2, 3), (3,), (1, 0)])
def test_shape_errors(shape):
    with pytest.raises(ValueError, match="base model"):
        continual_metrics(np.zeros(shape))


def test_held_out_metrics_by_hand():
    """Row 0 is the base model, the last row what is left."""
    metrics = held_out_metrics(np.array([[0.5, 0.9, 1.0], [0.0, 0.0, 0.0], [0.25, 0.6, 0.5]]))
    assert metrics.keys() == {"held_out_last", "held_out_change"}
    np.testing.assert_allclose(metrics["held_out_last"], 0.45, rtol=1e-6)
    np.testing.assert_allclose(metrics["held_out_change"], -0.35, rtol=1e-6)
    one = held_out_metrics(np.array([[0.5], [0.75]]))  # one task, learned once
    np.testing.assert_allclose([one["held_out_last"], one["held_out_change"]], [0.75, 0.25])
    for shape in ((2,), (1, 2), (2, 0)):
        with pytest.raises(ValueError, match="held-out tasks"):
            held_out_metrics(np.zeros(shape))
