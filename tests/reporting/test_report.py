import base64
import dataclasses
import io
import json
import re
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rdbcl_jax.core.continual_metrics import continual_metrics, held_out_metrics
from rdbcl_jax.lock import WorkdirLock
from rdbcl_jax.reporting.metric_table import CONTINUAL, STEP, Place, at
from rdbcl_jax.reporting.numbers import percent
from rdbcl_jax.reporting.report import write_report
from rdbcl_jax.reporting.run_files import read_run
from rdbcl_jax.reporting.run_log import RunLog
from rdbcl_jax.results import RunResults, SplitResults, write_results

NASTY = '<script>alert("x")</script><img src=x onerror=y>&amp;'


def text_of(workdir):
    return write_report(workdir).read_text()


@pytest.fixture(scope="module")
def page(runs):
    return (runs / "rdbcl-0" / "report.html").read_text()  # as the run itself wrote it


@pytest.fixture(scope="module")
def run(runs):
    return read_run(runs / "rdbcl-0")


def cells(text, caption):
    """Rows of the heat map under a caption: learned tasks, then those held out."""
    block = text[text.index(f"<figcaption>{caption}") :]
    block = block[: block.index("</table>")]
    rows = re.findall(r"<tr><th.*?</tr>", block, re.S)
    return [re.findall(r'class="cell[^>]*>([^<]*)<', row) for row in rows if "cell" in row]


def test_self_contained_and_small(page):
    own = re.sub(r"/\*! https://github.com/leeoniya/uPlot [^*]*\*/", "", page)  # a notice
    assert "http:" not in own and "https:" not in own and "<script src" not in page
    assert not re.search(r"\b(fetch|XMLHttpRequest|import)\s*\(", page)
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert not re.search(r"url\((?!#)|@import", page)
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page
    assert len(page) < 3_000_000


@pytest.mark.parametrize(
    "what, caption", [("accuracy", "Accuracy, %"), ("parse_rate", "Parse rate")]
)
def test_matrices_show_the_results(run, page, what, caption):
    expected = [[percent(v) for v in row] for row in run.matrix("test", what, held_out=True)]
    assert cells(page, caption) == expected


def test_metrics_and_headline_show_the_results(run, page):
    metrics = run.results.metrics("test")
    assert metrics.keys() == CONTINUAL.keys()
    for name, metric in CONTINUAL.items():
        shown = percent(metrics[name], signed=metric.signed)
        assert f"<code>{name}</code></th><td>{shown}</td>" in page
    for name, metric in at(Place.TILE).items():
        shown = percent(metrics[name], signed=metric.signed)
        assert f'<span class="value">{shown}</span>' in page
    assert "1 task not learned" in page


def test_the_table_has_every_metric_of_a_matrix():
    matrix = np.eye(3, 2)
    assert CONTINUAL.keys() == {*continual_metrics(matrix), *held_out_metrics(matrix)}
    assert all(metric.definition and metric.unit for metric in CONTINUAL.values())


def test_the_table_has_no_name_that_no_run_writes(runs):
    """Panels are found by the names of metrics.jsonl."""
    assert STEP.keys() <= set(read_run(runs / "rdbcl-0").keys)


def test_sections_and_panels(page):
    for title in ("Accuracy", "Metrics", "Learning", "Health of the run", "Examples", "Setup"):
        assert f"<h2>{title}</h2>" in page
    for metric in at(Place.HEALTH).values():
        assert f"<figcaption>{metric.heading}".replace("'", "&#39;") in page
    assert "Reasoning portability" in page and "A loss near 0 is normal" in page
    assert "clip_ratio/high_mean" in page  # among all other metrics
    assert "data:image/png;base64" in page
    assert "&#34;learning_rate&#34;: 0.001" in page and "<summary>Environment" in page


def test_a_killed_run(runs):
    text = text_of(runs / "killed")
    assert "partial: 1 of 2 tasks" in text
    table = cells(text, "Accuracy, %")
    assert "–" not in table[0] + table[1] and set(table[2]) == {"–"}


def test_without_a_kl_term(runs):
    text = (runs / "grpo-0" / "report.html").read_text()
    assert "GRPO on 2 tasks" in text and "<h2>Health of the run" in text
    assert "Reasoning portability" not in text and "The anchor" not in text
    assert "KL to the previous policy" not in text


