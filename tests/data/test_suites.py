"""Suites by name: `SUITE:TASK` reads that suite and no other, a module of one's own too."""

import hashlib
import json

import pytest

from rdbcl_jax.data.suites import BUILT_IN, TaughtSuite, TracedSuite, find_task, load_suite
from rdbcl_jax.data.tasks import load_held_out, load_sequence, read_source
from rdbcl_jax.lab.portability.report import read_sources
from tests.engine import small_config

OWN = "tests.data.letters_suite"


def read(source):
    return read_source(source, small_config(), split="validation", task="mine")


def columns(record):
    """Without what is younger than the digests below."""
    return {name: value for name, value in record.columns.items() if name != "hint"}


def digest(records):
    facts = [
        (r.id, r.task, r.prompt, r.answer, r.verifier, columns(r), r.images[0].tobytes().hex())
        for r in records
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


@pytest.mark.parametrize(
    "source,expected",
    [
        ("digits:sum", "11bb4c97f061"),
        ("digits:jigsaw", "88d35fd53950"),
        ("forks:add", "b59cef91d049"),
        ("forks:swing", "b7ed902b773d"),
        ("puzzles:total", "c20ca6867523"),
        ("puzzles:jigsaw3x3", "a335b8accf6a"),
    ],
)
def test_records_of_built_in_suites_are_what_they_always_were(source, expected):
    records = read_source(source, small_config(), split="test", task="mine")
    assert digest(records) == expected


@pytest.mark.parametrize("field", ["verifier", "format", "image_folder"])
def test_what_a_suites_records_would_not_heed_is_refused(field):
    config = small_config()
    config.sequence = ("mine",)
    config.tasks.mine = {split: "digits:sum" for split in ("train", "validation", "test")}
    config.tasks.mine[field] = "math"
    with pytest.raises(ValueError, match=rf"tasks.mine.{field}: train is 'digits:sum', whose rec"):
        load_sequence(config)


def test_a_suite_is_asked_for_its_own_tasks_only():
    with pytest.raises(ValueError, match=r"suite 'forks' has no task 'sum', .*'add', 'double'"):
        read("forks:sum")
    config = small_config()
    config.sequence = ("forks:sum",)
    with pytest.raises(ValueError, match=r"config.sequence, .*'forks' has no task 'sum'"):
        load_sequence(config)


def test_a_suite_of_ones_own_is_named_by_its_module():
    config = small_config()
    config.sequence = (f"{OWN}:next", "sum", "mine")
    config.evaluation.tasks = (f"{OWN}:after_next",)
    config.tasks.mine = dict.fromkeys(("train", "validation", "test"), f"{OWN}:after_next")
    first, second, third = load_sequence(config)
    (fourth,) = load_held_out(config)
    assert [t.name for t in (first, second, third, fourth)] == ["next", "sum", "mine", "after_next"]
    assert len(first.train) == config.data.train_count
    assert first.train[0].answer == "b" and third.train[0].answer == "c"
    assert not fourth.train and fourth.test[0].id == "after_next-test-0-0"
    (source,) = read_sources(config, [f"{OWN}:next"], "test", limit=3)
    assert source.name == "next" and [r.answer for r in source.records] == ["b", "c", "d"]


def test_tasks_of_one_name_are_one_too_many():
    config = small_config()
    config.sequence = ("sum", "digits:sum")
    with pytest.raises(ValueError, match="different task names"):
        load_sequence(config)


@pytest.mark.parametrize("name", ["../out", "a/b", "/abs", "..", ".hidden", "a\\b", "a\nb", ""])
def test_names_of_tasks_are_fit_for_files(name):
    config = small_config()
    config.sequence, config.evaluation.tasks = (name,), ()
    with pytest.raises(ValueError, match="can be part of a file's name"):
        load_sequence(config)
    config.sequence, config.evaluation.tasks = ("sum",), (name,)
    with pytest.raises(ValueError, match="can be part of a file's name"):
        load_held_out(config)


@pytest.mark.parametrize(
    "name,message",
    [
        ("fork:add", "suite is 'fork'.*did you mean 'forks'"),
        ("no.such.suite:add", "suite is 'no.such.suite', expected one of"),
        ("rdbcl_jax.version:add", "'rdbcl_jax.version' has no make_records, TASKS; .*Suite says"),
        (f"{OWN}:before", r"has no task 'before', expected one of \['next', 'after_next'\]"),
    ],
)
def test_what_is_no_suite(name, message):
    with pytest.raises(ValueError, match=message):
        read(name)


def test_what_a_suite_lacks_is_said():
    with pytest.raises(ValueError, match=r"has no words, Demonstrations; .*TaughtSuite says"):
        load_suite(OWN, TaughtSuite)
    for name in BUILT_IN:
        assert load_suite(name, TaughtSuite) is load_suite(name, TracedSuite)


def test_files_whose_names_hold_a_colon_are_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = json.dumps({"prompt": "p", "answer": "a"})
    (tmp_path / "digits:sum.jsonl").write_text(row)
    (tmp_path / "forks:add").write_text(row)
    assert [record.answer for record in read("digits:sum.jsonl")] == ["a"]
    with pytest.raises(ValueError, match="expected a file of"):
        read("forks:add")
    with pytest.raises(ValueError, match="expected tfds:name/split"):
        read("tfds:nothing")


def test_a_built_in_task_needs_no_suite():
    assert find_task("add") == (load_suite("forks"), "add") == find_task("forks:add")
