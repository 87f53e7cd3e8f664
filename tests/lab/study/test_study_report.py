"""The report on arms that lack what others log: no KL term, no samples, no learning, no group."""

import dataclasses
import json
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
from rdbcl_jax.lab.study.surface import surfaces
from rdbcl_jax.reporting.run_files import read_run
from rdbcl_jax.results import read_results, write_results
from rdbcl_jax.training.run import train
from tests.engine import write_random_model
from tests.tiny_runs import made_once, tiny_config

pytestmark = pytest.mark.slow
TASKS = ["sum", "jigsaw"]


def make_runs(folder):
    base = write_random_model(folder / "base")
    arms = {
        "rdbcl": tiny_config(base),
        "grpo, no KL": tiny_config(base, "grpo", **{"kl.beta": 0.0}),
        "sft": tiny_config(base, "sft"),
        # samples anew for groups of equal rewards; its entropy is not logged
        "dapo": tiny_config(base, "dapo", **{"rollout.resample": 2, "training.entropy": False}),
        "mssr": tiny_config(base, "mssr", **{"rollout.samples": 1}),
        "zero-shot": tiny_config(base, "zero_shot"),
    }
    for arm, config in arms.items():
        train(config, folder / arm / "0")
    train(tiny_config(base, seed=1), folder / "rdbcl" / "1")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, worker_id):
    """Workdirs by arm and seed, each of 2 tasks × 3 steps × 32 samples; seed 1 of one arm alone."""
    folder = made_once(tmp_path_factory, worker_id, "arms", make_runs)
    arms = ("rdbcl", "grpo, no KL", "sft", "dapo", "mssr", "zero-shot")
    return {arm: {int(w.name): w for w in sorted((folder / arm).iterdir())} for arm in arms}


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
    dapo = read_run(runs["dapo"][0])
    batches = [row["batches"] for row in dapo.steps if row["task_step"] == 2]  # of each task
    assert counts == {
        "rdbcl": 192,
        "grpo, no KL": 192,
        "sft": 0,
        "dapo": 32 * sum(batches),
        "mssr": 48,
        "zero-shot": 0,
    }
    assert sampled(dapo).sum() == 32 * sum(batches) and len(sampled(dapo)) == 6


def test_what_a_run_has_not_is_no_number(runs):
    found = {arm: strength(read_run(runs[arm][0])) for arm in ("grpo, no KL", "sft", "zero-shot")}
    for of_arm in found.values():
        assert math.isnan(of_arm["kl_coef"]) and math.isnan(of_arm["kl"])
    assert found["grpo, no KL"]["kl_loss"] == 0 and math.isnan(found["sft"]["kl_loss"])
    assert all(math.isfinite(v) for v in strength(read_run(runs["rdbcl"][0])).values())
    nothing = cost(read_run(runs["zero-shot"][0]))
    assert nothing == {"sampled": 0.0, "tokens": 0.0, "seconds": 0.0}


def test_tables_and_pictures_of_all_of_them(runs, tmp_path):
    numbers = write_study_report(record(runs), tmp_path)
    assert read_study(tmp_path) == numbers
    assert {p.stem for p in tmp_path.glob("*.png")} == {"arms", "tasks", "learning", "curve-beta"}
    curves = {cell.arm: cell.learning for cell in numbers.arms if cell.learning}
    assert curves.keys() == {"rdbcl", "grpo, no KL", "dapo", "mssr"}
    assert {arm for arm in curves if "entropy" in curves[arm]} == curves.keys() - {"dapo"}
    entropies = [read_run(path).series("entropy")[1] for path in runs["rdbcl"].values()]
    np.testing.assert_allclose(curves["rdbcl"]["entropy"], np.mean(entropies, 0))
    np.testing.assert_array_equal(curves["mssr"]["sampled"], 8 * np.arange(1, 7))
    text = (tmp_path / "study.md").read_text()
    assert line(text, "sft", "### Strength")[1:5] == ["–", "–", "–", "0.0"]
    assert line(text, "zero-shot", "### Strength")[1:] == ["–", "–", "–", "0.0", "0.0", "0.0"]
    assert line(text, "rdbcl", "### Strength")[4] == "192"
    assert "nan" not in text.lower() and "None" not in text
    assert "NaN" not in (tmp_path / "study.json").read_text()


