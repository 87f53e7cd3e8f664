"""Tasks that are evaluated and not learned: their columns, their metrics, accuracy on the way."""

import json

import numpy as np
import pytest

from rdbcl_jax import continual_metrics
from rdbcl_jax.core.continual_metrics import held_out_metrics
from rdbcl_jax.evaluation import Evaluation, split_results
from rdbcl_jax.reporting.report import write_report
from rdbcl_jax.reporting.run_files import read_run
from rdbcl_jax.training.run import train
from tests.engine import small_config, write_random_model


def test_metrics_of_held_tasks_by_hand():
    found = held_out_metrics(np.array([[0.8, 0.6], [0.1, 0.9], [0.4, 0.5]]))
    assert found.keys() == {"held_out_last", "held_out_change"}
    np.testing.assert_allclose(found["held_out_last"], 0.45, rtol=1e-6)
    np.testing.assert_allclose(found["held_out_change"], -0.25, rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 2), (3, 0), (3,)])
def test_a_matrix_without_a_learned_row_or_a_held_column_is_refused(shape):
    with pytest.raises(ValueError, match="held-out tasks"):
        held_out_metrics(np.zeros(shape))


def test_held_columns_are_in_no_other_metric():
    matrix = np.random.default_rng(0).random((3, 5))
    rows = [Evaluation(list(row), [1.0] * 5, [8] * 5) for row in matrix]
    metrics = split_results(rows, learned=2).metrics
    alone = continual_metrics(matrix[:, :2])
    assert metrics.keys() - alone.keys() == {"held_out_last", "held_out_change"}
    assert all(metrics[name] == alone[name] for name in alone)
    np.testing.assert_allclose(metrics["held_out_last"], matrix[2, 2:].mean(), rtol=1e-6)
    assert split_results(rows[:2], learned=2).metrics == {}  # not over yet


@pytest.mark.parametrize(
    "names,message",
    [
        (("walk", "sum"), r"none of them in config.sequence \(there: \['sum'\]\)"),
        (("walk", "walk"), "different task names"),
        (("wlk",), r"'wlk' is in config.evaluation.tasks, but not in config.tasks.*not built in"),
    ],
)
def test_wrong_tasks_are_refused_before_anything_is_made(names, message, tmp_path):
    config = small_config()
    config.evaluation.tasks = names
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_with_held_tasks(tmp_path):
    config = small_config()
    config.method, config.kl.beta = "grpo", 0.0
    config.model.path = str(write_random_model(tmp_path / "model"))
    config.sequence = ("sum",)
    config.evaluation.tasks, config.evaluation.every = ("walk", "alt"), 2
    # a held-out task needs no training data
    config.tasks = {"alt": {"validation": "digits:alt", "test": "digits:alt"}}
    config.training.steps = 5
    workdir = tmp_path / "run"
    results = train(config, workdir)
    assert (results.tasks, results.held_out) == (["sum"], ["walk", "alt"])
    for part in results.splits.values():
        assert np.shape(part.accuracy) == np.shape(part.parse_rate) == (2, 3)
        assert len(part.count) == 3 and part.metrics["last"] == part.accuracy[1][0]
    run = read_run(workdir)
    assert run.matrix().shape == (2, 1) and run.matrix(held_out=True).shape == (2, 3)
    assert run.complete and run.held_out == ["walk", "alt"]
    probed = [row["task_step"] for row in run.steps if "eval/walk/accuracy" in row]
    assert probed == [1, 3]  # after 2 and 4 steps; the end is in the matrix
    assert {"eval/sum/accuracy", "eval/alt/accuracy"} <= run.steps[1].keys()
    measured = run.measured()
    assert sorted(measured) == [0, 2, 4, 5] and all(row.shape == (3,) for row in measured.values())
    np.testing.assert_array_equal(measured[5], run.matrix("validation", held_out=True)[1])
    page = write_report(workdir).read_text()
    assert "held_out_change" in page and "<i>walk</i>" in page and "2 tasks not learned" in page
    assert json.loads((workdir / "results.json").read_text())["held_out"] == ["walk", "alt"]
