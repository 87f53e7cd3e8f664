"""New tasks against old ones: by hand, and in a study's report."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from rdbcl_jax.json_files import plain
from rdbcl_jax.lab.study import plots, tradeoff
from rdbcl_jax.lab.study.results import CellResults
from rdbcl_jax.reporting.run_files import Run
from rdbcl_jax.results import RunResults, SplitResults


def run(tmp_path, *, advantage=(1.0, -1.0, 0.0, 0.0), extra=(), held_out=("a", "b")):
    """Three steps of one task with two held-out ones: two groups of two responses in each step."""
    test = [[0.1, 0.9, 0.7], [0.6, 0.5, 0.3]]
    validation = [[0.2, 0.8, 0.8], [0.7, 0.4, 0.6]]
    steps = [{"step": s, "task": "new", "batches": s + 1} for s in range(3)]
    steps[1] |= {"eval/new/accuracy": 0.5, "eval/a/accuracy": 0.6, "eval/b/accuracy": 0.8}
    columns = {
        "step": np.repeat(np.arange(3), 4),
        "length": np.tile([10, 20, 3, 4], 3),
        "advantage": np.tile(advantage, 3),
        **dict(extra),
    }
    return Run(
        tmp_path,
        RunResults(
            status="done",
            tasks=["new"],
            held_out=list(held_out),
            splits={"test": SplitResults(test), "validation": SplitResults(validation)},
        ),
        steps,
        pa.table(columns),
        [],
    )


def cell(arm, **fields):
    """What a study knows of an arm, as little as possible."""
    lists = ("seeds", "tasks", "accuracy")
    nothing = {f.name: [] if f.name in lists else {} for f in dataclasses.fields(CellResults)}
    return CellResults(**{**nothing, "setting": "main", "arm": arm, "point": "", **fields})


def test_a_path_by_hand(tmp_path):
    found = tradeoff.path(run(tmp_path), sampled=np.full(3, 4.0))
    np.testing.assert_array_equal(found["step"], [0, 2, 3])
    np.testing.assert_array_equal(found["learned"], [0, 60, 90])  # equal rewards teach nothing
    np.testing.assert_array_equal(found["generated"], [0, 74, 111])
    np.testing.assert_allclose(found["new"], [0.2, 0.5, 0.7])
    np.testing.assert_allclose(found["old"], [0.8, 0.7, 0.5])


def test_a_path_whose_first_line_was_lost(tmp_path):
    whole = run(tmp_path)
    found = tradeoff.path(dataclasses.replace(whole, steps=whole.steps[1:]), np.full(2, 4.0))
    np.testing.assert_array_equal(found["step"], [0, 2, 3])
    np.testing.assert_array_equal(found["learned"], [0, 30, 60])  # of the lines that are there
    np.testing.assert_allclose(found["old"], [0.8, 0.7, 0.5])


@pytest.mark.parametrize(
    "changes,sampled,learned,generated",
    [
        ({"advantage": (1.0,) * 4}, 0.0, 37, 0),  # SFT: all given
        ({"extra": [("kl_coef", np.full(12, 0.1))]}, 4.0, 37, 37),  # the KL term has a gradient
        ({"extra": [("kl_coef", np.full(12, np.nan))]}, 12.0, 30, 111),  # DAPO: drawn three times
    ],
)
def test_which_tokens_count(tmp_path, changes, sampled, learned, generated):
    found = tradeoff.tokens(run(tmp_path, **changes), np.full(3, sampled))
    np.testing.assert_array_equal(found, [[learned] * 3, [generated] * 3])


def test_of_a_batch_of_which_no_update_was_made_no_token_counts(tmp_path):
    """Whatever its β: the run without a KL term would not count it either."""
    given = run(tmp_path, extra=[("kl_coef", np.full(12, 0.1))])
    given.steps[1]["no_signal"] = True
    learned, _ = tradeoff.tokens(given, np.full(3, 4.0))
    np.testing.assert_array_equal(learned, [37, 0, 37])


def test_ends_are_of_the_test_split(tmp_path):
    found = tradeoff.ends(run(tmp_path))
    expected = {"new_before": 0.1, "new_after": 0.6, "old_before": 0.8, "old_after": 0.4}
    assert found == pytest.approx({**expected, "forgotten": 0.4})


def test_an_arm_over_two_seeds_in_table_and_picture(tmp_path):
    runs = [run(tmp_path), run(tmp_path, advantage=(1.0,) * 4)]
    found = tradeoff.summary(runs, [np.full(3, 4.0)] * 2)
    np.testing.assert_array_equal(found["path"]["learned"], [0, 67, 100.5])
    assert found["path"]["new"].shape == (2, 3)
    cells = [cell("x", tradeoff=found)]
    (row,) = [line for line in tradeoff.table(cells).splitlines() if line.startswith("| x |")]
    assert "| 60.0 ± 0.0 | 80.0 ± 0.0 | 40.0 ± 0.0 | 40.0 ± 0.0 | 3 | 100 | 111 |" in row
    plots.tradeoff(cells).savefig(tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_of_rows_of_before_sampled_was_logged_what_was_generated_is_not_known(tmp_path):
    found = plain(tradeoff.summary([run(tmp_path)], [np.full(3, np.nan)]))  # as study.json has it
    cells = [cell("x", tradeoff=found)]
    (row,) = [line for line in tradeoff.table(cells).splitlines() if line.startswith("| x |")]
    assert row.endswith("| 3 | 90 | – |")
    plots.tradeoff(cells)


def test_without_held_out_tasks_there_is_none(tmp_path):
    assert tradeoff.summary([run(tmp_path, held_out=())], [np.zeros(3)]) == {}
    assert tradeoff.summary([], []) == {}
