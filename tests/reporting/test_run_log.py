import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from rdbcl_jax.reporting.run_files import Run, read_run
from rdbcl_jax.reporting.run_log import RunLog
from rdbcl_jax.reporting.samples import merge_parts, read_samples
from rdbcl_jax.results import RunResults, SplitResults


def samples(step, task="sum", rows=4, **more):
    return {
        "step": step,
        "task": task,
        "completion": [f"a{step}"] * rows,
        "rp": np.ones(rows),
    } | more


def write_steps(log, steps, task="sum"):
    for s in steps:
        log.write_step({"step": s, "task": task, "reward": np.float32(s), "bad": np.nan})
        log.write_samples(samples(s, task))


def test_one_file_a_task_whatever_was_killed_when(tmp_path):
    """Between the last part of a task and the first of the next; and within a task, twice."""
    log = RunLog(tmp_path)
    write_steps(log, range(2), "sum")  # killed
    with RunLog(tmp_path, resume_step=2) as log:
        write_steps(log, (2, 3), "jigsaw")  # stopped
    log = RunLog(tmp_path, resume_step=4)
    write_steps(log, (4, 5), "jigsaw")  # killed
    with RunLog(tmp_path, resume_step=5) as log:
        write_steps(log, (5, 6), "jigsaw")
    files = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert files == ["00000000-sum.parquet", "00000002-jigsaw.parquet"]
    assert log.lost == [] and read_samples(tmp_path)["step"].to_pylist()[::4] == list(range(7))


def test_what_is_lost_of_the_log_is_named(tmp_path):
    with RunLog(tmp_path) as log:
        write_steps(log, range(6))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join([*lines[:1], *lines[3:4]]) + lines[4][:9])
    (tmp_path / "samples/00000000-sum.parquet").write_bytes(b"PAR1")
    (tmp_path / "examples.json").write_text("[{")
    log = RunLog(tmp_path, resume_step=5)
    assert log.lost[1:] == [
        "samples/00000000-sum.parquet cannot be read: set aside as 00000000-sum.parquet.damaged",
        "metrics.jsonl lacks the rows of steps 1–2, 4",
        "samples/ lacks the rows of steps 0–4",
    ]
    assert "examples.json is damaged" in log.lost[0]


def test_files_of_somebody_among_the_samples_are_neither_read_nor_removed(tmp_path):
    with RunLog(tmp_path) as log:
        write_steps(log, range(2))
    write_steps(RunLog(tmp_path, resume_step=2), (2, 3))
    folder = tmp_path / "samples"
    names = "part-x.parquet", "00000000-sum copy.parquet", "00000001-sum.parquet", "notes.parquet"
    for name in names:
        shutil.copy(folder / "00000000-sum.parquet", folder / name)
    (folder / "part-7.parquet").mkdir()
    assert read_samples(tmp_path)["step"].to_pylist()[::4] == [0, 1, 2, 3]
    with RunLog(tmp_path, resume_step=3) as log:
        write_steps(log, (3,))
    assert log.lost == [] and read_samples(tmp_path)["step"].to_pylist()[::4] == [0, 1, 2, 3]
    assert {path.name for path in folder.iterdir()} == {
        "00000000-sum.parquet",
        "part-7.parquet",
        *names,
    }


def test_everything_comes_back(runs):
    run = read_run(runs / "rdbcl-0")
    assert run.tasks == ["sum", "jigsaw"] and run.held_out == ["alt"]
    assert run.complete and run.tasks_done == 2
    assert run.matrix().shape == (3, 2) and run.matrix(held_out=True).shape == (3, 3)
    assert np.isfinite(run.matrix("test", "parse_rate")).all()
    assert len(run.steps) == 6 and run.samples.num_rows == 6 * 8 * 4 and len(run.examples) == 14
    steps, reward = run.series("reward", "jigsaw")
    assert list(steps) == [3, 4, 5] and np.isfinite(reward).all()
    assert "completion" not in run.samples.column_names
    assert "completion" in read_samples(run.workdir).column_names


def test_one_sample_file_a_task(runs):
    files = sorted((runs / "rdbcl-0" / "samples").iterdir())
    assert [p.name for p in files] == ["00000000-sum.parquet", "00000003-jigsaw.parquet"]
    columns = set(pq.read_table(files[0]).column_names)  # ordinary Parquet
    assert {"rp", "kl_coef", "prompt", "rewards/format", "record_id"} <= columns


def test_samples_survive_a_kill(tmp_path):
    log = RunLog(tmp_path)
    write_steps(log, range(3))  # no close
    assert read_samples(tmp_path)["step"].to_pylist() == [0] * 4 + [1] * 4 + [2] * 4
    assert [row["step"] for row in read_run(tmp_path).steps] == [0, 1, 2]


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("resume", [0, 2, 4, 6, 9])
def test_resume_leaves_no_duplicates(tmp_path, resume, closed):
    """Killed or closed after steps 0–3 of one task and 4–6 of another, then resumed."""
    log = RunLog(tmp_path)
    write_steps(log, range(4), "a")
    write_steps(log, range(4, 7), "b")
    log.write_examples([{"step": 3, "task": "a"}, {"step": 6, "task": "b"}])
    if closed:
        log.close()
    log = RunLog(tmp_path, resume_step=resume)
    run = read_run(tmp_path)
    kept = [s for s in range(7) if s < resume]
    assert [row["step"] for row in run.steps] == kept
    assert [e["step"] for e in run.examples] == [s for s in (3, 6) if s < resume]
    write_steps(log, range(resume, 10), "b")
    log.close()
    expected = kept + list(range(resume, 10))
    assert [row["step"] for row in read_run(tmp_path).steps] == expected
    assert read_samples(tmp_path)["step"].to_pylist() == [s for s in expected for _ in range(4)]


