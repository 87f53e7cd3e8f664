"""The report on arms that lack what others log: no KL term, no samples, no learning, no group."""

import dataclasses
import math
import shutil

import numpy as np
import pytest

from rdbcl_jax.lab.study.report import (
    Cell,
    Record,
    cost,
    sampled,
    strength,
    write_study_report,
)
from rdbcl_jax.lab.study.results import Gate, read_study
from rdbcl_jax.reporting.run_files import read_run
from rdbcl_jax.reporting.run_log import RunLog
from rdbcl_jax.results import read_results, write_results
from tests.reporting.conftest import write_workdir

TASKS = ["sum", "walk"]


def rewritten(workdir, change):
    """The run with the rows of its metrics changed."""
    run = read_run(workdir)
    (workdir / "metrics.jsonl").unlink()
    with RunLog(workdir, resume_step=10**6) as log:
        for row in run.steps:
            log.write_step(change(dict(row)))
    return workdir


def without_kl(row):
    return {k: v for k, v in row.items() if not k.startswith(("kl", "rp"))}


def supervised(row):
    """No policy loss, no KL, and rewards that are those of the demonstrations."""
    row = {k: v for k, v in without_kl(row).items() if not k.startswith("policy_loss")}
    return {**row, "nll": 0.7, "accuracy": 1.0, "batches": row["task_step"] + 1}


def redrawn(row):
    """DAPO: three batches for every step; and no entropy, as with `training.entropy` off."""
    row = {k: v for k, v in without_kl(row).items() if k != "entropy"}
    return {**row, "batches": 3 * (row["task_step"] + 1)}