def test_where_nothing_is_learned(runs):
    text = (runs / "zero-shot" / "report.html").read_text()
    assert "zero_shot on 2 tasks" in text and "<h2>Metrics" in text
    for title in ("Learning", "Health of the run", "Examples"):
        assert f"<h2>{title}" not in text


def test_only_metrics(tmp_path):
    with RunLog(tmp_path) as log:
        for step in range(3):
            log.write_step(
                {"step": step, "task": "a", "reward": 0.5, "odd/new key": step, "s": "x"}
            )
    text = text_of(tmp_path)
    assert "odd/new key" in text and "partial: 0 of 1 tasks" in text


def test_only_results(tmp_path):
    splits = {"test": SplitResults(accuracy=[[0.5]])}
    results = RunResults("zero_shot", tasks=["a"], splits=splits, measures={"a": "CIDEr-D"})
    write_results(tmp_path, results)
    text = text_of(tmp_path)
    assert "50.0" in text
    assert "Of a it is the CIDEr-D." in " ".join(text.split())


def test_metrics_that_are_never_finite_or_change_kind(tmp_path):
    with RunLog(tmp_path) as log:
        for step in range(3):
            log.write_step({"step": step, "task": "a", "kl": np.nan, "odd": [1, "x", None][step]})
    assert "KL to the previous policy" not in text_of(tmp_path)


def test_text_is_escaped(copied):
    workdir = copied()
    results = read_run(workdir).results
    log = workdir / "metrics.jsonl"
    log.write_text(log.read_text().replace('"jigsaw"', json.dumps(NASTY)))
    changed = {"tasks": ["sum", NASTY], "held_out": [NASTY], "config": {NASTY: NASTY}}
    write_results(workdir, dataclasses.replace(results, **changed, device=NASTY, method=NASTY))
    path = workdir / "examples.json"
    keys = ("prompt", "gold", "task", "record_id")
    nasty = {**dict.fromkeys(keys, NASTY), "tokens": [NASTY], "images": []}
    path.write_text(json.dumps([{**e, **nasty} for e in json.loads(path.read_text())]))
    text = text_of(workdir)
    assert "<script>alert" not in text and "<img src=x" not in text
    assert "\\u003cscript\\u003e" in text and "&lt;script&gt;" in text and "&amp;amp;" in text


def test_examples_mark_spans_and_numbers(copied):
    workdir = copied()
    example = {
        "task": "sum",
        "step": 1,
        "image": "bm90IGEgcGljdHVyZQ==",
        "prompt": "p",
        "tokens": ["<think>", "one\n", "2"],
        "spans": ["other", "reasoning", "answer"],
        "policy_logps": [0.0, -0.5, -1.0],
        "reference_logps": [0.0, -0.75, None],
        "correct": False,
    }
    (workdir / "examples.json").write_text(json.dumps([example]))
    text = text_of(workdir)
    assert "log π −0.500, log π_ref −0.750, difference −0.250" in text
    assert '<span class="ans" title="answer">2</span>' in text
    assert "one⏎\n" in text and '<span class="o">&lt;think&gt;</span>' in text
    assert "(no picture)" in text and "✗ wrong" in text


