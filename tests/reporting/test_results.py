"""results.json: what is written comes back, and files of the first version are read."""

import json
import math
import pathlib
import shutil

import pytest

from rdbcl_jax.reporting.report import write_report
from rdbcl_jax.results import RunResults, SplitResults, read_results, write_results
from rdbcl_jax.training.run import train
from rdbcl_jax.workdir import run_config
from tests.tiny_runs import tiny_config

DATA = pathlib.Path(__file__).parent / "data"


def test_what_is_written_comes_back(tmp_path):
    split = SplitResults([[0.5, 0.25]], [[1.0, 0.75]], [8, 8], {"last": 0.5})
    given = RunResults("grpo", 3, "done", ["a"], ["b"], {"test": split}, {"seed": 3})
    write_results(tmp_path, given)
    assert read_results(tmp_path) == given
    assert json.loads((tmp_path / "results.json").read_text())["schema_version"] == 2
    assert not list(tmp_path.glob("*.tmp"))
    assert read_results(tmp_path / "nowhere") is None


def test_a_number_that_is_not_finite_is_none(tmp_path):
    split = SplitResults([[math.nan]], [[math.inf]], [0], {"last": math.nan})
    write_results(tmp_path, RunResults(splits={"test": split}))
    assert read_results(tmp_path).splits["test"] == SplitResults(
        [[None]], [[None]], [0], {"last": None}
    )


def test_a_later_version_is_refused(tmp_path):
    (tmp_path / "results.json").write_text('{"schema_version": 3}')
    with pytest.raises(ValueError, match=r"schema_version 3, this rdbcl_jax reads up to 2"):
        read_results(tmp_path)


def test_a_file_of_version_1():
    """As the release before version 2 wrote it, at the end of a run of two tasks."""
    saved = json.loads((DATA / "version_1" / "results.json").read_text())
    found = read_results(DATA / "version_1")
    assert "schema_version" not in saved and found.schema_version == 2
    assert found.held_out == saved["held"] == ["alt"]
    for name, split in found.splits.items():
        before = saved["splits"][name]
        assert split.accuracy == before["accuracy"] and split.count == before["count"]
        assert split.metrics["held_out_last"] == before["metrics"]["held_last"]
        assert split.metrics["held_out_change"] == before["metrics"]["held_change"]
        assert not {"held_last", "held_change"} & split.metrics.keys()
        assert len(split.metrics) == len(before["metrics"])
    for name in ("method", "seed", "status", "tasks", "config", "versions", "device", "timing"):
        assert getattr(found, name) == saved[name]
    config = run_config(DATA / "version_1")
    assert (config.method, config.kl.beta) == ("grpo", 0.1)


def test_a_file_of_version_1_is_reported(tmp_path):
    shutil.copy(DATA / "version_1" / "results.json", tmp_path)
    text = write_report(tmp_path).read_text()
    assert "GRPO on 2 tasks" in text and "1 task not learned" in text
    assert "held_out_change" in text and "held_change" not in text


@pytest.mark.slow
def test_a_run_that_was_begun_with_version_1_goes_on(runs, tmp_path):
    workdir = shutil.copytree(runs / "killed", tmp_path / "run")
    file = workdir / "results.json"
    saved = json.loads(file.read_text())
    saved["held"] = saved.pop("held_out")
    del saved["schema_version"], saved["unchanged"], saved["measures"]
    assert saved.keys() == json.loads((DATA / "version_1" / "results.json").read_text()).keys()
    file.write_text(json.dumps(saved))
    found = train(tiny_config(runs / "base", seed=1, **{"evaluation.tasks": ("alt",)}), workdir)
    assert found.status == "done" and found.held_out == ["alt"]
    before = saved["splits"]["test"]["accuracy"]
    assert len(before) == 2 and found.splits["test"].accuracy[:2] == before
    assert json.loads(file.read_text())["schema_version"] == 2


@pytest.mark.parametrize("content", ["5", '["a"]', '{"splits": null}', '{"splits": {"test": 1}}'])
def test_json_that_is_no_results_is_one_clear_error(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=r"results\.json is damaged, it holds no results"):
        read_results(tmp_path)