def one_per_prompt(row):
    return {**without_kl(row), "reward_std": 0.0, "frac_reward_zero_std": 1.0}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Workdirs by arm, two seeds each, of 2 tasks × 6 steps × 4 samples."""
    root, found = tmp_path_factory.mktemp("runs"), {}
    changes = {
        "rdbcl": None,
        "grpo, no KL": without_kl,
        "sft": supervised,
        "dapo": redrawn,
        "mssr": one_per_prompt,
        "zero-shot": None,
    }
    for arm, change in changes.items():
        for seed in (0, 1):
            workdir = write_workdir(
                root / arm / str(seed), seed=seed, rows=3, steps=6, samples=4, tasks=TASKS
            )
            if arm == "zero-shot":
                (workdir / "metrics.jsonl").write_text("")
                shutil.rmtree(workdir / "samples")
            elif change:
                rewritten(workdir, change)
            found.setdefault(arm, {})[seed] = workdir
    return found


def record(runs, **changes):
    cells = [Cell("main", arm, "", found, {}) for arm, found in runs.items()]
    given = {
        "name": "s",
        "metric": "last",
        "baseline": "rdbcl",
        "tuning_seeds": (),
        "report_seeds": (0, 1),
        "arms": cells,
        "curves": [("beta", float(x), cell) for x, cell in enumerate(cells)],
        "tuning": [],
        "failed": {},
    }
    return Record(**{**given, **changes})


def line(text, arm, heading):
    part = text.split(heading)[1]
    row = next(row for row in part.splitlines() if row.startswith(f"| {arm} |"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_what_was_sampled(runs):
    counts = {arm: cost(read_run(found[0]))["sampled"] for arm, found in runs.items()}
    assert counts == {
        "rdbcl": 48,
        "grpo, no KL": 48,
        "sft": 0,
        "dapo": 144,
        "mssr": 48,
        "zero-shot": 0,
    }
    np.testing.assert_array_equal(sampled(read_run(runs["dapo"][0])), np.full(12, 12))


def test_what_a_run_has_not_is_no_number(runs):
    for arm in ("grpo, no KL", "sft", "mssr", "zero-shot"):
        assert all(math.isnan(v) for v in strength(read_run(runs[arm][0])).values())
    nothing = cost(read_run(runs["zero-shot"][0]))
    assert nothing == {"sampled": 0.0, "tokens": 0.0, "seconds": 0.0}


def test_tables_and_pictures_of_all_of_them(runs, tmp_path):
    numbers = write_study_report(record(runs), tmp_path)
    assert {p.stem for p in tmp_path.glob("*.png")} == {"arms", "tasks", "learning", "curve-beta"}
    learned = {cell.arm for cell in numbers.arms if cell.learning}
    assert learned == {"rdbcl", "grpo, no KL", "dapo", "mssr"}
    curves = {cell.arm: cell.learning for cell in numbers.arms}
    assert {arm for arm in learned if "entropy" in curves[arm]} == learned - {"dapo"}
    entropies = [read_run(path).series("entropy")[1] for path in runs["mssr"].values()]
    np.testing.assert_allclose(curves["mssr"]["entropy"], np.mean(entropies, 0))
    np.testing.assert_array_equal(curves["mssr"]["sampled"], 4 * np.arange(1, 13))
    text = (tmp_path / "study.md").read_text()
    assert line(text, "sft", "### Strength")[1:5] == ["–", "–", "–", "0.0"]
    assert line(text, "zero-shot", "### Strength")[1:] == ["–", "–", "–", "0.0", "0.0", "0.0"]
    assert line(text, "dapo", "### Strength")[4] == "144"
    assert "nan" not in text.lower() and "None" not in text
    assert "NaN" not in (tmp_path / "study.json").read_text()


def test_accuracy_wherever_it_was_measured(runs, tmp_path):
    """Before and after each task, and at the steps that have it for every task of the run."""

    def probed(row):
        found = {f"eval/{task}/accuracy": 0.25 * (1 + i) for i, task in enumerate(TASKS)}
        row = {**row, **(found if row["task_step"] == 2 else {})}
        return {**row, "eval/sum/accuracy": 0.9} if row["task_step"] == 3 else row  # not of all

    found = {}
    for arm in ("sft", "mssr", "zero-shot"):
        shutil.copytree(runs[arm][0].parent, tmp_path / arm)
        found[arm] = {seed: tmp_path / arm / str(seed) for seed in runs[arm]}
    for seed in (0, 1):
        rewritten(found["sft"][seed], probed)
    write_study_report(record(found, baseline="sft"), tmp_path)
    curves = {c.arm: c.progress for c in read_study(tmp_path).arms}
    assert curves["sft"]["step"] == [0, 3, 6, 9, 12] and curves["mssr"]["step"] == [0, 6, 12]
    matrices = [read_run(path).matrix("validation") for path in found["sft"].values()]
    ends = np.mean(matrices, axis=(0, 2))
    wanted = [ends[0], 0.375, ends[1], 0.375, ends[2]]
    np.testing.assert_allclose(curves["sft"]["accuracy"], wanted)
    assert curves["sft"]["sampled"] == [0] * 5 and curves["mssr"]["sampled"] == [0, 24, 48]
    tokens = np.mean([read_run(p).series("num_tokens")[1] for p in found["sft"].values()], axis=0)
    np.testing.assert_allclose(curves["sft"]["tokens"], [0, *tokens[[2, 5, 8, 11]]])
    assert curves["zero-shot"] == {}


def test_failed_and_missing_runs_are_marked(runs, tmp_path):
    cells = record(runs).arms
    one = dataclasses.replace(cells[0], runs={0: cells[0].runs[0]}, failed={1: "boom"})
    none = dataclasses.replace(cells[2], runs={}, failed={0: "boom", 1: "boom"})
    to_do = dataclasses.replace(cells[1], runs={}, failed={})
    write_study_report(record(runs, arms=[one, to_do, none], failed={"x": "boom"}), tmp_path)
    text = (tmp_path / "study.md").read_text()
    assert "- `x`: boom" in text
    assert line(text, "rdbcl", "## Results")[2] == "1 (1 failed)"
    assert line(text, "sft", "## Results")[2:4] == ["0 (2 failed)", "–"]
    assert line(text, "rdbcl", "### By seed")[2] == "failed"
    assert line(text, "grpo, no KL", "### By seed")[1:] == ["–", "–"]


def test_a_run_without_metrics_of_its_matrix(runs, tmp_path):
    """A metric that one run's results lack: its seed is left out, not the arm."""
    workdir = tmp_path / "run"
    shutil.copytree(runs["rdbcl"][1], workdir)
    results = read_results(workdir)
    results.splits["test"].metrics["last"] = None
    write_results(workdir, results)
    cells = record(runs).arms
    other = dataclasses.replace(cells[1], runs={0: cells[1].runs[0], 1: workdir})
    numbers = write_study_report(record(runs, arms=[cells[0], other]), tmp_path)
    assert numbers.arms[1].difference.seeds == [0]


def test_the_gate_says_what_failed(runs, tmp_path):
    check = {"task": "sum", "name": "last", "value": 0.5, "low": 0.75, "high": 1.0}
    gates = [
        Gate("gates/a", True, [{**check, "value": 0.9, "passed": True}]),
        Gate("gates/b", False, [{**check, "passed": False}]),
    ]
    write_study_report(record(runs, gates=gates, stopped="gates/b failed"), tmp_path)
    text = (tmp_path / "study.md").read_text()
    assert "**Stopped: gates/b failed**" in text
    assert line(text, "gates/a", "## Gate") == ["gates/a", "passed", "1", ""]
    wrong = "sum last 50.0 (asked: 75.0 … 100.0)"
    assert line(text, "gates/b", "## Gate") == ["gates/b", "FAILED", "1", wrong]