def test_large_pictures_are_made_smaller(copied):
    noise = np.random.default_rng(0).integers(0, 255, (900, 1200, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    workdir = copied()
    path = workdir / "examples.json"
    example = json.loads(path.read_text())[0]
    del (
        example["sample"],
        example["images"],
    )  # as before groups were kept: a row, a prompt, a picture
    example["image"] = base64.b64encode(buffer.getvalue()).decode()
    path.write_text(json.dumps([example] * 5))
    text = text_of(workdir)
    assert len(buffer.getvalue()) > 2_000_000 > len(text) and "data:image/jpeg" in text


def test_many_tasks_with_long_names(tmp_path):
    tasks = [f"a rather long name of task number {k}" for k in range(8)]
    split = SplitResults(np.full((9, 8), 0.5).tolist(), np.ones((9, 8)).tolist(), [4] * 8)
    write_results(tmp_path, RunResults("grpo", 0, "done", tasks, splits={"test": split}))
    text = text_of(tmp_path)
    assert len(cells(text, "Accuracy, %")) == 9
    assert "50.00 % ± 25.00 (standard error, n = 4)" in text


def charts(text):
    """Each chart of a page by its title: what charts.js draws from."""
    found = re.findall(
        r'<figure class="chart"><figcaption>(.*?)(?:<small>.*?)?</figcaption>.*?'
        r'<script type="application/json">(.*?)</script>',
        text,
        re.S,
    )
    return {title: json.loads(data) for title, data in found}


def test_charts_hold_the_numbers_of_the_run(run, page):
    found = charts(page)
    kl = found["KL to the previous policy"]
    assert kl["x"] == list(range(6)) and [line["label"] for line in kl["lines"]] == run.tasks
    for line in kl["lines"]:
        steps, values = run.series("kl", line["label"])
        assert line["first"] == steps[0]
        np.testing.assert_allclose(line["y"], values, rtol=1e-4, atol=1e-12)
    first = found["1 sum"]
    assert [line["label"] for line in first["lines"]][:2] == ["reward", "accuracy"]
    np.testing.assert_allclose(first["lines"][0]["y"], run.series("reward", "sum")[1], rtol=1e-4)
    (validation,) = [line for line in first["lines"] if line["points"]]
    assert first["x"][validation["first"]] == 1 and len(validation["y"]) == 1


def test_a_run_that_goes_on_is_shown_as_running(runs, copied):
    workdir = copied("killed")
    with WorkdirLock(workdir):
        text = text_of(workdir)
    assert "running: 1 of 2 tasks" in text and "the run writes it again" in text
    (written,) = re.findall(r'data-written="(\d+)">Written on \d+ \w+, \d\d:', text)
    assert abs(int(written) - time.time()) < 60 and "`running ${ago} ago:`" in text
    stopped = text_of(workdir)
    assert "partial: 1 of 2 tasks" in stopped and "the same command takes it up" in stopped
    assert "running ${ago}" not in stopped
    assert "Written on" not in text_of(copied())


def test_a_whole_group_and_failures(runs, page):
    rows = json.loads((runs / "rdbcl-0" / "examples.json").read_text())
    rows = [row for row in rows if row["task"] == "sum"]
    group = [row for row in rows if row["record_id"] == rows[0]["record_id"]]
    assert [row["sample"] for row in group] == [0, 1, 2, 3]  # all of rollout.samples
    assert len({row["record_id"] for row in rows}) == 4 and len(rows) == 4 + 3
    assert all(not row["correct"] for row in rows[4:])  # this base is never right
    assert [len(row["images"]) for row in rows] == [1, 0, 0, 0, 1, 1, 1]
    assert "0 of 4 right" in page and "The other 3 of the group" in page
    assert page.count("✗ wrong") == 2 * (4 + 2)  # three prompts a task


def test_every_picture_of_a_prompt_is_shown(copied):
    workdir = copied()
    path = workdir / "examples.json"
    rows = json.loads(path.read_text())
    rows[0]["images"] *= 3
    path.write_text(json.dumps(rows[:4]))
    assert text_of(workdir).count('alt="a picture of the prompt"') == 3


@pytest.mark.parametrize("content", ["[{", "{}", "[1]", '[{"task": "sum", "tokens": 3}]'])
def test_damaged_examples_are_named(copied, content):
    workdir = copied()
    (workdir / "examples.json").write_text(content)
    with pytest.raises(ValueError, match=f"{workdir}/examples.json is damaged"):
        write_report(workdir)


def test_damaged_and_foreign_samples_are_named(copied):
    workdir = copied()
    file = workdir / "samples/00000000-sum.parquet"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{file} is damaged"):
        write_report(workdir)
    pq.write_table(pa.table({"prompt": ["?"]}), file)
    with pytest.raises(ValueError, match=f"{file} holds no samples"):
        write_report(workdir)


def test_rows_whose_step_is_no_number_are_left_out(copied):
    workdir = copied()
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write('{"step": "1"}\n{"step": null}\n{"step": true}\n')
    assert len(read_run(workdir).steps) == 6 and "6 steps logged" in text_of(workdir)


def test_minus_zero_is_zero(tmp_path):
    with RunLog(tmp_path) as log:
        log.write_step({"step": 0, "task": "a", "kl": -0.0, "policy_loss": -1e-9})
    text = text_of(tmp_path)
    assert charts(text)["KL to the previous policy"]["lines"][0]["y"] == [0]
    assert "-0.0" not in re.sub(r"<script>.*?</script>|<style>.*?</style>", "", text, flags=re.S)