def test_kill_between_merge_and_cleanup(tmp_path):
    log = RunLog(tmp_path)
    write_steps(log, range(3))
    folder = tmp_path / "samples"
    parts = {path: path.read_bytes() for path in folder.glob("part-*")}
    merge_parts(folder)
    for path, data in parts.items():
        path.write_bytes(data)
    assert read_samples(tmp_path).num_rows == 12
    RunLog(tmp_path, resume_step=3).close()
    assert [p.name for p in folder.iterdir()] == ["00000000-sum.parquet"]


def test_torn_line_and_odd_separators(tmp_path):
    log = RunLog(tmp_path)
    log.write_step({"step": 0, "task": "line\u2028separator"})
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as f:
        f.write("[" * 100_000 + '\n{"step": "0"}\n{"step": 1, "rew')
    with RunLog(tmp_path, resume_step=1) as log:
        log.write_step({"step": 1, "task": "b"})
    assert [r["task"] for r in read_run(tmp_path).steps] == ["line\u2028separator", "b"]


def test_a_line_of_bytes_that_are_no_text_is_named_and_the_others_are_read(tmp_path):
    log = RunLog(tmp_path)
    write_steps(log, range(3))
    log.close()
    lines = (tmp_path / "metrics.jsonl").read_bytes().split(b"\n")
    lines[1] = bytes(byte ^ 0x80 for byte in lines[1])
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    assert [row["step"] for row in read_run(tmp_path).steps] == [0, 2]
    with RunLog(tmp_path, resume_step=3) as log:
        assert log.lost == ["metrics.jsonl lacks the rows of steps 1"]


def test_tasks_may_differ_in_columns_and_types(tmp_path):
    with RunLog(tmp_path) as log:
        log.write_samples(samples(0, "a", gold=[1, 2, 3, 4], kl=[None] * 4))
        log.write_samples(samples(1, "b/ü", gold=["x"] * 4, kl=np.float32([1, 2, 3, 4]), new=True))
    table = read_samples(tmp_path)
    assert table["gold"].to_pylist() == ["1", "2", "3", "4"] + ["x"] * 4
    assert table["kl"].to_pylist() == [None] * 4 + [1, 2, 3, 4]
    assert table["new"].to_pylist() == [None] * 4 + [True] * 4


def test_samples_of_one_step_in_two_calls_and_bad_text(tmp_path):
    with RunLog(tmp_path) as log:
        log.write_samples(samples(0))
        log.write_samples(samples(0) | {"completion": ["\ud800"] * 4})
        log.write_samples(samples(0, rows=0))
        with pytest.raises(ValueError, match="other lengths"):
            log.write_samples({"step": [0, 0, 0], "task": "a", "rp": [1.0, 2.0]})
    assert read_samples(tmp_path)["completion"].to_pylist() == ["a0"] * 4 + ["?"] * 4


def test_matrix_of_a_killed_run(runs):
    run = read_run(runs / "killed")
    assert run.tasks_done == 1 and not run.complete and len(run.steps) == 5
    assert np.isfinite(run.matrix()[:2]).all() and np.isnan(run.matrix()[2:]).all()
    assert "eval/sum/accuracy" in run.steps[-1] and sorted(run.measured()) == [0, 2, 3, 5]


@pytest.mark.parametrize("lost", [None, 1])
def test_accuracy_on_the_way_of_an_unfinished_run(tmp_path, lost):
    """The newest point was left out, and a line that was lost moved all later ones."""
    rows = [{"step": n, "task": "a" if n < 4 else "b"} for n in range(6)]
    for n in (2, 5):
        rows[n] |= {"eval/a/accuracy": n / 10, "eval/b/accuracy": 0.5}
    split = SplitResults([[0.1, 0.2], [0.6, 0.2]], count=[8, 8])
    results = RunResults("grpo", 0, tasks=["a", "b"], splits={"validation": split})
    rows = [row for row in rows if row["step"] != lost]
    run = Run(tmp_path, results, rows, None, [])
    found = {done: row.tolist() for done, row in run.measured().items()}
    assert found == {0: [0.1, 0.2], 3: [0.2, 0.5], 4: [0.6, 0.2], 6: [0.5, 0.5]}
    assert run.logged([0, 3, 4, 6]).tolist() == ([0, 2, 3, 5] if lost else [0, 3, 4, 6])


def test_tensorboard_holds_each_step_once(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = RunLog(tmp_path)
    write_steps(log, range(5))
    log.close()
    log = RunLog(tmp_path, resume_step=3)
    write_steps(log, range(3, 7))
    log.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [e.step for e in events.Scalars("reward")] == list(range(7))
    assert "bad" not in events.Tags()["scalars"]


def test_not_a_workdir(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a workdir"):
        read_run(tmp_path)