def test_a_curve_in_several_settings_is_a_surface(runs, tmp_path):
    """Tables and a picture of it, by the numbers of the runs: their matrices are given here."""
    last = {  # arm → setting → x → Last
        "none": {"slow": {0.0: 0.5}, "fast": {0.0: 0.2}},
        "rdbcl": {"slow": {1.0: 0.6, 2.0: 0.56}, "fast": {1.0: 0.3, 2.0: 0.55}},
    }
    cells = {}
    for arm, settings in last.items():
        for setting, points in settings.items():
            for x, value in points.items():
                workdir = tmp_path / f"{arm}-{setting}-{x}"
                shutil.copytree(runs["sft"][0], workdir)
                found = read_results(workdir)
                metrics = {**found.splits["test"].metrics, "last": value}
                test = dataclasses.replace(found.splits["test"], metrics=metrics)
                splits = {**found.splits, "test": test}
                write_results(workdir, dataclasses.replace(found, splits=splits))
                cells[arm, setting, x] = Cell(setting, arm, f"beta={x}", {0: workdir}, {})
    arms = [cells["none", s, 0.0] for s in ("slow", "fast")]
    curves = [("beta", x, cell) for (_, _, x), cell in cells.items()]
    numbers = write_study_report(record(runs, arms=arms, baseline="none", curves=curves), tmp_path)
    ((name, surface),) = surfaces(numbers)
    assert (name, surface.settings, surface.points) == ("beta", ["slow", "fast"], [0, 1, 2])
    np.testing.assert_allclose(surface.means["rdbcl"], [[np.nan, 0.6, 0.56], [np.nan, 0.3, 0.55]])
    text = (tmp_path / "study.md").read_text()
    # three of four points within 5 of its best; most ahead where the other is worst
    assert line(text, "rdbcl", "## Over beta")[1:4] == ["60.0", "75%", "+35.0 (fast)"]
    assert line(text, "none", "## Over beta")[1:] == ["50.0", "50%", "–", "−10.0 (slow)"]
    assert (tmp_path / "surface-beta.png").exists()
    # an arm that never ran where another did has no gain on it, and the page is written
    apart = [c for c in cells.values() if (c.arm, c.setting) != ("none", "fast")]
    apart = [c for c in apart if (c.arm, c.setting) != ("rdbcl", "slow")]
    curves = [("beta", float(x), cell) for x, cell in enumerate(apart)]
    given = record(runs, arms=arms[:1], baseline="none", curves=curves)
    (tmp_path / "apart").mkdir()
    write_study_report(given, tmp_path / "apart")
    text = (tmp_path / "apart/study.md").read_text()
    assert line(text, "rdbcl", "## Over beta")[3] == "–"


def test_accuracy_wherever_it_was_measured(runs, tmp_path):
    """Before and after each task, and after its second step."""
    numbers = write_study_report(record(runs), tmp_path)
    curves = {cell.arm: cell.progress for cell in numbers.arms}
    assert curves["zero-shot"] == {}
    found, run = curves["sft"], read_run(runs["sft"][0])
    assert found["step"] == [0, 2, 3, 5, 6]
    ends = run.matrix("validation").mean(axis=1)
    between = [
        np.mean([row[f"eval/{task}/accuracy"] for task in TASKS])
        for row in run.steps
        if row["task_step"] == 1
    ]
    wanted = [ends[0], between[0], ends[1], between[1], ends[2]]
    np.testing.assert_allclose(found["accuracy"], wanted)
    assert found["sampled"] == [0] * 5 and curves["mssr"]["sampled"] == [0, 16, 24, 40, 48]
    np.testing.assert_allclose(found["tokens"], [0, *run.series("num_tokens")[1][[1, 2, 4, 5]]])


def test_accuracy_stays_at_its_step_where_a_line_was_lost(runs, tmp_path):
    workdir = tmp_path / "lost"
    shutil.copytree(runs["sft"][0], workdir)
    first, *others = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join([first[:9] + "\n", *others]))
    arms = {"sft": runs["sft"], "lost": {0: workdir}}
    numbers = write_study_report(record(arms, baseline="sft", curves=[]), tmp_path)
    whole, lost = (cell.progress for cell in numbers.arms)
    assert lost["step"] == [0, 2, 3, 5, 6]
    assert (lost["accuracy"], lost["tokens"]) == (whole["accuracy"], whole["tokens"])


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


def test_what_had_nothing_to_learn_from_is_told_with_its_reason(runs, tmp_path):
    cells = record(runs).arms
    one = dataclasses.replace(cells[0], runs={0: cells[0].runs[0]}, failed={1: "boom"})
    lacking = {0: "no demonstration", 1: "no demonstration"}
    none = dataclasses.replace(cells[2], runs={}, lacking=lacking)
    why = {"main/sft/seed0": "task 'sum': no demonstration"}
    numbers = write_study_report(record(runs, arms=[one, none], lacking=why), tmp_path)
    assert read_study(tmp_path) == numbers and numbers.lacking == why and not numbers.failed
    text = (tmp_path / "study.md").read_text()
    assert "- `main/sft/seed0`: task 'sum': no demonstration" in text and "## Failed" not in text
    assert line(text, "sft", "## Results")[2:4] == ["0 (2 without data)", "–"]
    assert line(text, "sft", "### By seed")[1:] == ["no data", "no data"]


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


def test_rows_of_before_sampled_was_logged(runs, tmp_path):
    """Such a run's cost is not known: a dash in the table, no curve over it, and nothing is NaN."""
    workdir = tmp_path / "old"
    shutil.copytree(runs["rdbcl"][0], workdir)
    lines = [json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()]
    for row in lines:
        row.pop("sampled", None)
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    cells = [Cell("main", "old", "", {0: workdir}, {}), *record(runs).arms]
    numbers = write_study_report(record(runs, arms=cells, curves=[]), tmp_path)
    old = next(cell for cell in numbers.arms if cell.arm == "old")
    assert old.learning and len(old.learning["accuracy"]) == len(old.learning["step"])
    text = (tmp_path / "study.md").read_text()
    assert line(text, "old", "### Strength")[4] == "–" and "nan" not in text.lower()
