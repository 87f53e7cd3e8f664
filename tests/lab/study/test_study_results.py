"""study.json: what is written comes back, and files of the first version are read and reported."""

import pathlib

import pytest

from rdbcl_jax.json_files import read_json, write_json
from rdbcl_jax.lab.study import plots
from rdbcl_jax.lab.study.report import to_markdown
from rdbcl_jax.lab.study.results import read_study, write_study

# as the release before version 2 wrote them, at the end of a study of three arms
OLD = pathlib.Path(__file__).parents[2] / "reporting/data/version_1"


def test_a_file_of_version_1_gives_the_report_that_it_gave():
    found = read_study(OLD)
    assert found.schema_version == 2 and found.metric == "last"
    pictures = plots.draw(found)
    assert to_markdown(found, list(pictures)) == (OLD / "study.md").read_text()
    names = {name for cell in (*found.arms, *found.curves) for name in cell.metrics}
    assert {"held_out_last", "held_out_change"} <= names and "held_last" not in names


def test_what_is_written_comes_back(tmp_path):
    found = read_study(OLD)
    write_study(tmp_path, found)
    assert read_study(tmp_path) == found
    assert read_json(tmp_path / "study.json", {})["schema_version"] == 2


def test_the_metric_of_version_1_has_its_name_of_now(tmp_path):
    write_json(tmp_path / "study.json", read_json(OLD / "study.json", {}) | {"metric": "held_last"})
    assert read_study(tmp_path).metric == "held_out_last"
    assert "| held out, last |" in to_markdown(read_study(tmp_path))


def test_a_later_version_and_no_file_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"study\.json is not there"):
        read_study(tmp_path)
    write_json(tmp_path / "study.json", {"schema_version": 3})
    with pytest.raises(ValueError, match="schema_version 3"):
        read_study(tmp_path)
