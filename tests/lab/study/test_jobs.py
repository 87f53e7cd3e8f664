"""Names of bases and gates, by which a study finds its own again; a run that lacks data."""

import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rdbcl_jax.lab.study import load_config
from rdbcl_jax.lab.study.declare import Study
from rdbcl_jax.lab.study.jobs import (
    ASKED,
    base_name,
    finished,
    gate_name,
    lack_of,
    train_run,
)
from rdbcl_jax.lab.study.plan import make_plan
from rdbcl_jax.results import RunResults, SplitResults, write_results
from rdbcl_jax.training import run as training
from tests.engine import small_config

FOLDER = pathlib.Path(__file__).parents[3] / "configs/studies"


@pytest.mark.parametrize(
    "study,run,base,gate",  # as version 0.1.0 named them
    [
        ("dyme", "right traces/grpo/seed0", "seed0-4ffdd16b", "seed0-4ffdd16b-4fd3c07b"),
        ("mssr", "main/grpo/seed0", "seed0-3c04e63a", "seed0-3c04e63a-b892a86a"),
        ("rft_vs_sft", "jigsaw2x2/rft/seed0", "seed0-3124824c", "seed0-3124824c-aa242968"),
        (
            "rdb_cl",
            "main/grpo/kl.beta=0/seed100",
            "seed100-830334b2",
            "seed100-830334b2-d88223cd",
        ),
    ],
)
def test_names_stay_what_they_were(study, run, base, gate):
    declared = Study(load_config(FOLDER / f"{study}.py", "ci"))
    config = make_plan(declared, {}, pathlib.Path("/runs")).runs[run].config
    assert base_name(config) == f"bases/{base}"
    assert gate_name(config) == f"gates/{gate}"


def test_what_makes_another_base_or_gate_makes_another_name():
    declared = Study(load_config(FOLDER / "mssr.py", "ci"))
    config = next(iter(make_plan(declared, {}, pathlib.Path("/runs")).runs.values())).config
    for field, value, base_too in (
        ("base.steps", 7, True),
        ("data.system_prompt", "Be brief.", True),
        ("gate.records", 7, False),
    ):
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict({field: value})
        assert gate_name(other) != gate_name(config)
        assert (base_name(other) != base_name(config)) == base_too


def test_a_run_of_another_config_that_was_not_evaluated_is_no_obstacle(tmp_path, monkeypatch):
    declared = Study(load_config(FOLDER / "mssr.py", "ci"))
    config = next(iter(make_plan(declared, {}, tmp_path).runs.values())).config
    started = []
    monkeypatch.setattr(training, "train", lambda *given: started.append(given))
    (tmp_path / ASKED).write_text('{"seed": 99}')
    write_results(tmp_path, RunResults(splits={"test": SplitResults(accuracy=[[0.5]])}))
    with pytest.raises(ValueError, match="holds a run of another config"):
        train_run(config, tmp_path, None)
    write_results(tmp_path, RunResults())  # as it is from the start of a run on
    train_run(config, tmp_path, None)
    assert len(started) == 1


def test_a_run_that_has_nothing_to_learn_from_is_over_and_says_why(tmp_path):
    """As `collect` leaves it where no response is right."""
    nothing = pa.table(
        {"record_id": pa.array([], pa.string()), "completion": pa.array([], pa.string())}
    )
    pq.write_table(nothing, tmp_path / "sum.parquet")
    config, run = small_config(), tmp_path / "run"
    config.method, config.rollout.samples = "rft_sft", 1
    config.demonstrations.rollouts = str(tmp_path / "*.parquet")
    assert not finished(run, config)
    train_run(config, run, None)
    assert lack_of(run) == (
        "task 'sum': no training record has a demonstration; see config.demonstrations"
    )
    assert finished(run, config)
    config.seed = 1
    assert not finished(run, config)  # the reason is another run's
    config.demonstrations.rollouts = str(tmp_path / "other.parquet")  # not there: that is wrong
    with pytest.raises(FileNotFoundError, match=r"other\.parquet"):
        train_run(config, run, None)
    assert not lack_of(run)
