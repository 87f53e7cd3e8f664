"""results.json: what is written comes back, and files of the first version are read."""

import json
import math
import pathlib

import pytest

from rdbcl_jax.results import RunResults, SplitResults, read_results, write_results

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
