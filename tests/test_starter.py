"""`rdbcl init`: what it writes can be checked, trained on and changed."""

import dataclasses
import json
import pathlib

import pytest

from rdbcl_jax.commands import read_config
from rdbcl_jax.toy.starter import write_starter
from rdbcl_jax.training.check import check_all
from rdbcl_jax.training.run import train
from tests.engine import SIZE, small_config


class Flags:
    """As the command line gives them."""

    def __init__(self, config, *overrides):
        self.config, self.overrides = str(config), list(overrides)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("init") / "mine"
    write_starter(folder)
    return folder


def test_ten_records_without_a_problem(folder):
    rows = [
        json.loads(line)
        for file in sorted((folder / "records").glob("*.jsonl"))
        for line in file.read_text().splitlines()
    ]
    assert len(rows) == 10 and len({row["id"] for row in rows}) == 10
    assert all((folder / "records" / row["image"]).is_file() for row in rows)
    found = check_all(read_config(Flags(folder / "config.py")))
    assert found.counts == {"mine/train": 6, "mine/validation": 2, "mine/test": 2}
    assert not found.problems and not found.notes


def test_nothing_is_written_over(folder):
    with pytest.raises(ValueError, match="mine is there already"):
        write_starter(folder)


@pytest.mark.slow
def test_it_trains(folder, tmp_path):
    """From its own base, with its own reward; in programs that other tests compile, too."""
    config = read_config(Flags(folder / "config.py", "--config.dry_run=True"))
    with config.unlocked():
        config.base.size = dataclasses.asdict(SIZE)
    for section, fields in {
        "data": ("prompt_lengths", "patch_slots"),
        "rollout": ("prompts", "samples", "max_tokens"),
        "optimizer": ("learning_rate", "warmup_steps"),
        "model": ("remat",),
        "base": ("batch_size",),
        "evaluation": ("batch_size",),
        "portability": ("beta_max",),
    }.items():
        for field in fields:
            config[section][field] = small_config()[section][field]
    results = train(config, tmp_path)
    assert results.status == "done" and results.tasks == ["mine", "alt"]
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert 0 < row["rewards/short/mean"] <= 1
    assert pathlib.Path(tmp_path / "report.html").is_file()
